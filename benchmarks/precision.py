"""Is `trainer.precision=auto` as fast as the better of fp32 and bf16? Training steps of the networks of conf/model.

    python -m benchmarks.precision [--steps 3] [--batch 32]

Both precisions take turns, step by step, each network at 32, 96 and 224 px (ratio 4, random images). The table shows
how many times as long a step takes in the precision that `auto` means as in the faster one; none should exceed 1.05.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn import functional as F

from benchmarks.compare import hardware, write
from benchmarks.loops import precision
from vggexp.config import choices, compose
from vggexp.config.instantiate import construct, datamodule, network
from vggexp.errors import UserError
from vggexp.models.cpu import tuning
from vggexp.system import memory, paths

COLUMNS = ("network", "pixels", "fp32, ms", "bf16, ms", "auto means", "its time ÷ the better one's")
NAMES = {"32-true": "fp32", "bf16-mixed": "bf16"}


def times(name: str, size: int, batch: int, steps: int) -> tuple[dict[str, float], str]:
    """The shortest seconds of a step by precision, and the precision that `auto` means."""
    cfg = compose.config(
        f"model={name}", "model.ratio=4", f"data.resize={size}", f"data.batch_size={batch}", "trainer=cpu"
    )
    exact, _ = choices.resolved(cfg)
    best = dict.fromkeys(NAMES, float("inf"))
    parts: dict[str, Any] = {}
    for each in NAMES:
        own = cfg.model_copy(update={"trainer": cfg.trainer.model_copy(update={"precision": each})})
        data = datamodule(own)
        net = network(own.model.spec(), data.dimensions).to(memory_format=torch.channels_last)
        tuning.apply(net, choices.resolved(own)[1])
        parts[each] = net, construct(torch.optim.Optimizer, own.optimizer.spec(), net.named_parameters())
    images, labels = (
        torch.rand(batch, data.dimensions["in_channels"], size, size),
        torch.zeros(batch, dtype=torch.int64),
    )
    for _ in range(steps + 1):
        for each, (net, optimizer) in parts.items():
            start = time.perf_counter()
            with precision(NAMES[each]):
                loss = F.cross_entropy(net(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            best[each] = min(best[each], time.perf_counter() - start)
    return best, exact.trainer.precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    memory.keep_freed()
    rows, console = [], Console(highlight=False)
    for name in sorted(path.stem for path in (paths.CONF / "model").glob("*.yaml") if path.stem != "vgg"):
        for size in (32, 96, 224):
            try:
                best, meant = times(name, size, args.batch, args.steps)
            except UserError as error:
                console.print(f"{name}, {size} px: left out: {error}", markup=False)
                continue
            milliseconds = [f"{1000 * best[each]:.0f}" for each in NAMES]
            rows.append([name, str(size), *milliseconds, NAMES[meant], f"{best[meant] / min(best.values()):.2f}"])
    note = f"Ratio 4, batch {args.batch}, the shortest of {args.steps + 1} steps. {hardware()}."
    console.print(write(Path("outputs") / "benchmark-precision", "precision", COLUMNS, rows, [note]), markup=False)


if __name__ == "__main__":
    main()
