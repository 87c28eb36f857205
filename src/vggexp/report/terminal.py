"""A report on the terminal."""

from vggexp.report.collect import Report
from vggexp.runs import metrics
from vggexp.runs.read import Run
from vggexp.system.terminal import console, say, short, table

LONGEST = 40  # rows of a table; the files have all


def show(report: Report) -> None:
    """Prints the groups of runs, the best first; each value of each axis; what failed."""
    statuses = [run.status for run in report.runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    title = f"{len(report.runs)} runs in {report.title}: {counts}"
    rows = [group.row() for group in report.groups[:LONGEST]]
    console().print(table(report.header(), rows, left=len(report.axes), title=title))
    if len(report.groups) > LONGEST:
        say(f"… and {len(report.groups) - LONGEST} more; runs.csv has all")
    if report.axes and len(report.groups) > 1:
        name, rows = report.objective, []
        for axis, value, group in report.levels()[:LONGEST]:
            rows.append([axis, value, str(len(group.runs)), _score(group.best(name), name), group.text(name)])
        console().print(table(("axis", "value", "runs", f"best {name}", "mean ± deviation"), rows, left=2))
    if report.differences:
        header = ["differs", *(short(run.folder) for run in report.runs)]
        console().print(table(header, report.differences, left=3))
    for run in report.failures():
        say(f"{short(run.folder)}: {run.status}: {run.reason}")
    for machine in report.machines:
        say(f"machine   {machine}")
    for note in report.notes:
        say(f"note: {note}")
    if best := report.best():
        say(f"best      {short(best.folder)} ({report.objective} {_score(best, report.objective)})")


def _score(run: Run | None, name: str) -> str:
    return metrics.text(name, run and run.score(name))
