"""The peak memory of a training step, without running it on numbers.

Nothing public of torch counts this: FakeTensorMode (tensors with a shape and a device, but no content) and MemTracker
are private, work with torch 2.15, and are used nowhere else. Tensors on the device "meta", which are public, would not
take the ways through a network that are a CPU's own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker


def without_content() -> AbstractContextManager[Any]:
    """Tensors made within need no memory."""
    return FakeTensorMode()


def peak(step: Callable[[], None], *held: Any) -> int:
    """Bytes at the peak of a training step that is not the first."""
    tracker = MemTracker()
    tracker.track_external(*held)
    with tracker:
        step()  # creates the optimizer's state
        tracker.reset_mod_stats()
        step()
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())
