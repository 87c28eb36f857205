"""Trains the speedrun with one seed after another, each a whole command, and says whether a mark is met.

python -m benchmarks.record [--seeds 5] [--accuracy 0.94] [--seconds 120] [--folder outputs/record] [KEY=VALUE ...]

Seconds are those of the whole command, from the start of its process until it has ended, and so after result.json. The
seeds are the first ones, none left out; those that the folder has already, by the same command and the same code, are
not trained again. As seconds depend on the machine, the chapter's loop is measured on it, too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from scipy import stats

from benchmarks.compare import hardware, measure, write

COLUMNS = ("seed", "test accuracy", "seconds")
CHAPTER = ("loops", "chapter", "--size", "96", "--precision", "fp32", "--images", "5120")
EPOCH = 60_000  # images of an epoch


class Attempt(NamedTuple):
    accuracy: float
    seconds: float


def attempt(seed: int, args: Sequence[str], folder: Path) -> Attempt:
    """Trains one seed, unless the folder has it.

    Raises:
        SystemExit: the run has failed, which has printed why.
    """
    command = ["vggexp.train", "experiment=speedrun", *args, f"seed={seed}"]
    run, stored = folder / f"{seed}-{time.time_ns()}", folder / f"{seed}.json"
    about = {"command": command, "machine": hardware()}
    known = not about["machine"].endswith(("dirty", "unknown"))  # which code it is
    if known and stored.exists() and (found := json.loads(stored.read_text("utf-8"))).pop("about") == about:
        return Attempt(**found)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command, f"hydra.run.dir={run}"], check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"record: seed {seed} has ended with code {done.returncode}, see above")
    made = Attempt(json.loads((run / "result.json").read_text("utf-8"))["test/acc"], seconds)
    stored.write_text(json.dumps({**made._asdict(), "about": about}), "utf-8")
    return made


def verdict(found: Sequence[Attempt], accuracy: float, seconds: float) -> list[str]:
    """The mean accuracy with its 95 % interval over seeds, the mean seconds, and whether they meet the mark."""
    scores = [each.accuracy for each in found]
    mean, took = statistics.fmean(scores), statistics.fmean(each.seconds for each in found)
    interval = "a single seed has no interval"
    if len(scores) > 1:
        half = float(stats.t.ppf(0.975, len(scores) - 1)) * statistics.stdev(scores) / len(scores) ** 0.5
        interval = f"95 % interval {mean - half:.4f} to {mean + half:.4f}"
    met = [mean >= accuracy, took <= seconds]
    words = ["met" if good else "missed" for good in (*met, all(met))]
    return [
        f"{len(found)} seeds: test accuracy {mean:.4f} ({interval}), {took:.0f} s for the whole command.",
        f"Mark: a mean of {accuracy:.4f} in {seconds:g} s. Accuracy {words[0]}, time {words[1]}: it is {words[2]}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--accuracy", type=float, default=0.94)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--folder", type=Path, default=Path("outputs") / "record")
    args, more = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found = [attempt(seed, more, args.folder) for seed in range(args.seeds)]
    rows = [[str(seed), f"{each.accuracy:.4f}", f"{each.seconds:.0f}"] for seed, each in enumerate(found)]
    epoch = EPOCH / measure(*CHAPTER)["images_per_second"]
    ratio = statistics.fmean(each.seconds for each in found) / epoch
    notes = [
        *verdict(found, args.accuracy, args.seconds),
        f"An epoch of the chapter's loop at 96 px takes {epoch:.0f} s here; a seed takes {ratio:.2f} times as long.",
        f"{hardware()}.",
    ]
    text = write(args.folder, "record", COLUMNS, rows, notes)
    Console(highlight=False).print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
