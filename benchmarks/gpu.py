"""Measures whole epochs on one GPU, after checking that the resize gives the same bits there; prints the table last.

    python -m benchmarks.gpu        (make benchmark-gpu)

Ours is the whole `vggexp train` over all 60,000 images, by precision and `trainer.compile`; its second epoch is
measured. The chapter's loop is measured at 224 px over fewer images. Tables go to outputs/benchmark-gpu.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import loops
from benchmarks.compare import hardware, write
from vggexp.data.resize import resize

EPOCH = 60_000
NETWORKS = {
    "VGG-11, ratio 4, 224 px": (224, []),
    "VGG-11, ratio 4, 96 px": (96, []),
    "VGG-16, ratio 1, 224 px": (224, ["model=vgg16", "model.ratio=1"]),
}
COMPILE = ("null", "default", "reduce-overhead")
COLUMNS = ("network", "loop", "precision", "compile", "images/s", "s an epoch", "× chapter")


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmark-gpu: no GPU is here; make benchmark measures the CPU", file=sys.stderr)
        return 2
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    for size in (28, 33, 96, 224, 299):
        if not torch.equal(resize(images.cuda(), size).cpu(), resize(images, size)):
            print(f"benchmark-gpu: the resize to {size} px has other bits on the GPU", file=sys.stderr)
            return 1
    chapter = loops.chapter(224, "fp32", 6400)
    chapter()
    base = 6400 / loops.seconds(chapter)
    rows = [[next(iter(NETWORKS)), "chapter", "fp32", "null", f"{base:,.0f}", f"{EPOCH / base:.2f}", "1"]]
    for network, (size, options) in NETWORKS.items():
        for precision in ("fp32", "bf16"):
            for mode in COMPILE:
                speed, _ = loops.ours(size, precision, EPOCH, "trainer=gpu", f"trainer.compile={mode}", *options)
                ratio = f"{speed / base:.1f}" if network == rows[0][0] else ""
                rows.append([network, "ours", precision, mode, f"{speed:,.0f}", f"{EPOCH / speed:.2f}", ratio])
                print(*rows[-1], sep="  ", flush=True)
    notes = [f"{hardware()}. The resize's bits are the CPU's."]
    text = write(Path("outputs") / "benchmark-gpu", "gpu", COLUMNS, rows, notes)
    Console(highlight=False).print(text, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
