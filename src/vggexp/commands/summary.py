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

from vggexp.config import compose
from vggexp.config.messages import one_line
from vggexp.config.schema import Config
from vggexp.runs import tables
from vggexp.system import files, hardware, paths, terminal

if TYPE_CHECKING:
    from vggexp.inspection.cost import Measured


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--output", type=Path, default=paths.outputs() / "summary")
    own, rest = parser.parse_known_args(args)
    configs = compose.configs(*rest)

    from vggexp.inspection import cost, networks  # here, so that a mistake is answered before torch is loaded

    names = [f"{tables.network_name(cfg.model.spec())} {cfg.data.size}px" for cfg in configs]
    with files.writing(own.output, f"--output={own.output}"):
        found = []
        for name, cfg in zip(names, configs, strict=True):
            estimate = cost.estimate(cfg)
            measured = _measure(name, cfg, estimate.memory_bytes) if own.measure else None
            found.append(networks.Network(name, cfg, estimate, measured))
        if len(found) == 1:
            networks.show(networks.LAYER, found[0].layers(), left=3)
        more = networks.MEASURED if any(network.measured for network in found) else {}
        networks.show(networks.TOTAL | more, [network.total() for network in found])
        networks.write(found, own.output, own.measure)
    batches = ", ".join(sorted({str(cfg.data.batch_size) for cfg in configs}))
    how = f"MACs of one image forward; activations of a batch of {batches}, layer by layer; training memory with"
    terminal.say(f"{how} the batch in pieces, as a CPU takes it")
    terminal.say(f"tables and picture in {own.output}")
    return 0


def _measure(name: str, cfg: Config, needed: int) -> "Measured | None":
    from vggexp.inspection import cost

    available = hardware.available_memory()
    if cfg.trainer.accelerator == "cpu" and needed > 0.9 * available:
        free = f"{available / 2**30:.1f} GiB are free"
        reason = f"needs {needed / 2**30:.1f} GiB, {free}; set a smaller data.batch_size"
    else:
        try:
            with terminal.console().status(f"measuring {name}"):
                return cost.measure(cfg)
        except (RuntimeError, MemoryError) as error:
            reason = one_line(error)
    terminal.say(f"{name}: not measured: {reason}")
    return None
