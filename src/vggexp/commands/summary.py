"""vggexp summary [--measure] [--output FOLDER] [GROUP=CHOICE ...] [KEY=VALUE ...]

Shows what a network costs: of each layer the output's shape, the parameters, the multiply-accumulates (MACs) of one
image and the memory kept for the backward pass of a batch; and the peak memory of a training step.

  vggexp summary model=vgg16 model.ratio=4 data.resize=224
  vggexp summary --measure model=alexnet,vgg11,vgg16 model.ratio=4      several, side by side

  --measure    also runs training steps, each network in a process of its own: time per step and peak memory
  --output     where the tables (CSV) and the picture (PNG) go; default: outputs/summary

The other arguments are those of vggexp train.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp.commands import options
from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.runs import tables
from vggexp.system import hardware, paths, terminal

if TYPE_CHECKING:
    from vggexp.inspection.cost import Cost, Measured
    from vggexp.inspection.networks import Network


def main(args: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--output", type=Path, default=paths.outputs() / "summary")
    own, rest = parser.parse_known_args(args)
    configs = compose.configs(*rest)

    from vggexp.inspection import cost, networks  # here, so that a mistake is answered before torch is loaded

    names = [f"{tables.network_name(cfg.model.spec())} {cfg.data.resize}px" for cfg in configs]
    with options.output(own.output):
        costs = [cost.estimate(cfg) for cfg in configs]
        if len(configs) == 1:
            layers = map(networks.layer_row, costs[0].layers)
            rows = [
                [*texts, f"{parameters:,}", _millions(macs), _mib(size)] for *texts, parameters, macs, size in layers
            ]
            header = ("layer", "kind", "output shape", "parameters", "MACs", "activations")
            terminal.console().print(terminal.table(header, rows, left=3))
        found = [
            networks.Network(name, cfg, estimate, _measure(name, cfg, estimate) if own.measure else None)
            for name, cfg, estimate in zip(names, configs, costs, strict=True)
        ]
        _show_totals(found)
        networks.write(found, own.output, own.measure)
    terminal.say(f"tables and picture in {own.output}")
    return 0


def _measure(name: str, cfg: Config, estimate: "Cost") -> "Measured | None":
    from vggexp.inspection import cost

    available = hardware.available_memory()
    if cfg.trainer.accelerator == "cpu" and available is not None and estimate.memory_bytes > 0.9 * available:
        needed, free = (f"{count / 2**30:.1f} GiB" for count in (estimate.memory_bytes, available))
        reason = f"needs {needed}, {free} are free; set a smaller data.batch_size"
    else:
        try:
            with terminal.console().status(f"measuring {name}"):
                return cost.measure(cfg)
        except RuntimeError as error:
            reason = str(error)
    terminal.say(f"{name}: not measured: {reason}")
    return None


def _show_totals(networks: "list[Network]") -> None:
    rows = []
    for network in networks:
        cost, measured = network.cost, network.measured
        counts, sizes = (cost.parameters, cost.macs), (cost.activation_bytes, cost.memory_bytes)
        row = [network.name, *map(_millions, counts), *map(_mib, sizes)]
        if measured:
            row += [_mib(measured.memory_bytes), f"{measured.seconds:.3f}", f"{network.images_per_second:,.0f}"]
        rows.append(row)
    header = ["network", "parameters", "MACs", "activations", "training memory"]
    if any(network.measured for network in networks):
        header += ["measured", "s per step", "images/s"]
    terminal.console().print(terminal.table(header, rows))
    batches = ", ".join(sorted({str(network.cfg.data.batch_size) for network in networks}))
    terminal.say(
        f"MACs of one image forward; activations of a batch of {batches}, layer by layer; training memory with "
        "the batch in pieces, as a CPU takes it"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
