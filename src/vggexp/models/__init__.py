"""What is the network? Plain `torch.nn` modules that know neither Lightning nor Hydra.

- `architecture`: the paper's table 1 and the values that the networks accept, without torch
- `vgg`, `alexnet`: the networks
- `layers`: what they share: the classifier, dropout, how weights start
- `cpu/`: how a CPU runs them fast
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggexp.models.alexnet import AlexNet
    from vggexp.models.vgg import VGG

__all__ = ["VGG", "AlexNet"]


def __getattr__(name: str) -> Any:
    """Loads torch only when a network is asked for, so that `architecture` can be read without it."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
