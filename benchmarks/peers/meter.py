"""One meter for all: times steps 6 to 45 of a program that trains, and writes what it found to the file METER.

A program calls `step()` at the end of each step, with a function that waits until the device has done it. For programs
of torch, `sitecustomize.py` beside this file does so after each step of an optimizer; put this folder on PYTHONPATH.
"""

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

FIRST, LAST = 5, 45
ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")  # of the CPU, where it can be read
steps = 0
begun: dict[str, float] = {}


def reading() -> dict[str, float]:
    """The time in seconds and, where it can be read, the energy in joules."""
    joules = {"joules": int(ENERGY.read_text()) / 1e6} if os.access(ENERGY, os.R_OK) else {}
    return {"seconds": time.perf_counter()} | joules


def step(wait: Callable[[], object] = lambda: None) -> None:
    """Counts a step."""
    global steps, begun
    steps += 1
    if steps in (FIRST, LAST):
        wait()
        now = reading()
    if steps == FIRST:
        begun = now
    elif steps == LAST:
        found = {name: value - begun[name] for name, value in now.items()}
        found["peak_memory_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        part = Path(os.environ["METER"] + ".part")
        part.write_text(json.dumps(found))
        part.rename(os.environ["METER"])
