"""Networks: plain `torch.nn` modules that know neither Lightning nor Hydra."""

from vggexp.models.vgg import VGG

__all__ = ["VGG"]
