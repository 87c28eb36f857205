"""vggexp report [FOLDER | last] ... [output=FOLDER]

Puts runs side by side: what varied, mean ± standard deviation over seeds, the best of each value, failures.

  vggexp report                        the sweep or run under outputs/ that was started last
  vggexp report outputs/A outputs/B    two runs: their configs, versions and curves are compared

  FOLDER    of a run, of a sweep, or of anything above them; several make one report
  last      the sweep or run under outputs/ that was started last; the default
  output    where the files go; default: report/ in the folder, or outputs/report for several

Reads run folders alone, so runs may still train, may have been killed or copied from elsewhere. Writes report.html (one
file, works without a network), runs.csv, report.md and figures/*.png, *.svg.
"""

from pathlib import Path

from vggexp.commands import options
from vggexp.report import collect, tables
from vggexp.runs import layout, read, select
from vggexp.system import files, paths
from vggexp.system.terminal import say, short


class Output(options.Options):
    output: Path | None = None


def main(args: list[str]) -> int:
    """Returns the exit code."""
    named = [arg for arg in args if "=" not in arg or Path(arg).exists()]
    given, _ = options.parse(Output, [arg for arg in args if arg not in named])
    places = select.places(named or [select.LAST])
    report = collect.collect(places, read.find(places))
    output = given.output or (places[0] if len(places) == 1 else paths.outputs()) / layout.REPORT
    tables.show(report)
    with files.writing(output, f"output={output}"):
        tables.write(report, output)
    say(f"report    {short(output / 'report.html')}")
    return 0
