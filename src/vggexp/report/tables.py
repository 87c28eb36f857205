"""A report as tables: on the terminal, and in a folder with the page and the figures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vggexp.report import figures, page
from vggexp.report.collect import DIFFERENCES, SEED, Part, Report
from vggexp.report.notes import command
from vggexp.runs import metrics
from vggexp.runs.metrics import COMPARED, COSTS
from vggexp.runs.read import Run
from vggexp.system import files, terminal
from vggexp.system.text import markdown

LONGEST = 40  # rows of a table; the files have all

Table = Callable[[Sequence[str], Sequence[Sequence[str]], int], None]
"""Shows a header and rows; the columns after the first few hold numbers."""


def show(report: Report) -> None:
    """Prints the groups of runs, the best first; each value of each axis; comparisons; what failed."""
    statuses = [run.status for run in report.runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    terminal.say(f"{len(report.runs)} runs in {report.title}: {counts}")

    def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
        terminal.console().print(terminal.table(header, rows[:LONGEST], left=left))
        if len(rows) > LONGEST:
            terminal.say(f"… and {len(rows) - LONGEST} more; runs.csv has all")

    for part in report.parts:
        tables_of(part, table, terminal.say)
    if report.differences:
        table(["differs", *(terminal.short(run.folder) for run in report.runs)], report.differences, 3)
    for line in _remarks(report):
        terminal.say(line)


def tables_of(part: Part, table: Table, say: Callable[[str], None]) -> None:
    """What there is to say of runs that belong side by side."""
    if part.title:
        say(f"{part.title}: {len(part.runs)} run{'s' * (len(part.runs) > 1)}")
    left = sum(name in part.axes for name in part.columns)
    table(list(map(metrics.label, part.columns)), part.rows(), left)
    if part.axes and len(part.groups) > 1:
        rows, name = [], part.objective
        for axis, value, group in part.levels():
            rows.append([axis, value, str(group.seeds()), _score(group.best(name), name), group.text(name)])
        table(["axis", "value", "seeds", f"best {name}", "mean ± deviation"], rows, 2)
    for comparison in part.comparisons:
        say(f"{comparison.metric}, compared with {comparison.reference.label()}")
        table(DIFFERENCES, comparison.texts(), 1)
    if best := part.best():
        say(_best(part, best))


def _best(part: Part, best: Run) -> str:
    where = f"best      {terminal.short(best.folder)} ({part.objective} {_score(best, part.objective)}"
    if part.objective == metrics.WITHOUT_VALIDATION:
        return f"{where}; chosen on the test set, for there is no validation set)"
    return f"{where}, {metrics.WITHOUT_VALIDATION} {_score(best, metrics.WITHOUT_VALIDATION)})"


def _score(run: Run | None, name: str) -> str:
    return metrics.text(name, run and run.score(name))


def _remarks(report: Report) -> list[str]:
    """What did not complete, what the runs were trained on, what a reader should know before comparing."""
    failed = [f"{terminal.short(run.folder)}: {run.status}: {run.reason}" for run in report.failures()]
    return [*failed, *(f"machine: {name}" for name in report.machines), *(f"note: {note}" for note in report.notes)]


def write(report: Report, folder: Path) -> None:
    """Writes `runs.csv`, `report.md`, `report.html` and `figures/`."""
    axes = [*dict.fromkeys(axis for part in report.parts for axis in part.axes), SEED]
    numbers = (*COMPARED, *COSTS)
    rows = []
    for run in report.runs:
        row = [terminal.short(run.folder), run.status, *map(run.config.get, axes), *map(run.number, numbers)]
        rows.append([*row, run.result.get("config_hash"), run.reason, command(run)])
    header = ["run", "status", *axes, *numbers, "config_hash", "reason", "command"]
    files.write_csv(folder / "runs.csv", header, rows)
    lines = [f"# {markdown(report.title)}", ""]
    lines += ["Mean ± standard deviation over seeds; of one seed, the test set's 95 % interval."]

    def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
        lines.extend(["", *map(_row, [header, ["---"] * len(header), *rows])])

    def say(text: str) -> None:
        lines.extend(["", markdown(text)])

    for n, part in enumerate(report.parts):
        place = folder / "figures" / (str(n) if len(report.parts) > 1 else "")
        tables_of(part, table, say)
        shown = place.relative_to(folder).as_posix()
        lines += ["", *(f"![{name}]({shown}/{name}.svg)" for name in figures.draw(part, place))]
    if report.differences:
        table(["differs", *(terminal.short(run.folder) for run in report.runs)], report.differences, 3)
    lines += ["", *(f"- {markdown(line)}" for line in _remarks(report))]
    files.write_text(folder / "report.md", "\n".join(lines) + "\n")
    page.write(report, folder / "report.html")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown(cell).replace("|", "\\|") for cell in cells) + " |"
