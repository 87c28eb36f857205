"""A report as one HTML file that needs no network: its data, its charts' library and its script are inside."""

import json
import os
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vggexp.report.collect import COSTS, CURVES, SCORES, SEED, Report
from vggexp.report.paper import PROGRESS, pair
from vggexp.runs import read as runs
from vggexp.system import terminal

HERE = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The browser itself sees to it that nothing is fetched."""


def write(report: Report, path: Path) -> None:
    """Replaces the page in one step."""
    parts = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    data = json.dumps(content(report, path.parent), allow_nan=False, separators=(",", ":"))
    text = Template(parts["html"]).substitute(
        policy=POLICY,
        style=parts["css"],
        plotly=(files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"),
        data=data.replace("<", "\\u003c"),  # so that no text of a run can end the element that holds it
        script=parts["js"],
    )
    files.write_text(path, text)


def content(report: Report, folder: Path) -> dict[str, Any]:
    """What the page shows, as its script reads it.

    Args:
        folder: of the page, from which its links lead to the runs'.
    """
    logged = {name for curve in report.curves for epoch in curve for name in epoch}
    return {
        "title": report.title,
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "objective": report.objective,
        "axes": [*report.axes, *([SEED] if any(SEED in config for config in report.configs) else [])],
        "pair": pair(report),
        "scores": [name for name in SCORES if any(run.number(name) is not None for run in report.runs)],
        "costs": [name for name in COSTS if any(run.number(name) is not None for run in report.runs)],
        "curves": [name for name in CURVES if name in logged],
        "progress": {name: text for name, text in PROGRESS.items() if name in logged},
        "notes": report.notes,
        "differences": report.differences,
        "runs": [
            {
                "name": terminal.short(run.folder),
                "link": os.path.relpath(run.folder.resolve(), folder.resolve()).replace(os.sep, "/"),
                "status": run.status,
                "reason": run.reason,
                "values": {axis: runs.text(config[axis]) for axis in (*report.axes, SEED) if axis in config},
                "numbers": {name: _finite(run.number(name)) for name in (*SCORES, *COSTS)},
                "curve": {
                    name: [_finite(epoch.get(name)) for epoch in curve]
                    for name in (*PROGRESS, *CURVES)
                    if any(name in epoch for epoch in curve)
                },
                "command": command,
            }
            for run, config, curve, command in zip(
                report.runs, report.configs, report.curves, report.commands, strict=True
            )
        ],
    }


def _finite(value: float | None) -> float | None:
    """As JSON can hold it, in six digits."""
    if value is None or value != value or abs(value) == float("inf"):
        return None
    return float(f"{value:.6g}")
