"""vggexp report [FOLDER | last] ... [output=FOLDER]

Puts runs side by side: what varied, mean ± standard deviation over seeds, the best of each value, failures.

  FOLDER    of a run, of a sweep, or of anything above them; several make one report
  last      the sweep or run under outputs/ that was started last; the default
  output    where the files go; default: report/ in the folder, or outputs/report for several

Reads run folders alone, so runs may still train, may have been killed or copied from elsewhere. Two runs are compared:
their configs, versions and curves. Writes report.html (one file, works without a network), runs.csv, report.md and
figures/*.png, *.svg.
"""

from pathlib import Path

from vggexp.commands import options
from vggexp.jobs import sweep
from vggexp.report import collect, files, page, terminal
from vggexp.runs import read as runs
from vggexp.system import paths


class Output(options.Options):
    output: Path | None = None


def main(args: list[str]) -> int:
    """Returns the exit code."""
    named = [arg for arg in args if "=" not in arg or Path(arg).exists()] or ["last"]
    given, _ = options.parse(Output, [arg for arg in args if arg not in named])
    places = [sweep.latest() if name == "last" and not Path(name).exists() else Path(name) for name in named]
    report = collect.collect(places, runs.find(places))
    folder = given.output or (places[0] if len(places) == 1 else paths.outputs()) / "report"
    terminal.show(report, terminal.console())
    with options.output(folder):
        files.write(report, folder)
        page.write(report, folder / "report.html")
    terminal.console().print(f"report    {terminal.short(folder / 'report.html')}", soft_wrap=True)
    return 0
