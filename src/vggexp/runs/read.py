"""What run folders hold, read from outside: runs that train, that ended in whatever way, and copies."""

import csv
import io
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.schema import REMARKS, flatten
from vggexp.errors import UserError
from vggexp.runs import layout, manifest, metrics
from vggexp.system import files
from vggexp.system.text import is_number

MOST = 6  # varied keys in a row of a table
LARGEST_METRICS, LARGEST_SWEEP = 2**27, 2**26  # bytes
LARGEST_ROWS = 10**6
LARGEST_EPOCHS = 10**5
LARGEST = 10**18  # of a number that a run may have come to
ASIDE = (
    *("allowed_packages", "checkpoint.", "inspect.", "logger."),
    *("data._target_", "data.root", "data.cache_dir", "data.num_workers", "data.test_each_epoch"),
    *("trainer.benchmark", "trainer.detect_anomaly", "trainer.enable_progress_bar", "trainer.log_every_n_steps"),
)  # keys of the config by which runs are not compared
KILLED = "its process was killed, or the machine went down; resume= continues it"


class Run(NamedTuple):
    """What `result.json` says, as far as it can be read."""

    folder: Path
    status: str  # waiting, running, completed, interrupted, pruned, failed or unreadable
    reason: str  # why it did not complete
    result: dict[str, Any]
    config: dict[str, Any]  # its values, each under its keys joined by dots

    def tested_checkpoint(self) -> Path:
        """The checkpoint of what has finished, also while the run is trained further."""
        return layout.tested_checkpoint(self.folder, bool({"finished", "attempt"} & self.result.keys()))

    def number(self, name: str) -> float | None:
        """A result, if it is a number."""
        value = self.result.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
            return None  # also what is not a number, and what is infinite
        return value

    def score(self, name: str) -> float | None:
        """A result of a completed run, if it is a number."""
        return self.number(name) if self.status == "completed" else None


def read(folder: Path, *, closed: bool = False) -> Run:
    """The run in a folder, in whatever state; if `closed`, an unreadable one where something in it leads out of it."""
    if not (folder / layout.RESULT).exists():
        return Run(folder, "waiting", "", {}, {})
    try:
        if closed:
            files.check_folder(folder, "")
        result = manifest.load(folder, "")
        if "config" not in result:
            raise UserError(f"its {layout.RESULT} is not what a run writes")
    except UserError as error:
        return Run(folder, "unreadable", str(error).removeprefix(": "), {}, {})
    status, reason = result["status"], str(result.get("reason") or "")
    if status == "running" and not manifest.is_locked(folder):
        status, reason = "interrupted", KILLED
    finished = result.get("finished")
    if status != "running" and finished and "config" in finished:  # what was finished outlives an attempt
        attempt = {"attempt": {"status": status, "reason": reason}}
        remarks = {key: result[key] for key in REMARKS if key in result}
        status, result = "completed", {**finished, **remarks, **attempt}
    return Run(folder, status, reason, result, flatten(result["config"]))


def find(places: Sequence[Path], known: Mapping[Path, Run] | None = None) -> list[Run]:
    """The runs in folders, each that of a run, of a sweep, or of anything above them; by number, else by name.

    Those that are `known` to have completed are not read again.
    """
    done = {folder: run for folder, run in (known or {}).items() if run.status == "completed"}
    found: dict[Path, Run] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; name that of a run or of a sweep, or last")
        folders = [path for path in _walk(place) if (path / layout.RESULT).exists()]
        planned = [place / job["folder"] for job in sweep_value(place, "jobs") or ()]
        folders += [folder for folder in planned if not (folder / layout.RESULT).exists()]
        if not folders:
            raise UserError(f"{place}: holds no run; name the folder of a run or of a sweep, or last")
        for folder in sorted(folders, key=_order):
            found.setdefault(folder.resolve(), done.get(folder) or read(folder, closed=True))
    return list(found.values())


def _walk(place: Path) -> Iterator[Path]:
    """A folder and those below it, but for runs that a sweep has put aside."""
    for folder, below, _ in os.walk(place):
        below[:] = [name for name in below if name != layout.ASIDE]
        yield Path(folder)


def size(folder: Path) -> int:
    """The bytes of the files in a folder and below."""
    return sum(Path(place, name).lstat().st_size for place, _, names in os.walk(folder) for name in names)


def _order(folder: Path) -> tuple[Any, ...]:
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in folder.parts)


def sweep(folder: Path) -> dict[str, Any]:
    """A sweep's `sweep.json`."""
    try:
        content: dict[str, Any] = json.loads(files.content(folder / layout.SWEEP, LARGEST_SWEEP))
        texts = [entry[key] for entry in content["jobs"] for key in ("folder", "config_hash")] + content["arguments"]
        leaving = any(
            Path(entry["folder"]).anchor or {"..", "\0"} & {*entry["folder"], *Path(entry["folder"]).parts}
            or len(os.fsencode(entry["folder"])) > 255
            for entry in content["jobs"]
        )  # fmt: skip
        if leaving or not all(isinstance(text, str) for text in texts):
            raise ValueError("it is not what a sweep writes")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        place = f"{folder}: its {layout.SWEEP} cannot be read"
        raise UserError(f"{place} ({error}); name another hydra.sweep.dir") from error
    return content


def sweep_value(folder: Path, key: str) -> Any:
    """A value of `sweep.json`; None where there is no readable sweep."""
    try:
        return sweep(folder).get(key)
    except UserError:
        return None


def is_sweep(folder: Path) -> bool:
    """Whether its subfolders are the runs of a sweep."""
    return (folder / layout.SWEEP).exists()


def started(folder: Path) -> str:
    """When a run or a sweep was started, as ISO 8601; empty where that cannot be read."""
    when = sweep_value(folder, "started") if is_sweep(folder) else read(folder).result.get("started")
    return str(when or "")


def varied(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which configs differ; of keys that always change together, only one, no `model.` key if possible."""
    keys = dict.fromkeys(key for config in configs for key in config)
    columns = {key: tuple(str(config.get(key)) for config in configs) for key in keys}
    names = sorted(keys, key=lambda key: key.startswith("model."))
    first = {columns[key]: key for key in reversed(names) if len(set(columns[key])) > 1}
    return [key for key in keys if first.get(columns[key]) == key]


def labels(found: Sequence[Run]) -> dict[Path, str]:
    """What sets each run apart from those beside it, in a few words.

    Where more than MOST keys vary, it is what the command line of their sweep varied, such as an experiment.
    """
    beside: dict[Path, list[Run]] = {}
    for run in found:
        beside.setdefault(run.folder.parent, []).append(run)
    words: dict[Path, list[str]] = {}
    for parent, together in beside.items():
        axes = varied([run.config for run in together if run.config])
        jobs = {parent / job["folder"]: job.get("overrides") for job in sweep_value(parent, "jobs") or ()}
        typed = {folder: list(map(str, each)) for folder, each in jobs.items() if isinstance(each, list)}
        by_command = len(axes) > MOST and all(run.folder in typed for run in together if run.config)
        common = set.intersection(*map(set, typed.values())) if by_command else set()
        for run in together:
            pairs = zip(short(axes), (text(run.config.get(axis)) for axis in axes), strict=True)
            parts = [f"{name}={value}" for name, value in pairs] if run.config else []
            words[run.folder] = [o for o in typed.get(run.folder, []) if o not in common] if by_command else parts
    return {folder: " ".join(parts[:MOST] + ["…"] * (len(parts) > MOST)) for folder, parts in words.items()}


def short(keys: Collection[str]) -> list[str]:
    """The last parts of keys; a whole key where another, or `seed`, ends like it."""
    names = {key: key.rpartition(".")[2] for key in ("seed", *keys)}
    return [names[key] if list(names.values()).count(names[key]) == 1 else key for key in keys]


def text(value: Any) -> str:
    """A config's value, for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def objective(run: Run) -> float | None:
    """The score by which runs are ranked: val/acc, without validation test/acc."""
    score = run.number(metrics.OBJECTIVE)
    return run.number(metrics.WITHOUT_VALIDATION) if score is None else score


def epochs(folder: Path) -> list[dict[str, float]]:
    """What a run logged at the end of each epoch, from `metrics.csv`; broken lines are left out."""
    found: dict[int, dict[str, float]] = {}
    for row in rows(folder / layout.METRICS):
        if "train/loss_step" in row:  # within an epoch
            continue
        values = {name: float(text) for name, text in row.items()}
        number = values.pop("epoch", math.nan)
        if math.isfinite(number) and (int(number) in found or len(found) < LARGEST_EPOCHS):
            found.setdefault(int(number), {"epoch": int(number) + 1}).update(values)
    return [values for _, values in sorted(found.items()) if "train/loss" in values]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of `metrics.csv`, as text; those that are no rows are left out, such as the last if it was cut short."""
    if not path.exists():
        return
    try:
        whole, newline, _ = files.content(path, LARGEST_METRICS).decode(errors="replace").rpartition("\n")
    except OSError:  # a link, a pipe or too large: not what a run writes
        return
    found = csv.DictReader(io.StringIO(whole + newline), strict=False)
    for _ in range(LARGEST_ROWS):
        try:
            row = next(found)
        except StopIteration:
            return
        except csv.Error:  # a field too long
            continue
        values = {name: value for name, value in row.items() if name and isinstance(value, str) and value}
        if "step" in values and all(map(is_number, values.values())):
            yield values
