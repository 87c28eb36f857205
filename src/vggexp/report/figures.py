"""The figures of a report for print, as PNG and SVG."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import figure as base
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator

from vggexp.errors import UserError
from vggexp.report.collect import Curve, Group, Part
from vggexp.runs import read as runs
from vggexp.runs.metrics import SCORES
from vggexp.runs.metrics import label as label_of
from vggexp.runs.query import number_first
from vggexp.runs.read import Run

SHOWN = 40  # groups of a comparison
NAMED = 10  # groups that have a color and a name in a figure, the best; the others are gray

STYLE: Any = {"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
STYLE |= {"text.parse_math": False}  # names are no formulas
LEGEND: Any = {"fontsize": 7, "frameon": False, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


class Figure(base.Figure):
    """A figure that a notebook shows."""

    def _repr_png_(self) -> bytes:
        self.savefig(file := io.BytesIO(), dpi=80)
        return file.getvalue()


def drawn(part: Part) -> dict[str, Figure]:
    """Each figure for which there are enough runs, by name."""
    with rc_context(STYLE):
        figures = {"curves": _curves(part, "epoch"), "time": _curves(part, "train_seconds")}
        figures |= {"heatmap": _heatmap(part), "pareto": _pareto(part), "comparison": _comparison(part)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def draw(part: Part, folder: Path) -> list[str]:
    """Writes the figures as `NAME.png` and `NAME.svg`; returns the names."""
    figures = drawn(part)
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are long, or have characters that the font lacks
        for name, figure in figures.items():
            folder.mkdir(parents=True, exist_ok=True)
            for kind in ("png", "svg"):
                figure.savefig(folder / f"{name}.{kind}", dpi=160)
    return list(figures)


def curves_of_run(epochs: Curve, names: Sequence[str] = ()) -> Figure:
    """What a run logged at the end of each epoch, by default losses and accuracies; a panel for each kind of score."""
    logged = [name for name in names or SCORES if any(name in epoch for epoch in epochs)]
    if unknown := [name for name in names if name not in logged]:
        known = ", ".join(sorted({name for epoch in epochs for name in epoch}))
        raise UserError(f"{unknown[0]}: was not logged; there are {known}")
    kinds = list(dict.fromkeys(name.rpartition("/")[2] for name in logged))
    with rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 4.2 * max(1, len(kinds)), 3.4), layout="constrained")
        for axes, kind in zip(figure.subplots(1, max(1, len(kinds)), squeeze=False)[0], kinds, strict=False):
            for name in [name for name in logged if name.rpartition("/")[2] == kind]:
                points = [(epoch["epoch"], epoch[name]) for epoch in epochs if name in epoch]
                axes.plot(*np.array(points).T, marker="o" if len(points) == 1 else None, label=name)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize=7, frameon=False)
    return figure


def _curves(part: Part, against: str) -> Figure | None:
    """The objective against epochs or the time trained so far; a band of one standard deviation over seeds."""
    figure, axes = _scores_against(part, label_of(against), logarithmic=against != "epoch")
    for n, group in reversed(list(enumerate(part.groups))):
        if not (points := group.band(against, part.objective)):
            continue
        progress, mean, deviation = np.array(points).T
        color, text, width = (f"C{n}", group.label(), 1.5) if n < NAMED else ("0.8", None, 0.6)
        axes.plot(progress, mean, color=color, marker="o" if len(points) == 1 else None, lw=width, label=text)
        if n < NAMED and deviation.any():
            axes.fill_between(progress, mean - deviation, mean + deviation, color=color, alpha=0.15, lw=0)
    if not axes.lines:
        return None
    axes.legend(*(each[::-1] for each in axes.get_legend_handles_labels()), **LEGEND)
    return figure


def _scores_against(part: Part, title: str, *, logarithmic: bool) -> tuple[Figure, Axes]:
    """An empty figure of the objective against whole numbers or, on a logarithmic axis, plain ones."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=title, ylabel=part.objective)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter())
        axes.tick_params(axis="x", which="both", length=3, pad=3)  # labels on one line
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _heatmap(part: Part) -> Figure | None:
    """The mean objective over two axes."""
    if (both := part.pair()) is None or part.best() is None:
        return None
    cells: dict[tuple[str, ...], list[Run]] = {}
    for group in part.groups:
        cells.setdefault(tuple(runs.text(group.values[axis]) for axis in both), []).extend(group.runs)
    columns, rows = (sorted(set(texts), key=number_first) for texts in zip(*cells, strict=True))
    table = np.full((len(rows), len(columns)), np.nan)
    for (column, row), here in cells.items():
        if (value := Group({}, here, []).spread(part.objective)) is not None:
            table[rows.index(row), columns.index(column)] = value.mean
    figure = Figure(figsize=(2.2 + 0.75 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    low, high = np.nanmin(table), np.nanmax(table)
    limits = (low, high) if high > low else (low - 0.01, high + 0.01)  # else one value would span all colors
    image = axes.imshow(table, cmap="cividis", aspect="auto", origin="lower", vmin=limits[0], vmax=limits[1])
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=both[0], ylabel=both[1])
    middle = (low + high) / 2
    for y, x in np.argwhere(np.isfinite(table)):
        color = "black" if table[y, x] > middle else "white"
        axes.text(x, y, f"{table[y, x]:.3f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label=f"mean {part.objective}")
    return figure


def _pareto(part: Part) -> Figure | None:
    """The objective against training time, and the front of the groups that no other group beats in both."""
    found = [(group.spread("seconds"), group.spread(part.objective), n) for n, group in enumerate(part.groups)]
    points = [(s.mean, o.mean, n) for s, o, n in found if s is not None and o is not None]
    if len(points) < 2:
        return None
    figure, axes = _scores_against(part, label_of("seconds"), logarithmic=True)
    for seconds, score, n in points:
        color, text = (f"C{n}", part.groups[n].label()) if n < NAMED else ("0.8", None)
        axes.plot(seconds, score, "o", color=color, label=text)
    front = pareto([(seconds, score) for seconds, score, _ in points])
    axes.plot(*np.array(front).T, color="0.4", lw=1, drawstyle="steps-post", zorder=0)
    axes.legend(**LEGEND)
    return figure


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, score) pairs that cost less than all others with as high a score, by cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _comparison(part: Part) -> Figure | None:
    """The differences from the best group, or from the baseline that was named, with their intervals."""
    if not part.comparisons:
        return None
    found = part.comparisons[-1]
    rows = [(group.label(), difference) for group, difference in found.rows[:SHOWN]]
    figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", lw=1)
    for y, (_, difference) in enumerate(reversed(rows)):
        color = "C0" if difference.separated else "0.6"
        axes.plot(difference.mean, y, "o", color=color)
        if difference.interval is not None:
            axes.plot(difference.interval, [y, y], color=color)
    axes.set_yticks(range(len(rows)), [text for text, _ in reversed(rows)])
    axes.set_xlabel(f"{found.metric} above {found.reference.label()}")
    return figure
