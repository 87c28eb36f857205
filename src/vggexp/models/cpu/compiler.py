"""Kernels in C++ for a CPU, compiled where they run; where that cannot be done, torch's own layers do the same work."""

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The kernels of `name`.cpp, compiled for this very CPU, by each process anew (half a second), or None.

    They are linked without OpenMP, so that they share torch's threads or are not loaded at all.
    """
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    with tempfile.TemporaryDirectory() as folder:
        made, linked = f"{folder}/{name}.o", f"{folder}/{name}.so"
        try:
            for command in (
                [compiler, "-O3", "-march=native", "-fopenmp", "-fPIC", "-c", str(source), "-o", made],
                [compiler, "-shared", made, "-o", linked],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            return ctypes.CDLL(linked)
        except (OSError, subprocess.SubprocessError):
            return None


def fits(maps: Tensor, name: str) -> bool:
    """Whether `name`.cpp has kernels for maps of this type and layout."""
    return maps.dtype in TYPES and maps.is_contiguous(memory_format=torch.channels_last) and library(name) is not None


def call(name: str, function: str, dtype: torch.dtype, *arguments: Tensor | int | None) -> None:
    """The function for maps of this type; a tensor is passed as its address, None as a null pointer."""
    if any(isinstance(argument, FakeTensor) for argument in arguments):
        return  # it has no content
    passed = [
        ctypes.c_long(argument)
        if isinstance(argument, int)
        else ctypes.c_void_p(None if argument is None else argument.data_ptr())
        for argument in arguments
    ]
    library(name)[f"{TYPES[dtype]}_{function}"](*passed)  # type: ignore[index]
