"""The memory of this process: how its allocator behaves, and the most it has used."""

import ctypes
import logging
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed(most: int | None = None) -> None:
    """Lets glibc keep freed memory, which each step needs again, all of it or at most so many bytes."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 2**31 - 1 if most is None else most)
        libc.mallopt(_TRIM_THRESHOLD, -1 if most is None else most)


def forget_peak() -> None:
    """Starts a new measurement of the peak, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.getLogger(__name__).debug("the peak is that of the whole process: this system cannot reset it")


def peak() -> int:
    """The most memory used, in bytes: on the GPU where one was used, else by the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        if sys.platform == "win32":
            import psutil

            return int(psutil.Process().memory_info().peak_wset)
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
