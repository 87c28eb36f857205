"""Measures how long commands take to answer, as whole processes.

python -m benchmarks.startup [RUNS]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.compare import hardware, write

COMMANDS = {
    "--help": ["--help"],
    "a wrong key": ["data.rezise=96"],
    "one training step and one test step, saved (an upper bound for the first step)": [
        *("model.ratio=16", "data.resize=32", "data.val_size=0", "trainer.max_steps=1", "trainer.limit_test_batches=1"),
        "trainer=cpu",
    ],
}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows = []
    for name, args in COMMANDS.items():
        times = []
        for _ in range(runs + 1):  # the first run fills the disk's cache
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "vggexp.train", *args], cwd=folder, check=False, capture_output=True
                )
                times.append(time.perf_counter() - start)
        rows.append([name, f"{statistics.median(times[1:]):.1f}", f"{min(times[1:]):.1f}–{max(times[1:]):.1f}"])
    columns = ("python -m vggexp.train …", "seconds, median", "range")
    text = write(Path("outputs") / "benchmark-startup", "startup", columns, rows, [f"{runs} runs. {hardware()}."])
    Console(highlight=False).print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
