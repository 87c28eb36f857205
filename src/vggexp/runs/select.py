"""Which run, sweep or checkpoint is meant: by a folder, a file, or the word `last`."""

from collections.abc import Sequence
from pathlib import Path

from vggexp.errors import UserError
from vggexp.runs import layout, read
from vggexp.system import files, paths

LAST = "last"


def run(name: str, key: str) -> Path:
    """The folder of the run that the option `key` names: a folder, or `last` for the run that was started last."""
    return _folder(name, key, "run", layout.RESULT, f"*/{layout.RESULT}")


def sweep(name: str, key: str) -> Path:
    """The folder of the sweep that the option `key` names, in the same way."""
    return _folder(name, key, "sweep", layout.SWEEP)


def places(names: Sequence[str], default: Sequence[Path] = ()) -> list[Path]:
    """The folders that `vggexp report` and `vggexp tensorboard` look into; `last` is a sweep or a run."""
    found = [_latest(name, "run", layout.RESULT, layout.SWEEP) if _is_last(name) else Path(name) for name in names]
    return found or list(default)


def checkpoint(name: str, key: str) -> Path:
    """The checkpoint file that is meant: itself, or the one that a finished run was tested with."""
    if (path := Path(name).expanduser()).is_file():
        if (path.parent.parent / layout.RESULT).exists():
            files.check_folder(path.parent.parent, f"{key}={name}")
        return path
    if not (path.is_dir() or _is_last(name)):
        raise UserError(f"{key}={name}: no such file or folder; name a run folder, a checkpoint file, or {LAST}")
    found = read.read(run(name, key))
    tested = found.tested_checkpoint()
    fault = "holds no checkpoint; name another run"
    if found.status == "unreadable":
        fault = found.reason
    elif found.status != "completed" and "finished" not in found.result:
        reason = f" ({found.reason})" if found.reason else ""
        remedy = f"; to use what it has so far, set {key}={tested}" if tested.exists() else ""
        fault = f"did not finish: its status is {found.status}{reason}{remedy}"
    elif tested.exists():
        return tested
    raise UserError(f"{key}={found.folder}: {fault}")


def _is_last(name: str) -> bool:
    return name == LAST and not Path(name).exists()


def _folder(name: str, key: str, kind: str, *names: str) -> Path:
    """The folder that a name means, which holds the first of `names`; for `last`, all of them are looked for.

    Nothing in the folder leads out of it.
    """
    if _is_last(name):
        name = str(_latest(f"{key}={name}", kind, *names))
    path = Path(name).expanduser()
    if not (path / names[0]).is_file():
        what = f"{kind} folder"
        raise UserError(f"{key}={name}: is not a {what}, for it holds no {names[0]}; name a {what}, or {LAST}")
    files.check_folder(path, f"{key}={name}", depth=4 if kind == "run" else 0)
    return path


def _latest(place: str, kind: str, *files: str) -> Path:
    """The folder in which one of `files` says that it was started last."""
    found = [path.parent for pattern in files for path in paths.outputs().glob(f"*/{pattern}")]
    if not found:
        raise UserError(f"{place}: there is no {kind} under {paths.outputs()}/; start one, or name its folder")
    return max(found, key=read.started)
