"""A report on the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vggexp.report.collect import SCORES, Report
from vggexp.runs import read as runs
from vggexp.system import terminal

LONGEST = 40
"""Rows of a table; the files have all."""


def show(report: Report, console: Console) -> None:
    """Groups of runs, the best first; each value of each axis; what failed."""
    statuses = [run.status for run in report.runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    title = f"{len(report.runs)} runs in {report.title}: {counts}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (*report.axes, "runs", *SCORES, "seconds"):
        table.add_column(name, overflow="fold")
    for group in report.groups[:LONGEST]:
        spreads = [group.spread(name) for name in SCORES]
        seconds = group.spread("seconds")
        table.add_row(
            *(runs.text(value) for value in group.values.values()),
            str(len(group.runs)),
            *("–" if spread is None else spread.text() for spread in spreads),
            "–" if seconds is None else seconds.text(".0f"),
        )
    console.print(table)
    if len(report.groups) > LONGEST:
        console.print(f"… and {len(report.groups) - LONGEST} more; runs.csv has all")
    if report.axes and len(report.groups) > 1:
        _show_values(report, console)
    if report.differences:
        _show_differences(report, console)
    for run in report.failures():
        console.print(f"{terminal.short(run.folder)}: {run.status}: {run.reason}", soft_wrap=True)
    for machine in report.machines:
        console.print(f"machine   {machine}", soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if best := report.best():
        score = f"{report.objective} {best.result[report.objective]:.4f}"
        console.print(f"best      {terminal.short(best.folder)} ({score})", soft_wrap=True)


def _show_values(report: Report, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("axis", "value", "runs", f"best {report.objective}", "mean ± deviation"):
        table.add_column(name, overflow="fold")
    for axis, value, having in report.per_value()[:LONGEST]:
        spread = having.spread(report.objective)
        scores = [run.number(report.objective) for run in having.runs if run.status == "completed"]
        best = max((score for score in scores if score is not None), default=None)
        table.add_row(
            axis,
            value,
            str(len(having.runs)),
            "–" if best is None else f"{best:.4f}",
            "–" if spread is None else spread.text(),
        )
    console.print(table)


def _show_differences(report: Report, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("differs", *(terminal.short(run.folder) for run in report.runs)):
        table.add_column(name, overflow="fold")
    for row in report.differences:
        table.add_row(*row)
    console.print(table)
