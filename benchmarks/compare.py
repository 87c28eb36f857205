"""Compares whole training epochs of our loop and of others, in alternating rounds on the same machine.

    python -m benchmarks.compare                    96 px, about 15 minutes     (make benchmark)
    python -m benchmarks.compare --size 224         224 px, about 20 minutes    (make benchmark-full)

Every loop runs in a fresh process on the real Fashion-MNIST, and its second epoch is measured. Each number is the
median over the rounds; a ratio is shown with its smallest and largest value. Tables (CSV, Markdown) and a picture (PNG)
go to outputs/benchmark-SIZE.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from vggexp.system.hardware import cpu_name

RUNS = (
    *(("chapter", "fp32"), ("torchvision", "fp32"), ("lightning", "fp32")),
    *(("bare", "fp32"), ("ours", "fp32"), ("bare", "bf16"), ("ours", "bf16")),
)
IMAGES = {96: (3840, 11520, 34560), 224: (640, 3840, 11520)}
"""Images per epoch, by image size: for the slow loops, for ours and the bare loop in fp32, and for these two in bf16.
In a short epoch, what happens once per epoch, such as saving a checkpoint, would weigh too much."""
COLUMNS = (
    "loop",
    "precision",
    "images/s",
    "× chapter",
    "× chapter, rounds",
    "share of the ceiling",
    "peak memory, GiB",
)


def measure(module: str, *args: str) -> dict[str, float]:
    """Runs `python -m benchmarks.MODULE`; returns the JSON in its last line."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[1:])}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def operations(size: int, ratio: int = 4) -> float:
    """The operations of training on one image, forward and backward; the first layer's input needs no gradient."""
    from vggexp.config import compose
    from vggexp.inspection.cost import estimate

    options = ["model=vgg11", f"model.ratio={ratio}", f"data.resize={size}", "data.batch_size=1", "trainer=cpu"]
    cfg = compose.config(*options)
    layers = estimate(cfg).layers
    return 2.0 * (3 * sum(layer.macs for layer in layers) - layers[0].macs)


def hardware() -> str:
    """The machine in words: device, CPU and the version of torch; then the revision of this code."""
    import torch

    device = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return f"{device}{os.cpu_count()} cores of {cpu_name()}, torch {torch.__version__}; revision {revision}"


def table(
    rounds: list[dict[tuple[str, str], dict[str, float]]], ceilings: dict[str, float], size: int
) -> list[list[str]]:
    """One row per loop, as text."""
    work, rows = operations(size), []
    base = [each["chapter", "fp32"]["images_per_second"] for each in rounds]
    for loop, precision in rounds[0]:
        speeds = [each[loop, precision]["images_per_second"] for each in rounds]
        ratios = sorted(speed / other for speed, other in zip(speeds, base, strict=True))
        speed = statistics.median(speeds)
        peak = statistics.median(each[loop, precision]["peak_memory_bytes"] for each in rounds)
        rows.append(
            [
                *(
                    loop,
                    precision,
                    f"{speed:.1f}",
                    f"{statistics.median(ratios):.2f}",
                    f"{ratios[0]:.2f}–{ratios[-1]:.2f}",
                ),
                *(f"{speed * work / ceilings[precision]:.0%}", f"{peak / 2**30:.2f}"),
            ]
        )
    return rows


def write(folder: Path, title: str, columns: tuple[str, ...], rows: list[list[str]], notes: list[str]) -> str:
    """Writes a table as CSV and Markdown; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{title}.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    text = "\n".join([*lines, "", *notes]) + "\n"
    (folder / f"{title}.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=IMAGES, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fp32", action="store_true", help="leaves out bf16, which is slow on a CPU that lacks it")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    folder, console = args.output or Path("outputs") / f"benchmark-{args.size}", Console(highlight=False)

    rounds: list[dict[tuple[str, str], dict[str, float]]] = []
    ceilings: list[dict[str, float]] = []
    with console.status("") as status:
        for number in range(1, args.rounds + 1):
            status.update(f"round {number} of {args.rounds}: ceilings")
            ceilings.append(measure("ceilings"))
            found: dict[tuple[str, str], dict[str, float]] = {}
            for loop, precision in RUNS:
                if args.fp32 and precision != "fp32":
                    continue
                status.update(f"round {number} of {args.rounds}: {loop}, {precision}")
                pace = (loop in ("bare", "ours")) + (precision == "bf16")  # slow, fast, fastest
                size, images = str(args.size), str(IMAGES[args.size][pace])
                found[loop, precision] = measure(
                    "loops", loop, "--size", size, "--precision", precision, "--images", images
                )
            rounds.append(found)
    best = {name: statistics.median(each[name] for each in ceilings) for name in ceilings[0]}
    rows = table(rounds, best, args.size)
    notes = [
        f"VGG-11, ratio 4, {args.size} px, batch 128, {args.rounds} rounds. {hardware()}.",
        f"Ceilings: 3×3 convolution {best['fp32'] / 1e9:.0f} GFLOP/s fp32, {best['bf16'] / 1e9:.0f} bf16; "
        f"copy {best['copy'] / 1e9:.0f} GB/s. Training takes {operations(args.size) / 1e9:.3f} GFLOP per image.",
        *(overhead(rounds, precision) for loop, precision in rounds[0] if loop == "bare"),
    ]
    console.print(write(folder, "loops", COLUMNS, rows, notes), markup=False, soft_wrap=True)
    bars(folder / "loops.png", rows, f"{args.size} px, images/s")
    console.print(f"tables and picture in {folder}")


def overhead(rounds: list[dict[tuple[str, str], dict[str, float]]], precision: str) -> str:
    """One line about what Lightning adds to the bare loop's time."""
    added = [
        each["bare", precision]["images_per_second"] / each["ours", precision]["images_per_second"] - 1
        for each in rounds
    ]
    return (
        f"Lightning's share, {precision}: {statistics.median(added):+.1%} of the bare loop's time (rounds: "
        + ", ".join(f"{value:+.1%}" for value in added)
        + ")."
    )


def bars(path: Path, rows: list[list[str]], title: str) -> None:
    from vggexp.inspection import figures

    values: dict[str, dict[str, list[float | None]]] = {title: {"": [float(row[2]) for row in rows]}}
    figures.bars([f"{row[0]} {row[1]}" for row in rows], values, path)


if __name__ == "__main__":
    main()
