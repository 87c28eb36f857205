"""Pictures of results as PNG files: confusion matrices, galleries, bars."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MOST_CLASSES = 40  # of which each has a name and numbers in a confusion matrix
AS_WRITTEN = rc_context({"text.parse_math": False})  # names are no formulas


def rgb(images: Tensor) -> Tensor:
    """(N, C, H, W) → (N, 3, H, W); of other than three channels, the first."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def pixels(draw: Callable[..., None], *args: Any) -> NDArray[np.uint8]:
    """(H, W, 3): what one of the functions below would write into a file."""
    file = BytesIO()
    draw(*args, file)
    return np.asarray(Image.open(file).convert("RGB"))


@AS_WRITTEN
def confusion(counts: Tensor, classes: Sequence[str], path: Path | BytesIO) -> None:
    """(K, K) counts, a row for each true class and a column for each predicted one."""
    table = counts.numpy()
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    shown, every = min(len(classes), MOST_CLASSES), -(-len(classes) // MOST_CLASSES)
    figure = Figure(figsize=(1.9 + 0.46 * shown, 1.6 + 0.42 * shown), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(0, len(classes), every), classes[::every], rotation=45, ha="right", fontsize=12)
    axes.set_yticks(range(0, len(classes), every), classes[::every], fontsize=12)
    axes.set_xlabel("predicted", fontsize=12)
    axes.set_ylabel("true", fontsize=12)
    for row, column in np.ndindex(*table.shape) if every == 1 else ():
        if table[row, column]:
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(table[row, column]), ha="center", va="center", color=color, fontsize=10)
    figure.savefig(path, dpi=120)


def mistakes(probabilities: Tensor, labels: Tensor, names: Sequence[str], most: int) -> tuple[Tensor, list[str], str]:
    """The indices of the most confident mistakes in (N, K) probabilities, with captions and a title."""
    top, predicted = probabilities.max(1)
    wrong = torch.nonzero(predicted != labels).squeeze(1)
    worst = wrong[top[wrong].argsort(descending=True)][:most]
    captions = [f"{names[int(predicted[n])]} {top[n]:.0%}\nis {names[int(labels[n])]}" for n in worst.tolist()]
    return worst, captions, f"The most confident of {len(wrong)} mistakes"


@AS_WRITTEN
def gallery(images: Tensor, captions: Sequence[str], title: str, path: Path | BytesIO, columns: int = 8) -> None:
    """(N, C, H, W) uint8 images with a caption above each, which is larger where there are few in a row."""
    rows, size = max(1, -(-len(images) // columns)), 7 if columns > 4 else 11
    width, height = 1.7 * columns, 2.05 * rows + 0.4
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, y=1 - 0.1 / height, va="top")
    axes = figure.add_axes((0, 0, 1, 1))  # one for all, in inches: axes of their own would take seconds to lay out
    axes.axis("off")
    for n, (image, caption) in enumerate(zip(rgb(images), captions, strict=True)):
        left, bottom = 1.7 * (n % columns) + 0.1, height - 0.4 - 2.05 * (n // columns + 1)
        axes.imshow(image.permute(1, 2, 0).numpy(), extent=(left, left + 1.5, bottom, bottom + 1.5))
        axes.text(left + 0.75, bottom + 1.55, caption, ha="center", va="bottom", fontsize=size)
    axes.set(xlim=(0, width), ylim=(0, height))
    figure.savefig(path, dpi=120)


@AS_WRITTEN
def bars(labels: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[float | None]]], path: Path) -> None:
    """A panel for each quantity; in it, a group of bars for each label, one bar for each series. None leaves a gap."""
    figure = Figure(figsize=(3.4 * len(panels), 1.6 + 0.42 * len(labels)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, series) in zip(grid, panels.items(), strict=True):
        height = 0.8 / len(series)
        for n, (label, values) in enumerate(series.items()):
            places = [y - 0.4 + (n + 0.5) * height for y in range(len(labels))]
            drawn = axes.barh(places, [value or 0.0 for value in values], height, label=label)
            axes.bar_label(drawn, ["" if value is None else f"{value:.3g}" for value in values], padding=2, fontsize=8)
        axes.set_xlabel(name)
        axes.margins(x=0.22)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(fontsize=8)
    grid[0].set_yticks(range(len(labels)), labels)
    grid[0].invert_yaxis()
    figure.savefig(path, dpi=120)
