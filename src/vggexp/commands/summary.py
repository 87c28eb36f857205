"""vggexp summary [--measure] [--output FOLDER] [GROUP=CHOICE ...] [KEY=VALUE ...]

Prices a network: of each layer the output's shape, the parameters, the multiply-accumulates (MACs) of one image and
the memory kept for the backward pass of a batch; and the peak memory of a training step.

  vggexp summary model=vgg16 model.ratio=4 data.resize=224
  vggexp summary --measure model=alexnet,vgg11,vgg16 model.ratio=4      several, side by side

  --measure    also runs training steps, each network in a process of its own: time per step and peak memory
  --output     where the tables (CSV) and the picture (PNG) go; default: outputs/summary

The other arguments are those of vggexp.train.
"""

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vggexp.commands import options
from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.runs import tables
from vggexp.system import hardware, terminal

if TYPE_CHECKING:
    from vggexp.inspection.cost import Layer, Measured, Price

LAYER = ("layer", "kind", "output shape", "parameters", "MACs", "activation bytes")
TOTAL = ("network", "resize", "batch size", "parameters", "MACs", "activation bytes", "estimated training bytes")
MEASURED = ("measured training bytes", "measured seconds per step", "images per second")


def main(args: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs/summary"))
    own, rest = parser.parse_known_args(args)
    flags = compose.parse(rest)
    flags.multirun = True  # KEY=A,B is several networks, one after another
    configs, _ = compose.configs(flags)
    with options.output(own.output):
        summarise(configs, own.measure, own.output, terminal.console())
    return 0


def summarise(configs: list[Config], measure: bool, folder: Path, console: Console) -> None:
    """Prints the layers of one network, or the totals of several; writes the layers and the totals of all."""
    from vggexp.inspection import figures
    from vggexp.inspection.cost import price

    names = _names(configs)
    prices = [price(cfg) for cfg in configs]
    if len(configs) == 1:
        _show_layers(prices[0], console)
    measured = [
        _measure(name, cfg, each, console) if measure else None
        for name, cfg, each in zip(names, configs, prices, strict=True)
    ]
    _show_totals(names, configs, prices, measured, console)

    for name, each in zip(names, prices, strict=True):
        _write(folder / f"{name.replace(' ', '-')}.csv", LAYER, [_layer_row(layer) for layer in each.layers])
    rows = []
    for name, cfg, each, found in zip(names, configs, prices, measured, strict=True):
        batch = cfg.data.batch_size
        row = [name, cfg.data.resize, batch, each.parameters, each.macs, each.activation_bytes, each.memory_bytes]
        rows.append(row + ([found.memory_bytes, found.seconds, batch / found.seconds] if found else []))
    _write(folder / "networks.csv", (*TOTAL, *MEASURED) if measure else TOTAL, rows)
    panels: dict[str, dict[str, list[float | None]]] = {
        "parameters (millions)": {"": [each.parameters / 1e6 for each in prices]},
        "forward GMACs per image": {"": [each.macs / 1e9 for each in prices]},
        "training memory (GiB)": {"estimated": [each.memory_bytes / 2**30 for each in prices]},
    }
    if measure:
        panels["training memory (GiB)"]["measured"] = [m.memory_bytes / 2**30 if m else None for m in measured]
        panels["seconds per training step"] = {"": [m.seconds if m else None for m in measured]}
    figures.bars(names, panels, folder / "networks.png")
    console.print(f"tables and picture in {folder}", soft_wrap=True)


def _measure(name: str, cfg: Config, estimate: "Price", console: Console) -> "Measured | None":
    from vggexp.inspection.cost import measure

    available = hardware.available_memory()
    if cfg.trainer.accelerator == "cpu" and available is not None and estimate.memory_bytes > 0.9 * available:
        reason = f"needs {_gib(estimate.memory_bytes)}, {_gib(available)} are free; set a smaller data.batch_size"
    else:
        try:
            with console.status(f"measuring {name}"):
                return measure(cfg)
        except RuntimeError as error:
            reason = str(error)
    console.print(f"{name}: not measured: {reason}", soft_wrap=True, markup=False)
    return None


def _show_layers(price: "Price", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("layer", "kind", "output shape", "parameters", "MACs", "activations"):
        table.add_column(
            column, justify="left" if column in ("layer", "kind", "output shape") else "right", no_wrap=True
        )
    for layer in price.layers:
        name, kind, shape, parameters, macs, activations = _layer_row(layer)
        table.add_row(name, kind, shape, f"{parameters:,}", _millions(macs), _mib(activations))
    console.print(table)


def _show_totals(
    names: list[str],
    configs: list[Config],
    prices: list["Price"],
    measured: list["Measured | None"],
    console: Console,
) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ["network", "parameters", "MACs", "activations", "training memory"]
    if any(measured):
        columns += ["measured", "s per step", "images/s"]
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    for name, cfg, price, found in zip(names, configs, prices, measured, strict=True):
        counts = [_millions(price.parameters), _millions(price.macs)]
        row = [name, *counts, _mib(price.activation_bytes), _mib(price.memory_bytes)]
        if found:
            row += [_mib(found.memory_bytes), f"{found.seconds:.3f}", f"{cfg.data.batch_size / found.seconds:,.0f}"]
        table.add_row(*row)
    console.print(table)
    batches = ", ".join(sorted({str(cfg.data.batch_size) for cfg in configs}))
    console.print(
        f"MACs of one image forward; activations of a batch of {batches}, layer by layer; training memory with "
        "the batch in pieces, as a CPU takes it",
        soft_wrap=True,
    )


def _names(configs: list[Config]) -> list[str]:
    """What tells the networks apart, in file names too."""
    return [f"{tables.network_name(cfg.model.spec())} {cfg.data.resize}px" for cfg in configs]


def _layer_row(layer: "Layer") -> list[Any]:
    shape = "×".join(map(str, layer.shape))
    return [layer.name, layer.kind, shape, layer.parameters, layer.macs, layer.activation_bytes]


def _write(path: Path, header: tuple[str, ...], rows: list[list[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
