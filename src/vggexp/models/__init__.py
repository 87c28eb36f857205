"""Networks: plain `torch.nn` modules that know neither Lightning nor Hydra."""

from vggexp.models.alexnet import AlexNet
from vggexp.models.vgg import VGG

__all__ = ["VGG", "AlexNet"]
