"""What a run leaves behind in its folder: `result.json`, from its first moment to its last."""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vggexp.errors import UserError
from vggexp.schema import Config

RESULT = "result.json"
SWEEP = "sweep.json"
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
    """Replaces `result.json` in one step, so that a reader never sees half of it."""
    temporary = folder / f".{RESULT}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / RESULT)


def read(folder: Path) -> dict[str, Any]:
    """A run's `result.json`."""
    content: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return content


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
