"""What a run leaves behind in its folder: `result.json`, from its first moment to its last."""

import itertools
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vggexp.errors import UserError
from vggexp.schema import Config

RESULT = "result.json"
SWEEP = "sweep.json"
LOCK = ".lock"
PACKAGES = ("vggexp", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "tensorboard")


def claim(folder: Path, name: str, content: Mapping[str, Any], key: str) -> None:
    """Makes a folder this process's own by creating `name` in it; of two processes that try, one succeeds.

    Args:
        key: the config key that named the folder, for the message.

    Raises:
        UserError: the folder holds a run already, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder}: {error.strerror}; name a folder that can be written", 1) from error
    try:
        with open(folder / name, "x", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
    except FileExistsError as error:
        raise UserError(f"{key}={folder}: holds a run already; name another folder") from error
    except OSError as error:
        raise UserError(f"{key}={folder}: {error.strerror}; name a folder that can be written", 1) from error


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Replaces `result.json`."""
    replace(folder / RESULT, json.dumps(content, indent=2) + "\n")


def replace(path: Path, text: str) -> None:
    """Replaces a file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{next(_writes)}")  # a signal may write while the program writes
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


_writes = itertools.count()


def read(folder: Path) -> dict[str, Any]:
    """A run's `result.json`."""
    content: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return content


def load(folder: Path, place: str) -> dict[str, Any]:
    """A run's `result.json`, from wherever it may come.

    Args:
        place: KEY=VALUE that named it, for the message.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = read(folder)
        if not isinstance(content, dict) or not isinstance(content.get("status"), str):
            raise ValueError("it is not what a run writes")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{place}: its {RESULT} cannot be read: {error}") from error
    return content


def latest(outputs: Path, place: str) -> Path:
    """The folder of the run that was started last, alone or in a sweep.

    Raises:
        UserError: there is none.
    """
    folders = [path.parent for pattern in ("*", "*/*") for path in outputs.glob(f"{pattern}/{RESULT}")]
    if not folders:
        raise UserError(f"{place}: there is no run under {outputs}/; train one, or name its folder")
    return max(folders, key=lambda folder: str(load(folder, place).get("started")))


@contextmanager
def hold(folder: Path, place: str, name: str = RESULT, seconds: float = 10) -> Iterator[None]:
    """Keeps others from running in a folder; the system lets go when the process ends, however it does.

    Args:
        name: of the file that tells whose the folder is.
        seconds: to wait for a process that is just ending.

    Raises:
        UserError: another process runs there.
    """
    try:
        with FileLock(folder / LOCK, timeout=seconds):
            yield
    except Timeout:
        owner = json.loads((folder / name).read_text(encoding="utf-8"))
        raise UserError(
            f"{place}: is running, as process {owner.get('pid')} on {owner.get('host')}; stop that first"
        ) from None


def is_held(folder: Path) -> bool:
    """Whether a process runs in a folder: a record that says so may be older than the process's sudden end."""
    try:
        if (folder / LOCK).exists():
            with FileLock(folder / LOCK, timeout=0):
                return False
        return False
    except Timeout:
        return True
    except OSError:  # of a folder that only others may write into
        return False


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, each under its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def manifest(cfg: Config) -> dict[str, Any]:
    """What is known before the first step: config, versions, source and machine."""
    return {
        "status": "running",
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": sys.argv,
        "seed": cfg.seed,
        "config_hash": cfg.hash(),
        "config": cfg.model_dump(by_alias=True),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "git": _git(),
        "hardware": {"machine": platform.platform(), "cpu": _cpu(), "cpu_count": os.cpu_count()},
    }


def _git() -> dict[str, Any] | None:
    """Revision and dirtiness of the checkout that the code runs from; None outside a checkout."""
    source = Path(__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(source), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", __file__):
            return None  # installed into a folder of somebody else's repository
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
