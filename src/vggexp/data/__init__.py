"""Fashion-MNIST: found, verified, held as uint8, batched and resized. Data know no network."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggexp.data.datamodule import FashionMNIST

__all__ = ["FashionMNIST"]


def __getattr__(name: str) -> Any:
    """Loads Lightning only when the LightningDataModule is asked for: `python -m vggexp.data` does without."""
    if name == "FashionMNIST":
        from vggexp.data.datamodule import FashionMNIST

        return FashionMNIST
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
