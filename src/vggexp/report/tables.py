"""A report as tables: on the terminal, and in a folder with the page and the figures."""

from pathlib import Path

from vggexp.report import figures, page
from vggexp.report.collect import SEED, Report, command
from vggexp.runs import metrics
from vggexp.runs.metrics import COMPARED, COSTS
from vggexp.runs.read import Run
from vggexp.system import files, terminal

LONGEST = 40  # rows of a table; the files have all


def show(report: Report) -> None:
    """Prints the groups of runs, the best first; each value of each axis; what failed."""
    statuses = [run.status for run in report.runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    terminal.say(f"{len(report.runs)} runs in {report.title}: {counts}")
    rows = [group.row() for group in report.groups[:LONGEST]]
    terminal.console().print(terminal.table(report.header(), rows, left=len(report.axes)))
    if len(report.groups) > LONGEST:
        terminal.say(f"… and {len(report.groups) - LONGEST} more; runs.csv has all")
    if report.axes and len(report.groups) > 1:
        name, rows = report.objective, []
        for axis, value, group in report.levels()[:LONGEST]:
            rows.append([axis, value, str(len(group.runs)), _score(group.best(name), name), group.text(name)])
        header = ["axis", "value", "runs", f"best {name}", "mean ± deviation"]
        terminal.console().print(terminal.table(header, rows, left=2))
    if report.differences:
        header = ["differs", *(terminal.short(run.folder) for run in report.runs)]
        terminal.console().print(terminal.table(header, report.differences, left=3))
    for line in _remarks(report):
        terminal.say(line)
    if best := report.best():
        terminal.say(f"best      {terminal.short(best.folder)} ({report.objective} {_score(best, report.objective)})")


def _score(run: Run | None, name: str) -> str:
    return metrics.text(name, run and run.score(name))


def _remarks(report: Report) -> list[str]:
    """What did not complete, what the runs were trained on, what a reader should know before comparing."""
    failed = [f"{terminal.short(run.folder)}: {run.status}: {run.reason}" for run in report.failures()]
    return [*failed, *(f"machine: {name}" for name in report.machines), *(f"note: {note}" for note in report.notes)]


def write(report: Report, folder: Path) -> None:
    """Writes `runs.csv`, `report.md`, `report.html` and `figures/`."""
    axes, numbers = (*report.axes, SEED), (*COMPARED, *COSTS)
    rows = []
    for run in report.runs:
        row = [terminal.short(run.folder), run.status, *map(run.config.get, axes), *map(run.number, numbers)]
        rows.append([*row, run.result.get("config_hash"), run.reason, command(run)])
    header = ["run", "status", *axes, *numbers, "config_hash", "reason", "command"]
    files.write_csv(folder / "runs.csv", header, rows)
    names = figures.draw(report, folder / "figures")
    files.write_text(folder / "report.md", _markdown(report, names))
    page.write(report, folder / "report.html")


def _markdown(report: Report, names: list[str]) -> str:
    header = report.header()
    lines = [f"# {report.title}", "", "Mean ± standard deviation over seeds.", "", _row(header)]
    lines += [_row(["---"] * len(header)), *(_row(group.row()) for group in report.groups)]
    if report.differences:
        lines += ["", _row(["differs", *(terminal.short(run.folder) for run in report.runs)]), _row(["---"] * 3)]
        lines += [_row(list(row)) for row in report.differences]
    lines += ["", *(f"- {line}" for line in _remarks(report))]
    lines += ["", *(f"![{name}](figures/{name}.svg)" for name in names)]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
