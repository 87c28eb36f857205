"""What made a run: config, versions, code and machine, kept in `result.json` from its first moment to its last."""

import json
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.runs import layout
from vggexp.system import files, hardware

PACKAGES = ("vggexp", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "tensorboard")


def collect(cfg: Config) -> dict[str, Any]:
    """What is known of a run before its first step."""
    versions = {name: next((found.version for found in distributions(name=name)), None) for name in PACKAGES}
    return {
        "status": "running",
        **origin(),
        "seed": cfg.seed,
        "config_hash": cfg.hash(),
        "config": cfg.model_dump(by_alias=True),
        "versions": {"python": platform.python_version()} | versions,
        "git": _git(),
        "hardware": {"machine": platform.platform(), "cpu": hardware.cpu_name(), "cpu_count": os.cpu_count()},
    }


def origin() -> dict[str, Any]:
    """When, where and by which command this process was started."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"started": now, "pid": os.getpid(), "host": socket.gethostname(), "command": sys.argv}


def _git() -> dict[str, Any] | None:
    """The revision of the checkout that the code runs from, and whether it was changed; None outside a checkout."""
    source = Path(__file__)

    def git(*args: str) -> str:
        command = ["git", "-C", str(source.parent), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", str(source)):
            return None  # installed into a folder of somebody else's repository
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


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
        content = json.loads((folder / layout.RESULT).read_text(encoding="utf-8"))
        if not (isinstance(content, dict) and isinstance(content.get("status"), str)):
            raise ValueError("it is not what a run writes")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{place}: its {layout.RESULT} cannot be read: {error}") from error
    return content


@contextmanager
def lock(folder: Path, place: str, file: str = layout.RESULT, seconds: float = 10) -> Iterator[None]:
    """Keeps other processes from working in a folder; the system releases the lock when this process ends."""
    try:
        with FileLock(folder / layout.LOCK, timeout=seconds):
            yield
    except Timeout:
        owner = json.loads((folder / file).read_text(encoding="utf-8"))
        process = f"process {owner.get('pid')} on {owner.get('host')}"
        raise UserError(f"{place}: is running, as {process}; stop that first") from None


PROBING = threading.RLock()
"""Held while a lock is tried: a process that is forked at this moment would keep it."""


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder; its `result.json` says so even after the process was killed."""
    if not (folder / layout.LOCK).exists():
        return False
    try:
        with PROBING, FileLock(folder / layout.LOCK, timeout=0):
            return False
    except OSError as error:  # a Timeout, or this user may not write into the folder
        return isinstance(error, Timeout)
