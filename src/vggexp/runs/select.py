"""Which run, sweep or checkpoint is meant: by a folder, a file, or the word `last`."""

from collections.abc import Sequence
from pathlib import Path

from vggexp.errors import UserError
from vggexp.runs import layout, read
from vggexp.system import paths

LAST = "last"


def run(name: str, key: str) -> Path:
    """The folder of the run that the option `key` names: a folder, or `last` for the run that was started last."""
    if _is_last(name):
        return _latest(f"{key}={name}", "run", layout.RESULT, f"*/{layout.RESULT}")
    return _folder(name, key, layout.RESULT, "run folder")


def sweep(name: str, key: str) -> Path:
    """The folder of a sweep; the arguments and the error are as of `run`."""
    if _is_last(name):
        return _latest(f"{key}={name}", "sweep", layout.SWEEP)
    return _folder(name, key, layout.SWEEP, "sweep folder")


def places(names: Sequence[str], default: Sequence[Path] = ()) -> list[Path]:
    """The folders that `vggexp report` and `vggexp tensorboard` look into; `last` is a sweep or a run."""
    found = [_latest(name, "run", layout.RESULT, layout.SWEEP) if _is_last(name) else Path(name) for name in names]
    return found or list(default)


def checkpoint(name: str, key: str) -> Path:
    """The checkpoint file that is meant: itself, or the one that a finished run was tested with."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not (path.is_dir() or _is_last(name)):
        raise UserError(f"{key}={name}: no such file or folder; name a run folder, a checkpoint file, or {LAST}")
    folder = run(name, key)
    found, tested = read.read(folder), layout.tested_checkpoint(folder)
    place = f"{key}={folder}"
    if found.status == "unreadable":
        raise UserError(f"{place}: {found.reason}")
    if found.status != "completed":
        reason = f" ({found.reason})" if found.reason else ""
        remedy = f"; to use what it has so far, set {key}={tested}" if tested.exists() else ""
        raise UserError(f"{place}: did not finish: its status is {found.status}{reason}{remedy}")
    if not tested.exists():
        raise UserError(f"{place}: holds no checkpoint; name another run")
    return tested


def _is_last(name: str) -> bool:
    return name == LAST and not Path(name).exists()


def _folder(name: str, key: str, file: str, kind: str) -> Path:
    path = Path(name).expanduser()
    if not (path / file).is_file():
        raise UserError(f"{key}={name}: is not a {kind}, for it holds no {file}; name a {kind}, or {LAST}")
    return path


def _latest(place: str, kind: str, *files: str) -> Path:
    """The folder in which one of `files` says that it was started last."""
    found = [path.parent for pattern in files for path in paths.outputs().glob(f"*/{pattern}")]
    if not found:
        raise UserError(f"{place}: there is no {kind} under {paths.outputs()}/; start one, or name its folder")
    return max(found, key=read.started)
