"""VGG networks on Fashion-MNIST: train, sweep, inspect and compare.

    from vggexp import VGG, AlexNet, DataModule, FashionMNIST, UserError, load

Each name is imported when it is first used, so that `import vggexp` loads nothing heavy. It does make Python look for
garbage less often: while torch and Lightning load, nothing is garbage, and looking takes a fifth of the time.
"""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggexp.data import DataModule, FashionMNIST
    from vggexp.errors import UserError
    from vggexp.inference.load import load
    from vggexp.models import VGG, AlexNet

gc.set_threshold(50_000, 20, 100)

__version__ = "0.1.0"
__all__ = ["VGG", "AlexNet", "DataModule", "FashionMNIST", "UserError", "__version__", "load"]

_HOMES = {"AlexNet": "models", "VGG": "models", "DataModule": "data", "FashionMNIST": "data"}
_HOMES |= {"UserError": "errors", "load": "inference.load"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"vggexp.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
