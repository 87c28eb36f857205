"""What made a run: config, versions, code and machine, kept in `result.json` from its first moment to its last."""

import functools
import getpass
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from vggexp.config import compose
from vggexp.config.schema import REMARKS, Config
from vggexp.errors import UserError
from vggexp.runs import code, layout
from vggexp.system import files, hardware


def collect(cfg: Config, experiment: str | None = None) -> dict[str, Any]:
    """What is known of a run before its first step."""
    return {
        "status": "running",
        **origin(),
        "seed": cfg.seed,
        "config_hash": cfg.hash(),
        "config": cfg.values(),
        "weights": weights(cfg.model.weights),
        "tags": cfg.tags,
        "note": cfg.note,
        "experiment": experiment,
        "launched": compose.launched(),
        "begins": {"time": now(), "epoch": 0, "batch": 0},
        "code": {package.name: package.summary() for package in code.current(cfg.allowed_packages)},
        "versions": versions(),
        "hardware": hardware.description(),
    }


def weights(file: str | None) -> str | None:
    """The sha256 of the file that a network starts from."""
    if file is None or not (path := Path(file).expanduser()).is_file():
        return None
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def origin() -> dict[str, Any]:
    """When, where, by whom and by which command this process was started."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # nothing names the user, as in some containers
        user = ""
    return {"started": now(), "pid": os.getpid(), "host": socket.gethostname(), "user": user, "command": sys.argv}


def now() -> str:
    """The time, as ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python and of all distributions, in the order of their names; of two copies, the one in use."""
    found = {}
    for each in reversed(list(distributions())):  # their `version` would parse all of the text, 0.3 s in all
        head = (each.read_text("METADATA") or each.read_text("PKG-INFO") or "").partition("\n\n")[0]
        if len(fields := dict(re.findall(r"^(Name|Version): *(.*\S)", head, re.MULTILINE))) == 2:
            found[fields["Name"].lower()] = fields["Version"]
    return {"python": platform.python_version()} | dict(sorted(found.items()))


SEGMENT = ("begins", "host", "command", "code", "versions", "hardware")
"""What `result.json` says of each segment of a run that was stopped and resumed."""


def resumed(content: Mapping[str, Any], past: Mapping[str, Any]) -> dict[str, Any]:
    """The `content` of a run that is resumed: it started when it did, and its earlier segments are not forgotten."""
    segment = {key: past.get(key) for key in SEGMENT}
    same = {key: past.get(key) for key in ("started", "experiment", "weights")}
    same |= {key: content[key] or past.get(key) for key in REMARKS}
    finished = past if past["status"] == "completed" else past.get("finished")
    same |= {"finished": finished} if finished else {}
    return {**content, **same, "segments": [*past.get("segments", []), segment]}


def keep_finished(folder: Path) -> None:
    """Keeps the checkpoint that a finished run was tested with from being replaced while the run is trained further."""
    if (tested := layout.tested_checkpoint(folder, attempt=False)).exists():  # a run of no epochs has none
        with files.replacing(layout.checkpoint(folder, layout.FINISHED)) as temporary:
            shutil.copyfile(tested, temporary)


def changes(folder: Path, past: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """What is not as it was when a run was last started, in words."""
    found = []
    if files := code.changed(folder, past.get("code"), content["code"]):
        found.append(f"other code ({', '.join(files)} changed): its epochs are not of one kind")
    old, new = dict(past.get("versions") or {}), content["versions"]
    if differing := [f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]]:
        found.append(f"{', '.join(differing)}: the last bits may differ")
    return found


def claim(folder: Path, content: Mapping[str, Any], key: str) -> None:
    """Makes a folder, named by a config key, this run's own; of two processes that try, one succeeds."""
    with files.writing(folder, f"{key}={folder}"):
        try:
            with open(folder / layout.RESULT, "x", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
        except FileExistsError as error:
            raise UserError(f"{key}={folder}: holds a run already; name another folder") from error


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Replaces `result.json`."""
    files.write_text(folder / layout.RESULT, json.dumps(content, indent=2) + "\n")


def load(folder: Path, place: str) -> dict[str, Any]:
    """A run's `result.json`, which may come from a stranger; `place` is the KEY=VALUE that named the folder."""
    try:
        content: dict[str, Any] = json.loads(files.content(folder / layout.RESULT))
        Record.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "all of it"
        raise UserError(f"{place}: its {layout.RESULT} is not what a run writes: {key} is {fault['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{place}: its {layout.RESULT} cannot be read: {error}") from error
    return content


class _Code(BaseModel, strict=True):
    hash: str | None = None
    revision: str | None = None


class _Config(BaseModel, strict=True):
    seed: int | None = None


class Segment(BaseModel, strict=True):
    """A part of a run between a start and a stop; what else `result.json` says of it may be anything."""

    begins: dict[str, Any] | None = None
    host: str | None = None
    user: str | None = None
    command: list[str] | None = None
    code: dict[str, _Code] | None = None
    versions: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None


class Record(Segment):
    """What `result.json` holds beside the scores."""

    status: str
    reason: str | None = None
    started: str | None = None
    pid: int | None = None
    config: _Config = _Config()
    config_hash: str | None = None
    weights: str | None = None
    experiment: str | None = None
    tags: list[str] = []
    note: str = ""
    segments: list[Segment] = []
    finished: "Record | None" = None


@contextmanager
def lock(folder: Path, place: str, file: str = layout.RESULT, seconds: float = 10) -> Iterator[None]:
    """Keeps other processes from working in a folder; the system releases the lock when this process ends."""
    try:
        with FileLock(_lock(folder, place), timeout=seconds):
            yield
    except Timeout:
        owner = load(folder, place) if file == layout.RESULT else json.loads(files.content(folder / file))
        process = f"process {owner.get('pid')} on {owner.get('host')}"
        raise UserError(f"{place}: is running, as {process}; stop that first") from None


PROBING = threading.RLock()
"""Held while a lock is tried: a process that is forked at this moment would keep it."""


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder; its `result.json` says so even after the process was killed."""
    if not (folder / layout.LOCK).exists():
        return False
    try:
        with PROBING, FileLock(_lock(folder, ""), timeout=0):
            return False
    except (OSError, UserError) as error:  # a Timeout, or this user may not write into the folder
        return isinstance(error, Timeout)


def _lock(folder: Path, place: str) -> Path:
    """The path of a folder's lock, which is not a link: what it points to would be emptied."""
    path = folder / layout.LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{place}: {path} is not a file, which a run's folder never holds; remove it")
    return path
