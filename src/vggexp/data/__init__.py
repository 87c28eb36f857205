"""Which images come, in which order, at which size? The data know no network.

- `source`: what a data set is; `idx` (Fashion-MNIST, and sets like it), `torchvision_sets` and `folder` are some
- `pictures`, `store`: decode pictures, and keep what was decoded
- `datamodule`: splits, order, batches, and how far training has come
- `augment`, `resize`, `preparation`: what happens to a batch on the device
- `survey`: what is in a data set, and the set as a folder of pictures
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggexp.data.datamodule import DataModule
    from vggexp.data.folder import Folder
    from vggexp.data.idx import FashionMNIST
    from vggexp.data.source import Images, Source
    from vggexp.data.torchvision_sets import TorchvisionSet

_HOMES = {"DataModule": "datamodule", "FashionMNIST": "idx", "Folder": "folder"}
_HOMES |= {"Images": "source", "Source": "source", "TorchvisionSet": "torchvision_sets"}
__all__ = ["DataModule", "FashionMNIST", "Folder", "Images", "Source", "TorchvisionSet"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, for torch and Lightning take their time."""
    if name in _HOMES:
        return getattr(import_module(f"vggexp.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
