"""Compiles C++ kernels on the machine that runs them; where that fails, torch's own layers do the same work."""

import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from vggexp.system import files, hardware, paths

PATIENCE = 60  # seconds after which a compiler that hangs is given up
OPTIONS = ("-O3", "-march=native", "-fopenmp", "-fPIC")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The kernels of `name`.cpp, or None where they cannot be compiled.

    They are compiled once for a CPU and a compiler, and kept in the cache, where only this user can write.
    They are linked without OpenMP, so that they share torch's threads or are not loaded at all.
    """
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        return None
    try:
        with tempfile.TemporaryDirectory() as temporary:
            return _linked(name, compiler, temporary)
    except OSError:  # there is no temporary folder
        return None


def _linked(name: str, compiler: str, temporary: str) -> ctypes.CDLL | None:
    source = Path(__file__).with_name(f"{name}.cpp")
    for folder in filter(None, (_own_folder(), Path(temporary))):
        linked = folder / f"{name}-{_conditions(source, compiler)}.so"
        try:
            if not linked.exists():
                with files.replacing(linked) as path:
                    _compile(compiler, source, f"{temporary}/{name}.o", str(path))
            return ctypes.CDLL(str(linked))
        except OSError:  # the cache is full, damaged, or on a disk from which no code may run
            continue
        except subprocess.SubprocessError:
            break
    return None


def _compile(compiler: str, source: Path, compiled: str, linked: str) -> None:
    for command in ([*OPTIONS, "-c", str(source), "-o", compiled], ["-shared", compiled, "-o", linked]):
        subprocess.run([compiler, *command], check=True, capture_output=True, timeout=PATIENCE)


def _own_folder() -> Path | None:
    """A folder in the cache that nobody else can write to, as a library that is loaded is code that is run."""
    folder = paths.cache() / f"kernels-{os.getuid()}"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if own and os.access(folder, os.W_OK) else None


def _conditions(source: Path, compiler: str) -> str:
    """A hash of all that the compiled code follows from: the source, the compiler, and the CPU it is compiled for."""
    found = Path(compiler).stat()
    cpu = {name: text for name, text in hardware.processor().items() if name.lower() not in ("cpu mhz", "bogomips")}
    facts = (source.read_text("utf-8"), OPTIONS, os.path.realpath(compiler), found.st_size, found.st_mtime_ns, cpu)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def has_kernel(maps: Tensor, name: str) -> bool:
    """Whether `name`.cpp has kernels for maps of this type and layout."""
    return maps.dtype in TYPES and maps.is_contiguous(memory_format=torch.channels_last) and library(name) is not None


def call(name: str, function: str, dtype: torch.dtype, *arguments: Tensor | int | None) -> None:
    """Calls the kernel for maps of this type; a tensor is passed as its address, None as a null pointer."""
    if any(isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter) for x in arguments):
        return  # a stand-in without content, such as torch's FakeTensor, with which memory is estimated
    passed = [ctypes.c_long(x.data_ptr() if isinstance(x, Tensor) else x or 0) for x in arguments]
    library(name)[f"{TYPES[dtype]}_{function}"](*passed)  # type: ignore[index]
