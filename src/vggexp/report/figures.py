"""The figures of a report for print, as PNG and SVG."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from vggexp.report.collect import Group, Part
from vggexp.runs import read as runs
from vggexp.runs.metrics import label as label_of
from vggexp.runs.query import number_first

SHOWN = 40  # groups of a comparison
NAMED = 10  # groups that have a color and a name in a figure, the best; the others are gray

STYLE: Any = {"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
STYLE |= {"text.parse_math": False}  # names are no formulas
BESIDE: Any = {"xytext": (4, 0), "textcoords": "offset points", "fontsize": 7}
LEGEND: Any = {"fontsize": 7, "frameon": False, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def draw(part: Part, folder: Path) -> list[str]:
    """Writes each figure for which there are enough runs, as `NAME.png` and `NAME.svg`; returns the names."""
    drawn = []
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are long, or have characters that the font lacks
        figures = {"curves": _curves(part, "epoch"), "time": _curves(part, "train_seconds")}
        figures |= {"heatmap": _heatmap(part), "pareto": _pareto(part), "parallel": _parallel(part)}
        figures |= {"comparison": _comparison(part)}
        for name, figure in figures.items():
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                for kind in ("png", "svg"):
                    figure.savefig(folder / f"{name}.{kind}", dpi=160)
                drawn.append(name)
    return drawn


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
    axes.set_xlabel(title)
    axes.set_ylabel(part.objective)
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
    columns, rows = (sorted({runs.text(g.values[axis]) for g in part.groups}, key=number_first) for axis in both)
    table = np.full((len(rows), len(columns)), np.nan)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            here = [g for g in part.groups if [runs.text(g.values[axis]) for axis in both] == [column, row]]
            if (value := Group({}, [run for g in here for run in g.runs], []).spread(part.objective)) is not None:
                table[y, x] = value.mean
    figure = Figure(figsize=(2.2 + 0.75 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    low, high = np.nanmin(table), np.nanmax(table)
    limits = (low, high) if high > low else (low - 0.01, high + 0.01)  # else one value would span all colors
    image = axes.imshow(table, cmap="cividis", aspect="auto", origin="lower", vmin=limits[0], vmax=limits[1])
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(both[0])
    axes.set_ylabel(both[1])
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


def _parallel(part: Part) -> Figure | None:
    """A line for each group across all axes, colored by the objective."""
    scored = [(group, found.mean) for group in part.groups if (found := group.spread(part.objective)) is not None]
    if len(part.axes) < 2 or len(scored) < 2:
        return None
    scores = np.array([score for _, score in scored])
    low, high = scores.min(), max(scores.max(), scores.min() + 1e-9)
    figure = Figure(figsize=(1.5 + 1.3 * (len(part.axes) + 1), 3.6), layout="constrained")
    axes = figure.subplots()
    shares = (scores - low) / (high - low)
    heights = []
    for x, axis in enumerate(part.axes):
        texts = [runs.text(group.values[axis]) for group, _ in scored]
        levels = sorted(set(texts), key=number_first)
        places = {text: n / max(1, len(levels) - 1) for n, text in enumerate(levels)}
        heights.append([places[text] for text in texts])
        for text in levels if len(levels) <= 12 else [levels[0], levels[-1]]:
            paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
            axes.annotate(text, (x, places[text]), va="center", zorder=5, bbox=paper, **BESIDE)
    for end, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.3f}", (len(part.axes), end), **BESIDE)
    lines = np.array([*heights, shares])
    for n in np.argsort(scores):
        axes.plot(lines[:, n], color=colormaps["cividis"](float(shares[n])), lw=1.2)
    axes.set_xticks(range(len(lines)), [*part.axes, part.objective], rotation=15)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="0.85")
    return figure
