"""A report as files: CSV, Markdown, a page and figures."""

from pathlib import Path

from vggexp.report import figures, page
from vggexp.report.collect import SEED, Report, command
from vggexp.runs.metrics import COMPARED, COSTS
from vggexp.system import files, terminal


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
    if report.failures():
        lines += ["", "Not completed:", ""]
        lines += [f"- `{terminal.short(run.folder)}`: {run.status}: {run.reason}" for run in report.failures()]
    if report.differences:
        lines += ["", _row(["differs", *(terminal.short(run.folder) for run in report.runs)]), _row(["---"] * 3)]
        lines += [_row(list(row)) for row in report.differences]
    lines += ["", *(f"Machine: {machine}." for machine in report.machines)]
    lines += ["", *(f"Note: {note}." for note in report.notes)] if report.notes else []
    lines += ["", *(f"![{name}](figures/{name}.svg)" for name in names)]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
