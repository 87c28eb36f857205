"""A report as one HTML file that needs no network: its data, its charting library and its script are inside."""

import json
import math
import os
from datetime import datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from vggexp.report.collect import CURVES, PROGRESS, SEED, Report, command
from vggexp.runs import read as runs
from vggexp.runs.metrics import COMPARED, COSTS, METRICS
from vggexp.system import files, terminal

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""Makes the browser refuse to fetch anything."""


def write(report: Report, path: Path) -> None:
    """Writes the page."""
    parts = {name: Path(__file__).with_name(f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    plotly = resources.files("plotly") / "package_data" / "plotly.min.js"
    data = json.dumps(content(report, path.parent), allow_nan=False, separators=(",", ":"))
    text = Template(parts["html"]).substitute(
        policy=POLICY,
        style=parts["css"],
        plotly=plotly.read_text(encoding="utf-8"),
        data=data.replace("<", "\\u003c"),  # so that no text of a run can end the element that holds it
        script=parts["js"],
    )
    files.write_text(path, text)


def content(report: Report, folder: Path) -> dict[str, Any]:
    """What the page shows, as its script reads it."""
    logged = {name for curve in report.curves for epoch in curve for name in epoch}

    def known(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if any(run.number(name) is not None for run in report.runs)]

    return {
        "title": report.title,
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "objective": report.objective,
        "axes": [*report.axes, *([SEED] if any(SEED in run.config for run in report.runs) else [])],
        "pair": report.pair(),
        "metrics": {name: {"digits": int(m.format[-2]), "higher": m.higher_is_better} for name, m in METRICS.items()},
        "scores": known(COMPARED),
        "costs": known(COSTS),
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
                "values": {key: runs.text(value) for key, value in run.config.items() if key in (*report.axes, SEED)},
                "numbers": {name: _finite(run.number(name)) for name in (*COMPARED, *COSTS)},
                "curve": {
                    name: [_finite(epoch.get(name)) for epoch in curve]
                    for name in (*PROGRESS, *CURVES)
                    if any(name in epoch for epoch in curve)
                },
                "command": command(run),
            }
            for run, curve in zip(report.runs, report.curves, strict=True)
        ],
    }


def _finite(value: float | None) -> float | None:
    """A number that JSON can hold, rounded to six digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
