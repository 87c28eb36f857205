"""A report as one HTML file that needs no network: its data, its charting library and its script are inside."""

import json
import math
import os
from datetime import datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from vggexp.report.collect import CURVES, DIFFERENCES, PROGRESS, SEED, Group, Part, Report
from vggexp.report.notes import command
from vggexp.runs import metrics, query
from vggexp.runs import read as runs
from vggexp.runs.metrics import COMPARED, COSTS, METRICS
from vggexp.system import files, terminal
from vggexp.system.text import everywhere

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""Makes the browser refuse to fetch anything."""


def write(report: Report, path: Path) -> None:
    """Writes the page."""
    parts = {name: Path(__file__).with_name(f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    plotly = resources.files("plotly") / "package_data" / "plotly.min.js"
    data = json.dumps(everywhere(content(report, path.parent)), allow_nan=False, separators=(",", ":"))
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
    return {
        "title": report.title,
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "metrics": {
            name: {
                "digits": int(m.format[-2]),
                "higher": m.higher_is_better,
                "label": metrics.label(name),
                "unit": m.unit,
            }
            for name, m in METRICS.items()
        },
        "machines": report.machines,
        "notes": report.notes,
        "differences": report.differences,
        "parts": [_part(part, folder) for part in report.parts],
        "failures": [[terminal.short(run.folder), f"{run.status}: {run.reason}"] for run in report.failures()],
    }


def _part(part: Part, folder: Path) -> dict[str, Any]:
    logged = {name for curve in part.curves for epoch in curve for name in epoch}
    curves, progress = ([name for name in names if name in logged] for names in (CURVES, PROGRESS))
    best = part.best()
    numbers = {run.folder: n for n, group in enumerate(part.groups) for run in group.runs}

    def known(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if any(run.number(name) is not None for run in part.runs)]

    return {
        "title": part.title,
        "objective": part.objective,
        "axes": [*part.axes, *([SEED] if any(SEED in run.config for run in part.runs) else [])],
        "pair": part.pair(),
        "scores": known(COMPARED),
        "costs": known(COSTS),
        "curves": curves,
        "progress": progress,
        "best": next((n for n, run in enumerate(part.runs) if run is best), None),
        "groups": [
            {
                "label": group.label(),
                "seeds": group.seeds(),
                "cells": {name: _cell(group, name) for name in known((*COMPARED, *COSTS))},
                "bands": {
                    f"{x} {y}": [[_finite(number) for number in point] for point in group.band(x, y)]
                    for x in progress
                    for y in curves
                    if len(group.runs) > 1
                },
            }
            for group in part.groups
        ],
        "comparisons": [
            {
                "metric": comparison.metric,
                "reference": comparison.reference.label(),
                "header": DIFFERENCES,
                "texts": comparison.texts(),
                "differences": [[*map(_finite, (found.mean, *(found.interval or ())))] for _, found in comparison.rows],
            }
            for comparison in part.comparisons
        ],
        "runs": [
            {
                "name": terminal.short(run.folder),
                "link": _link(run.folder.resolve(), folder.resolve()),
                "status": run.status,
                "reason": run.reason,
                "values": {key: runs.text(query.value(run, key)) for key in (*part.axes, SEED)},
                "numbers": {name: _finite(run.number(name)) for name in (*COMPARED, *COSTS)},
                "curve": {
                    name: [_finite(epoch.get(name)) for epoch in curve]
                    for name in (*PROGRESS, *CURVES)
                    if any(name in epoch for epoch in curve)
                },
                "command": command(run),
                "group": numbers[run.folder],
            }
            for run, curve in zip(part.runs, part.curves, strict=True)
        ],
    }


def _cell(group: Group, name: str) -> list[Any]:
    found = group.spread(name)
    return [None if found is None else _finite(found.mean), group.text(name)]


def _link(target: Path, folder: Path) -> str:
    """Where a page in a folder finds another folder."""
    try:
        return os.path.relpath(target, folder).replace(os.sep, "/")
    except ValueError:  # on another of Windows' drives
        return target.as_uri()


def _finite(value: float | None) -> float | None:
    """A number that JSON can hold, rounded to six digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
