"""Compiles C++ kernels on the machine that runs them; where that fails, torch's own layers do the same work."""

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The kernels of `name`.cpp, or None where they cannot be compiled; each process compiles them, in half a second.

    They are linked without OpenMP, so that they share torch's threads or are not loaded at all.
    """
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    with tempfile.TemporaryDirectory() as folder:
        compiled, linked = f"{folder}/{name}.o", f"{folder}/{name}.so"
        options = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
        try:
            for command in ([*options, "-c", str(source), "-o", compiled], ["-shared", compiled, "-o", linked]):
                subprocess.run([compiler, *command], check=True, capture_output=True, timeout=60)
            return ctypes.CDLL(linked)
        except (OSError, subprocess.SubprocessError):
            return None


def has_kernel(maps: Tensor, name: str) -> bool:
    """Whether `name`.cpp has kernels for maps of this type and layout."""
    return maps.dtype in TYPES and maps.is_contiguous(memory_format=torch.channels_last) and library(name) is not None


def call(name: str, function: str, dtype: torch.dtype, *arguments: Tensor | int | None) -> None:
    """Calls the kernel for maps of this type; a tensor is passed as its address, None as a null pointer."""
    if any(isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter) for x in arguments):
        return  # a stand-in without content, such as torch's FakeTensor, with which memory is estimated
    passed = [ctypes.c_long(x.data_ptr() if isinstance(x, Tensor) else x or 0) for x in arguments]
    library(name)[f"{TYPES[dtype]}_{function}"](*passed)  # type: ignore[index]
