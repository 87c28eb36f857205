"""What this machine is: its processor, caches, memory and accelerator. torch is loaded only by what asks it."""

import ctypes
import functools
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


ISA = ("fma", "avx", "amx", "asimd", "sve", "bf16")
"""How the names of the instruction sets begin among which ATen, MKL and oneDNN choose."""

CHOICES = (
    *("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
)
"""The variables by which a user narrows that choice."""


def processor() -> dict[str, str]:
    """What Linux says of the first processor, by name; nothing on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """The model of the processor."""
    return processor().get("model name") or platform.processor() or platform.machine()


def description() -> dict[str, Any]:
    """What a machine says of itself before torch is loaded, as far as numbers and times depend on it."""
    isa = [flag for flag in processor().get("flags", "").split() if flag.startswith(ISA)]
    chosen = {name: os.environ[name] for name in CHOICES if name in os.environ}
    cpu = {"cpu": cpu_name(), "cpu_count": os.cpu_count(), "isa": isa}
    return {"machine": platform.platform(), **cpu, "environment": chosen}


def available_memory() -> int:
    """Bytes that a new process could take."""
    import psutil

    return int(psutil.virtual_memory().available)  # type: ignore[no-untyped-call]


def device(accelerator: str = "auto") -> "torch.device":
    """The device that `trainer.accelerator` means here: the accelerator if there is one and it is wanted."""
    import torch

    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator == "cpu" or best is None else best


@functools.cache
def onednn_isa() -> str | None:
    """The instruction set that oneDNN has chosen, which it tells once, and only on C's standard output; None if not."""
    import torch

    if os.name != "posix" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    image, flush = torch.zeros(1, 1, 1, 1), ctypes.CDLL(None).fflush
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        return None
    flush(None)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    try:
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):  # type: ignore[no-untyped-call]
            torch.mkldnn_convolution(image, image, None, (0, 0), (1, 1), (1, 1), 1)
        flush(None)
    finally:
        os.dup2(kept, 1)
        os.close(writer)
        os.close(kept)
    with os.fdopen(reader, "rb") as said:
        found = re.search(rb"cpu,isa:([^,\n]+)", said.read())
    return found and found[1].decode().strip()
