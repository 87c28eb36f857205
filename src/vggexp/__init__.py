"""VGG networks on Fashion-MNIST and on pictures of your own: train, sweep, inspect and compare.

    import vggexp

    run = vggexp.train("model=vgg11", "model.ratio=4", "data.resize=32")  # as `vggexp train` does
    classes, probabilities = vggexp.load(run).predict(images)

`vggexp.api` describes the functions. Each name is imported when it is first used, so that `import vggexp` loads nothing
heavy. It does make Python look for garbage less often: while torch and Lightning load, nothing is garbage, and looking
takes a fifth of the time.
"""

import gc
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggexp.api import Comparison, Run, Runs, compare, load, runs, sweep, train
    from vggexp.data import DataModule, FashionMNIST
    from vggexp.errors import UserError
    from vggexp.inference.load import Network
    from vggexp.models import VGG, AlexNet

gc.set_threshold(50_000, 20, 100)

__version__ = "0.1.0"
__all__ = [
    "VGG",
    "AlexNet",
    "Comparison",
    "DataModule",
    "FashionMNIST",
    "Network",
    "Run",
    "Runs",
    "UserError",
    "__version__",
    "compare",
    "load",
    "runs",
    "sweep",
    "train",
]

_HOMES = {"AlexNet": "models", "VGG": "models", "DataModule": "data", "FashionMNIST": "data"}
_HOMES |= {"UserError": "errors", "Network": "inference.load"}
_HOMES |= dict.fromkeys(("Comparison", "Run", "Runs", "compare", "load", "runs", "sweep", "train"), "api")


class _Package(ModuleType):
    """Keeps the functions `runs` and `train` where Python would put the modules of the same names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(import_module(f"vggexp.{_HOMES[name]}"), name)
        if name == "runs":
            found.__name__ = "vggexp.runs"  # by it, `import vggexp.runs.read as read` finds the module
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
