"""Measures how the cost grows with batch size, image size, ratio, depth and threads, one of them varied at a time.

    python -m benchmarks.scaling

trains and evaluates VGG-11 (ratio 4, 96 px, batch 128) and its variations on real images, a few steps each. It writes
a table (CSV, Markdown) and curves (PNG) to outputs/benchmark-scaling.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F

from benchmarks.ceilings import median
from benchmarks.compare import hardware, write
from vggexp.config import compose
from vggexp.config.instantiate import construct, datamodule, network
from vggexp.inspection.cost import estimate
from vggexp.system import memory

BASE = {"model": "vgg11", "model.ratio": 4, "data.resize": 96, "data.batch_size": 128, "threads": os.cpu_count() or 1}
AXES: dict[str, list[Any]] = {
    "data.batch_size": [8, 32, 128, 512],
    "data.resize": [32, 64, 96, 160, 224],
    "model.ratio": [16, 8, 4, 2],
    "model": ["vgg11", "vgg13", "vgg16", "vgg19"],
    "threads": sorted({1, max(1, (os.cpu_count() or 1) // 2), os.cpu_count() or 1}),
}
COLUMNS = (
    "varied",
    "value",
    "precision",
    "training, images/s",
    "GFLOP/s",
    "evaluation, images/s",
    "evaluation ÷ training",
)


def speeds(setting: dict[str, Any], precision: str) -> tuple[float, float, float]:
    """Images per second in training and in evaluation, including the resize, and operations per second in training."""
    torch.set_num_threads(setting["threads"])
    options = [f"{key}={value}" for key, value in setting.items() if key != "threads"]
    cfg = compose.config(*options, "trainer=cpu")
    data = datamodule(cfg)
    net = network(cfg.model.spec(), data.dimensions).to(memory_format=torch.channels_last)
    optimizer = construct(torch.optim.Optimizer, cfg.optimizer.spec(), net.named_parameters())
    data.setup()
    raw, labels = next(iter(data.train_dataloader()))

    def forward() -> torch.Tensor:
        images, _ = data.on_after_batch_transfer((raw, labels), 0)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            return F.cross_entropy(net(images), labels)

    def train() -> None:
        forward().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    training = len(labels) / median(train)
    net.eval()
    with torch.inference_mode():
        evaluation = len(labels) / median(forward)
    layers = estimate(cfg).layers
    return training, evaluation, training * 2 * (3 * sum(layer.macs for layer in layers) - layers[0].macs)


def main() -> None:
    memory.keep_freed()
    folder, console = Path("outputs") / "benchmark-scaling", Console(highlight=False)
    settings = [(axis, value, name) for axis, values in AXES.items() for value in values for name in ("fp32", "bf16")]
    rows, curves = [], {}
    for axis, value, precision in track(settings, "measuring", console=console, transient=True):
        training, evaluation, operations = speeds({**BASE, axis: value}, precision)
        curves.setdefault(axis, {}).setdefault(precision, {})[str(value)] = training
        cells = [f"{training:,.0f}", f"{operations / 1e9:,.0f}", f"{evaluation:,.0f}", f"{evaluation / training:.1f}"]
        rows.append([axis, str(value), precision, *cells])
    note = f"Around VGG-11, ratio 4, 96 px, batch 128. {hardware()}."
    console.print(write(folder, "scaling", COLUMNS, rows, [note]), markup=False, soft_wrap=True)
    draw(curves, folder / "scaling.png")
    console.print(f"tables and picture in {folder}")


def draw(curves: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(curves), 3), layout="constrained")
    for axes, (axis, lines) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for precision, points in lines.items():
            axes.plot(list(points), list(points.values()), marker="o", label=precision)
        axes.set(title=axis, yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("training, images/s")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
