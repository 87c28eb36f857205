"""Installs what is wanted from requirements.lock; run by `make setup`.

    .venv/bin/python requirements.py [EXTRA ...]     e.g. search, dev; the extras of pyproject.toml

Every file is checked against the hashes of the lock. Where Linux has no NVIDIA GPU, torch's CPU wheels are taken if
pip's registries have them (these are not in the lock, so they have no hash); else the plain ones, without what only a
GPU uses.
"""

import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
BUILD = ("hatchling", "editables")  # what installs this project itself
TORCH = ("torch", "torchvision")
GPU = re.compile("triton|cuda-(bindings|pathfinder|toolkit)|nvidia-(cusolver|cuda-cccl|nvtx)")
"""Packages that torch's plain Linux wheels ask for, but load on a GPU alone; the others are linked to."""


def wanted(extras: list[str]) -> set[str]:
    """The names of the packages that pyproject.toml asks for itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    if strange := sorted(set(extras) - set(known)):
        sys.exit(f"EXTRAS={' '.join(extras)}: {strange[0]} is not an extra; there are {', '.join(known)}")
    found = [*project["dependencies"], *(each for extra in extras for each in known[extra])]
    own = [each.partition("[")[2].rstrip("]").split(",") for each in found if each.startswith(project["name"] + "[")]
    names = {re.match(r"[\w.-]+", each)[0].lower() for each in found} - {project["name"]}
    return names.union(BUILD, *map(wanted, own))


def locked() -> dict[str, tuple[str, set[str]]]:
    """Each package of the lock: its lines, and the names of the packages that ask for it."""
    lock: dict[str, tuple[str, set[str]]] = {}
    for block in re.split(r"^(?=\w)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]:
        name = re.match(r"[\w.-]+", block)[0]
        lines, parents = lock.get(name, ("", set()))  # a package may have a version for each of several Pythons
        lock[name] = lines + block, parents | set(re.findall(r"^ +# +(?:via +)?([\w.-]+)", block, re.MULTILINE))
    return lock


def closure(names: set[str], lock: dict[str, tuple[str, set[str]]]) -> set[str]:
    """The packages and all that they need."""
    while more := {name for name, (_, parents) in lock.items() if parents & names} - names:
        names = names | more
    return names


def install(extras: list[str]) -> None:
    lock = locked()
    names = closure(wanted(extras), lock)
    if sys.platform == "linux" and not shutil.which("nvidia-smi") and platform.machine() == "x86_64":
        versions = [f"{lock[name][0].split()[0]}+cpu" for name in TORCH]
        asked = subprocess.run([*PIP, "install", "--no-deps", "--only-binary=:all:", *versions], capture_output=True)
        if asked.returncode == 0:
            names = {name for name in names if name not in TORCH and not re.match("triton|cuda-|nvidia-", name)}
        else:
            names = {name for name in names if not GPU.fullmatch(name)}
    chosen = Path(sys.prefix) / "requirements.txt"
    chosen.write_text("".join(lock[name][0] for name in sorted(names)))
    # not compiled: Python does so for what is imported, which is a small part
    options = ["--require-hashes", "--no-deps", "--no-compile"]
    subprocess.run([*PIP, "install", *options, "--requirement", str(chosen)], check=True)
    subprocess.run([*PIP, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)


if __name__ == "__main__":
    install(sys.argv[1:])
