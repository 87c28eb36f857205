"""Pictures in folders: more of them than memory may hold, and how fast they come.

    python -m benchmarks.storage [--images 200000] [--folder FOLDER]

Writes that many JPEG files of 64×64 pixels in ten classes, trains on them by `data=folder` in a process whose private
memory is limited to less than the set takes, and compares the speed of batches from the memory map with those from
memory, in alternating rounds; then what preparing a batch of 224×224 pixels in color costs beside a training step.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.compare import hardware
from vggexp.config import compose
from vggexp.config.instantiate import datamodule, network
from vggexp.config.schema import Config
from vggexp.data import DataModule
from vggexp.system import memory

ROUNDS = 5


def write(folder: Path, images: int) -> None:
    """JPEG files, each class of a mean color of its own."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 120, (500, 64, 64, 3), dtype=np.uint8)
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
    for n in range(images):
        shade = np.array([n % 10 * 12, 120 - n % 10 * 12, n * 7 % 120], np.uint8)
        pixels = np.roll(noise[n % 500], n // 500, axis=0) + shade
        Image.fromarray(pixels).save(folder / f"class{n % 10}" / f"{n:07}.jpg", quality=80)


def config(folder: Path, size: int, *more: str) -> Config:
    common = ("data=folder", f"data.root={folder}", f"data.cache_dir={folder.parent / 'cache'}", f"data.resize={size}")
    return compose.config(*common, "model=vgg11", "model.ratio=4", "data.normalize=dataset", *more)


def limited(folder: Path, size: int, limit: int) -> dict[str, float]:
    """Trains on the set in a process that may have so many bytes of private memory; returns what the run says."""

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    run = folder.parent / "run"
    options = [f"data.root={folder}", f"data.cache_dir={folder.parent / 'cache'}", f"data.resize={size}", "data=folder"]
    options += ["model=vgg", "model.blocks=[[1,16],[1,16]]", "model.ratio=1", "model.hidden=0", "inspect=off"]
    options += ["trainer.max_epochs=1", "data.normalize=dataset", "logger=csv", f"hydra.run.dir={run}"]
    subprocess.run([sys.executable, "-m", "vggexp.train", *options], preexec_fn=restrict, check=True)
    found: dict[str, float] = json.loads((run / "result.json").read_text())
    return found


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def epoch(data: DataModule, batches: int) -> Callable[[], None]:
    """Prepares so many shuffled batches."""

    def call() -> None:
        for n, batch in enumerate(data.loader("train")):
            data.on_after_batch_transfer(batch, 0)
            if n + 1 == batches:
                break

    return call


def step(cfg: Config, data: DataModule) -> Callable[[], None]:
    """One training step on a batch that is ready."""
    torch.manual_seed(0)
    net = network(cfg.model.spec(), data.dimensions).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    images, labels = data.on_after_batch_transfer(next(iter(data.loader("train"))), 0)

    def call() -> None:
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    place = args.folder or Path(tempfile.mkdtemp())
    pictures = place / "pictures"
    if not pictures.exists():
        print(f"writing {args.images:,} files: {seconds(lambda: write(pictures, args.images)):.0f} s", file=sys.stderr)
    memory.keep_freed()
    size = args.images * 3 * 64 * 64
    os.environ["VGGEXP_OUTPUTS"] = str(place / "outputs")
    first = seconds(lambda: datamodule(config(pictures, 64)).setup())
    again = seconds(lambda: datamodule(config(pictures, 64)).setup())
    result = limited(pictures, 64, int(size * 0.8))

    mapped, held = datamodule(config(pictures, 64)), datamodule(config(pictures, 64))
    mapped.setup()
    held.setup()
    held.sets["train"].tensors = tuple(tensor.clone() for tensor in held.sets["train"].tensors)
    times: dict[str, list[float]] = {"mapped": [], "held": []}
    for _ in range(ROUNDS):
        for name, data in (("mapped", mapped), ("held", held)):
            times[name].append(seconds(epoch(data, 200)))
    ratios = [a / b for a, b in zip(times["held"], times["mapped"], strict=True)]
    del mapped, held, data

    large = place / "large"
    if not large.exists():
        for label in range(2):
            (large / f"class{label}").mkdir(parents=True)
            for n in range(200):
                noise = np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((400, 300)).save(large / f"class{label}" / f"{n}.jpg")
    cfg = config(large, 224)
    data = datamodule(cfg)
    data.setup()
    train, prepare = step(cfg, data), epoch(data, 1)
    train()
    shares = []
    for _ in range(3):
        preparing = statistics.median(seconds(prepare) for _ in range(5))
        shares.append(preparing / seconds(train))

    speed, peak = f"{result['images_per_second']:.0f} images/s", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"
    share = f"{statistics.median(shares):.1%}"
    rows = [
        f"{hardware()}; {args.images:,} JPEG files of 64×64, {size / 2**30:.2f} GiB of pixels",
        f"decoding them into the memory map: {first:.0f} s; the next start: {again:.1f} s",
        f"trained within {size * 0.8 / 2**30:.2f} GiB of private memory: {speed}, peak memory {peak} with the map",
        f"speed of batches from the map, once its pages are cached, against memory: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {ROUNDS} alternating rounds)",
        f"color at 224 px, VGG-11 ratio 4, fp32, batch 128: preparing a batch takes {share} of a step",
    ]
    print("\n".join(rows))
    if args.folder is None:
        shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
