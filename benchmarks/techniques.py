"""Measures what each technique gains: the training step on prepared tensors, as one technique after another is added.

    python -m benchmarks.techniques [--size 96]

All variants run in one process and take turns, so that any drift of the machine affects them equally. The benchmark
prints a table and the operations of the last two variants, and writes both to outputs/benchmark-techniques-SIZE.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.compare import hardware, write
from benchmarks.loops import BATCH, LR, RATIO, chapter_network
from vggexp.models import VGG
from vggexp.models.cpu import maxpool, tuning
from vggexp.models.cpu.fused import Block
from vggexp.models.layers import Dropout
from vggexp.system import memory

TECHNIQUES = (
    "the chapter's step",
    "freed memory is kept",
    "sums without .item()",
    "channels_last",
    "max-pool before ReLU",
    "fused Adam",
    "dropout from uniform numbers",
    "a batch in pieces",
    "max-pool and ReLU in one pass",
    "Winograd's convolutions",
    "bf16",
)
COLUMNS = ("technique, added to those above", "images/s", "× the row before", "× the chapter's step")


def variant(level: int, size: int) -> Callable[[], None]:
    """The training step with the first `level` techniques switched on."""
    on = dict.fromkeys(TECHNIQUES[: level + 1], True).get
    net: nn.Module = chapter_network(size)
    if on("max-pool before ReLU"):
        net = VGG("vgg11", ratio=RATIO, image_size=size)
    for module in list(net.modules()):
        if isinstance(module, Block) and not on("a batch in pieces"):
            module.__class__ = nn.Sequential  # type: ignore[assignment]
        if isinstance(module, Dropout) and not on("dropout from uniform numbers"):
            module.__class__ = nn.Dropout  # type: ignore[assignment]
    if on("channels_last"):
        net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=bool(on("fused Adam")))
    images, labels = torch.rand(BATCH, 1, size, size), torch.randint(0, 10, (BATCH,))
    total: Any = 0.0
    right: Any = 0

    tuning.apply(net, {"fp32 convolutions": {"chosen": "Winograd's" if on("Winograd's convolutions") else "direct"}})
    one_pass = on("max-pool and ReLU in one pass")
    kernel = contextlib.nullcontext() if one_pass else mock.patch.object(maxpool, "has_kernel", return_value=False)

    def step() -> None:
        with kernel:
            _step()

    def _step() -> None:
        nonlocal total, right
        memory.keep_freed() if on("freed memory is kept") else memory.keep_freed(2**17)
        with torch.autocast("cpu", torch.bfloat16) if on("bf16") else contextlib.nullcontext():
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = (logits.detach().argmax(dim=1) == labels).sum()
        if on("sums without .item()"):
            total, right = total + loss.detach(), right + found
        else:
            total, right = total + loss.item(), right + found.item()

    return step


def operations(step: Callable[[], None], count: int = 8) -> list[list[str]]:
    """How the time of a step divides among its operations: name, milliseconds, share."""
    with profile(activities=[ProfilerActivity.CPU]):
        step()  # starting the profiler disturbs the heap
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            step()
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU]
    events.sort(key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        [e.key, f"{e.self_cpu_time_total / 3000:.1f}", f"{e.self_cpu_time_total / whole:.0%}"] for e in events[:count]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=90, help="for all variants together")
    args = parser.parse_args()
    console, folder = Console(highlight=False), Path("outputs") / f"benchmark-techniques-{args.size}"
    steps = [variant(level, args.size) for level in range(len(TECHNIQUES))]
    times: list[list[float]] = [[] for _ in steps]
    end = time.monotonic() + args.seconds
    with console.status("taking turns"):
        while time.monotonic() < end or len(times[0]) < 3:
            for step, found in zip(steps, times, strict=True):
                step()  # the heap is still in the state that another variant left
                start = time.perf_counter()
                step()
                found.append(time.perf_counter() - start)
    rows = []
    for level, name in enumerate(TECHNIQUES):
        ratios = [
            statistics.median(other / own for other, own in zip(times[before], times[level], strict=True))
            for before in (max(0, level - 1), 0)
        ]
        speed = BATCH / statistics.median(times[level])
        rows.append([name, f"{speed:.0f}", *(f"{ratio:.2f}" for ratio in ratios)])
    note = f"VGG-11, ratio 4, {args.size} px, batch 128, {len(times[0])} turns. {hardware()}."
    console.print(write(folder, "techniques", COLUMNS, rows, [note]), markup=False, soft_wrap=True)
    for level in (-2, -1):
        name = "fp32" if level == -2 else "bf16"
        columns = (f"operation, {name}", "ms a step", "share")
        console.print(write(folder, f"profile-{name}", columns, operations(steps[level]), []), markup=False)


if __name__ == "__main__":
    main()
