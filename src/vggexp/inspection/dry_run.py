"""The peak memory of a training step, without running it on numbers.

Nothing public of torch counts this: FakeTensorMode (tensors with a shape and a device, but no content) and MemTracker
are private, work with torch 2.15, and are used nowhere else. Tensors on the device "meta" are public, but
would not take the paths through a network that only a CPU takes.
"""

from collections.abc import Callable
from typing import Any

from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

without_content = FakeTensorMode
"""A context in which new tensors need no memory."""


def peak(step: Callable[[], None], *held: Any) -> int:
    """Bytes at the peak of a training step that is not the first."""
    tracker = MemTracker()
    tracker.track_external(*held)
    with tracker:
        step()  # creates the optimizer's state
        tracker.reset_mod_stats()
        step()
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())
