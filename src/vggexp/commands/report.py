"""vggexp report [FOLDER | last] ... [where=CONDITIONS] [sort=KEY] [columns=KEYS] [group=KEYS] [against=CONDITIONS]
              [by=KEYS] [output=FOLDER]

Puts runs side by side: what varied, mean ± standard deviation over seeds, differences with intervals, failures.

  vggexp report                        the sweep or run under outputs/ that was started last
  vggexp report outputs/A outputs/B    two runs: their configs, code, versions and curves are compared
  vggexp report outputs where="status=completed data.resize=32"
  vggexp report against="optimizer.lr=0.01"

  FOLDER    of a run, of a sweep, or of anything above them; several make one report
  last      the sweep or run under outputs/ that was started last; the default
  where     conditions that runs meet, such as "data.resize=32 val/acc>0.9 status!=failed"
  sort      the order of the groups, by a result or a key of the config; -KEY: the largest first; default: the best
  columns   of the table of groups, e.g. optimizer.lr,seeds,test/acc
  by        the keys whose values make the groups of runs, e.g. data.resize; default: all that vary but the seed
  group     what the runs of a table have in common; default: none for one sweep, else experiment,data,model
  against   the group with which all others are compared, beside the best
  output    where the files go; default: report/ in the folder, or outputs/report for several

Reads run folders alone, so runs may still train, may have been killed or copied from elsewhere. Writes report.html (one
file, works without a network), runs.csv, report.md and figures/*.png, *.svg.
"""

from pathlib import Path

from vggexp.commands import options
from vggexp.errors import UserError
from vggexp.report import collect, tables
from vggexp.runs import layout, query, read, select
from vggexp.system import files, paths
from vggexp.system.terminal import say, short


class Choices(options.Options):
    output: Path | None = None
    where: str | None = None
    sort: str | None = None
    columns: options.Words = ()
    group: options.Words = ()
    by: options.Words = ()
    against: str | None = None


def main(args: list[str]) -> int:
    named, others = options.folders(args)
    given, _ = options.parse(Choices, others)
    places = select.places(named or [select.LAST])
    choices = collect.Choices(given.group or None, given.columns or None, given.sort, given.against, given.by or None)
    report = collect.collect(places, query.select(read.find(places), given.where), choices)
    output = given.output or (places[0] if len(places) == 1 else paths.outputs()) / layout.REPORT
    tables.show(report)
    if given.output is None and (output.is_dir() or output.is_symlink()):
        if output.is_symlink():
            raise UserError(f"{output}: is a link, which a run's folder never holds; {files.REMOVE}, or set output=")
        files.check_folder(output, str(output))
    with files.writing(output, f"output={output}"):
        tables.write(report, output)
    say(f"report    {short(output / 'report.html')}")
    return 0
