"""Measures how long the list of 2,000 runs and the report of 1,000 take, from the start of the command to its end.

python -m benchmarks.report
"""

import json
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from vggexp.config import compose
from vggexp.runs import layout, manifest

EPOCHS = 10


def main() -> None:
    cfg = compose.config("trainer=cpu")
    collected = manifest.collect(cfg)
    with tempfile.TemporaryDirectory() as root:
        for n, (resize, lr, seed) in enumerate(product(range(32, 132, 10), range(1, 11), range(20))):
            folder = Path(root) / ("report" if seed < 10 else "more") / str(n)
            (folder / ".hydra").mkdir(parents=True)
            content = json.loads(json.dumps(collected))
            content["config"]["data"]["resize"], content["config"]["optimizer"]["lr"] = resize, lr / 1e4
            content["config"]["seed"] = seed
            score = 0.8 + resize / 1e3 + lr / 1e3 + seed / 1e4
            content |= {"status": "completed", "val/acc": score, "test/acc": score - 0.01, "seconds": resize * 2.0}
            manifest.write(folder, content)
            rows = [f"{e},{e},{2 - e / 10},{0.5 + e / 30},{(e + 1) * resize}\n" for e in range(EPOCHS)]
            (folder / layout.METRICS).write_text("".join(["step,epoch,train/loss,val/acc,train_seconds\n", *rows]))
            (folder / ".hydra" / "overrides.yaml").write_text(f"- data.resize={resize}\n")
        start = seconds("--version")
        print(f"start alone: {start:.1f} s")
        print(f"list of 2,000 runs: {seconds('runs', root):.1f} s")
        made = seconds("report", f"{root}/report", f"output={root}/made")
        size = (Path(root) / "made" / "report.html").stat().st_size
    print(f"report of 1,000 runs of {EPOCHS} epochs: {made:.1f} s, a page of {size / 2**20:.1f} MiB")


def seconds(*args: str) -> float:
    """How long a command takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vggexp", *args], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
