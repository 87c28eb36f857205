"""The memory of this process: how its allocator behaves and how much it has used at most."""

import ctypes
import logging
import resource
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed() -> None:
    """Lets glibc keep freed activations instead of returning them to the system and faulting them in at each step."""
    set_thresholds(mmap=2**31 - 1, trim=-1)  # -1: never give back


def return_freed() -> None:
    """Lets glibc return freed memory at once, so that what the process holds is what is in use."""
    set_thresholds(mmap=2**16, trim=2**16)


def set_thresholds(*, mmap: int, trim: int) -> None:
    """In bytes: from which size on a block is mapped on its own, and how much free memory is kept."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_MMAP_THRESHOLD, mmap)
            libc.mallopt(_TRIM_THRESHOLD, trim)


def forget_peak() -> None:
    """From here on a new peak counts, where the system can forget the last."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.getLogger(__name__).debug("this system keeps the peak of the whole process")


def peak() -> int:
    """Bytes: on the GPU where one was used, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cache() -> int:
    """Bytes of the first processor's last-level cache; 0 where the system does not say."""
    try:
        sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
        return max(1024 * int(size.removesuffix("K")) for size in sizes)
    except (OSError, ValueError):
        return 0


def available() -> int | None:
    """Bytes that a new process could take; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
