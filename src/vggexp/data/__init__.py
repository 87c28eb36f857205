"""Which images come, in which order, at which size? The data know no network.

- `datamodule`: splits, order, batches, and how far training has come
- `idx`: finds and verifies the files of Fashion-MNIST and sets like it
- `resize`, `augment`: what happens to a batch on the device
- `pictures`: other pictures, made like those of the set
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggexp.data.datamodule import FashionMNIST

__all__ = ["FashionMNIST"]


def __getattr__(name: str) -> Any:
    """Loads Lightning only when the data module is asked for; `vggexp data` does without."""
    if name in __all__:
        return getattr(import_module("vggexp.data.datamodule"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
