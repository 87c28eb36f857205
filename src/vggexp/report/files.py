"""A report as CSV, Markdown and figures."""

import csv
from pathlib import Path

from vggexp.report import paper
from vggexp.report.collect import COSTS, SCORES, SEED, Report
from vggexp.runs import read as runs
from vggexp.system import terminal


def write(report: Report, folder: Path) -> None:
    """`runs.csv`, `report.md` and `figures/`."""
    _write_csv(report, folder / "runs.csv")
    names = paper.draw(report, folder / "figures")
    (folder / "report.md").write_text(_markdown(report, names), encoding="utf-8")


def _write_csv(report: Report, path: Path) -> None:
    """A row for each run."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "status", *report.axes, SEED, *SCORES, *COSTS, "config_hash", "reason", "command"])
        for run, config, command in zip(report.runs, report.configs, report.commands, strict=True):
            numbers = [run.number(name) for name in (*SCORES, *COSTS)]
            values = [config.get(axis) for axis in (*report.axes, SEED)]
            place = terminal.short(run.folder)
            writer.writerow([place, run.status, *values, *numbers, run.result.get("config_hash"), run.reason, command])


def _markdown(report: Report, figures: list[str]) -> str:
    head = [*report.axes, "runs", *SCORES, "seconds"]
    lines = [f"# {report.title}", "", "Mean ± standard deviation over seeds.", ""]
    lines += [_row(head), _row(["---"] * len(head))]
    for group in report.groups:
        spreads = [group.spread(name) for name in SCORES]
        seconds = group.spread("seconds")
        cells = [runs.text(value) for value in group.values.values()] + [str(len(group.runs))]
        cells += ["–" if spread is None else spread.text() for spread in spreads]
        lines.append(_row([*cells, "–" if seconds is None else seconds.text(".0f")]))
    if report.failures():
        lines += ["", "Not completed:", ""]
        lines += [f"- `{terminal.short(run.folder)}`: {run.status}: {run.reason}" for run in report.failures()]
    if report.differences:
        lines += ["", _row(["differs", *(terminal.short(run.folder) for run in report.runs)]), _row(["---"] * 3)]
        lines += [_row(list(row)) for row in report.differences]
    lines += ["", *(f"Machine: {machine}." for machine in report.machines)]
    if report.notes:
        lines += ["", *(f"Note: {note}." for note in report.notes)]
    lines += ["", *(f"![{name}](figures/{name}.svg)" for name in figures)]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
