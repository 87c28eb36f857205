"""Loads torchmetrics, which Lightning would load in any case, without loading scipy.

Where scipy is installed, torchmetrics (1.5 to 1.9) imports scipy.signal, a sixth of the time until a run's first step,
only to restore a name for another package. To be imported before Lightning is, which also loads torch's counter of
operations: that warns where triton is missing, and only a GPU needs triton.
"""

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _load() -> None:
    signal: Any = ModuleType("scipy.signal")
    signal.hamming = None  # the name in question
    scipy: Any = ModuleType("scipy")
    scipy.signal, scipy.__spec__ = signal, ModuleSpec("scipy", None)
    before = set(sys.modules)
    sys.modules |= {"scipy": scipy, "scipy.signal": signal}
    try:
        import torchmetrics  # noqa: F401
    except (ImportError, AttributeError):  # it wants more of scipy: Lightning will load both
        for name in [name for name in sys.modules if name not in before and name.startswith("torchmetrics")]:
            del sys.modules[name]
    finally:
        del sys.modules["scipy"], sys.modules["scipy.signal"]


logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
if "scipy" not in sys.modules and "torchmetrics" not in sys.modules:
    _load()
