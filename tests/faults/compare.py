"""Compares two runs at zero tolerance: weights, optimizer, schedule, counters, every logged number."""

import csv
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vggexp.runs import manifest
from vggexp.runs.metrics import SCORES

TIMES = {"images_per_second", "train_seconds", "seconds", "Throughput", "Timer", "memory_gib"}
"""Values that are measured, which differ from run to run."""


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be equal, by name."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    del last["config"]
    best = folder / "checkpoints" / "best.ckpt"
    result = manifest.load(folder, "")
    events = EventAccumulator(str(folder)).Reload()
    with open(folder / "metrics.csv") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES and v} for row in csv.DictReader(file)]
    return {
        "last.ckpt": last,
        "best.ckpt": torch.load(best, weights_only=True)["state_dict"] if best.exists() else None,
        "metrics.csv": rows,
        "TensorBoard": {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
            if tag.partition("/")[0] not in TIMES
        },
        "result.json": {k: result[k] for k in ("status", "epochs", "best_epoch", "steps", *SCORES) if k in result},
    }


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """The paths at which two trees differ; an empty list if they are equal to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
        return [] if same else [f"{place}: {(one.double() - other.double()).abs().max()} apart"]
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{place}: keys {sorted(map(str, one.keys() ^ other.keys()))}"] if one.keys() != other.keys() else []
        for key in one.keys() & other.keys() - TIMES:
            found += differences(one[key], other[key], f"{place}/{key}")
        return found
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            text for n, pair in enumerate(zip(one, other, strict=True)) for text in differences(*pair, f"{place}/{n}")
        ]
    return [] if one == other and type(one) is type(other) else [f"{place}: {one!r} and {other!r}"]
