"""What run folders hold, read from outside: of runs that train, that have ended in whatever way, and of copies."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggexp import record
from vggexp.errors import UserError

METRICS = "metrics.csv"
GONE = "ended without a word: killed, or the machine was; resume= goes on"


class Run(NamedTuple):
    """What `result.json` says, as far as it can be read."""

    folder: Path
    status: str
    """waiting, running, completed, interrupted, pruned, failed or unreadable."""
    reason: str
    """Why it did not complete."""
    result: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The values of the config, each under its keys joined by dots."""
        config = self.result.get("config")
        return record.leaves(config) if isinstance(config, Mapping) else {}

    def number(self, name: str) -> float | None:
        """Of the results, if it is one."""
        value = self.result.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def read(folder: Path) -> Run:
    """The run in a folder, in whatever state."""
    try:
        result = record.read(folder)
        status = result["status"]
        if not (isinstance(status, str) and isinstance(result.get("config"), dict)):
            raise ValueError("it is not what a run writes")
    except FileNotFoundError:
        return Run(folder, "waiting", "", {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Run(folder, "unreadable", f"its {record.RESULT} cannot be read: {error}", {})
    reason = str(result.get("reason") or "")
    if status == "running" and not record.is_held(folder):
        status, reason = "interrupted", GONE
    return Run(folder, status, reason, result)


def find(places: Sequence[Path]) -> list[Run]:
    """The runs in folders, each that of a run, of a sweep, or of anything above them; by number, else by name.

    Raises:
        UserError: a folder is missing, or holds none.
    """
    found: dict[Path, Run] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; name that of a run or of a sweep, or last")
        folders = [path.parent for path in place.rglob(record.RESULT)]
        folders += [place / name for name in planned(place) if not (place / name / record.RESULT).exists()]
        if not folders:
            raise UserError(f"{place}: holds no run; name the folder of a run or of a sweep, or last")
        for folder in sorted(folders, key=_order):
            found.setdefault(folder.resolve(), read(folder))
    return list(found.values())


def planned(sweep: Path) -> list[str]:
    """The folders that a sweep will have; none if this is no sweep, or one of another kind."""
    try:
        jobs = json.loads((sweep / record.SWEEP).read_text(encoding="utf-8"))["jobs"]
        return [str(job["folder"]) for job in jobs]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def is_sweep(folder: Path) -> bool:
    """Whether its folders are the runs of a sweep."""
    return (folder / record.SWEEP).exists()


def _order(folder: Path) -> tuple[Any, ...]:
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in folder.parts)


def varied(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys in which configs differ, but not those that only follow another, as the image size data.resize."""
    configs = list(configs)
    keys = dict.fromkeys(key for config in configs for key in config)
    columns = {key: tuple(str(config.get(key)) for config in configs) for key in keys}
    names = [key for key in columns if len(set(columns[key])) > 1]
    names.sort(key=lambda key: key.startswith("model."))  # of two that go together, a network's key is the follower
    kept = [key for n, key in enumerate(names) if columns[key] not in [columns[k] for k in names[:n]]]
    return [key for key in keys if key in kept]


def text(value: Any) -> str:
    """A config's value, for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rank(run: Run) -> float:
    """For sorting: the best val/acc (without a validation set test/acc) first, those without one last."""
    score = run.number("val/acc")
    score = run.number("test/acc") if score is None else score
    return 1.0 if score is None or score != score else -score


def epochs(folder: Path) -> list[dict[str, float]]:
    """What a run logged at the end of each epoch, from `metrics.csv`; what it holds of a broken line is left out."""
    found: dict[int, dict[str, float]] = {}
    for row in rows(folder / METRICS):
        try:
            epoch = int(float(row.pop("epoch")))
            values = {name: float(text) for name, text in row.items() if not name.endswith("_step")}
        except (KeyError, ValueError):
            continue
        found.setdefault(epoch, {"epoch": epoch + 1}).update(values)
    return [values for _, values in sorted(found.items()) if "train/loss" in values]


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, as text; the last is left out if it is not whole."""
    if not path.exists():
        return []
    whole, newline, _ = path.read_text(encoding="utf-8").rpartition("\n")
    found = csv.DictReader(io.StringIO(whole + newline))
    return [{name: value for name, value in row.items() if name and value} for row in found if row.get("step")]
