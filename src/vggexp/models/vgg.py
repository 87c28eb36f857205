"""VGG (Simonyan & Zisserman 2014, arXiv 1409.1556), as the chapter builds it, at every depth and width.

    net = VGG("vgg11", ratio=4, image_size=96)
    logits = net(images)  # (N, C, H, W) → (N, K)

N images, C channels, H = W pixels, K classes.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Init = Literal["default", "kaiming", "xavier"]

CONVS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Number of 3×3 convolutions in each of the five blocks: the paper's table 1, columns A, B, D and E."""

CHANNELS = (64, 128, 256, 512, 512)
HIDDEN = 4096


class VGG(nn.Module):
    """Five blocks of 3×3 convolutions, each halving height and width, then three fully connected layers.

    Args:
        arch: a key of `CONVS`.
        ratio: divides the channels and the hidden units.
        image_size: H = W of the images, at least 32; the classifier's input follows from it.
        in_channels: C.
        num_classes: K.
        dropout: probability, after each hidden layer.
        init: `default` is torch's, under which VGG-19 does not learn and VGG-16 wakes late.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        arch: str = "vgg11",
        *,
        ratio: int = 1,
        image_size: int = 224,
        in_channels: int = 1,
        num_classes: int = 10,
        dropout: float = 0.5,
        init: Init = "default",
    ) -> None:
        super().__init__()
        if arch not in CONVS:
            raise ValueError(f"arch={arch}: must be one of {', '.join(CONVS)}")
        if ratio < 1 or any(width % ratio for width in (*CHANNELS, HIDDEN)):
            raise ValueError(f"ratio={ratio}: must divide {', '.join(map(str, sorted({*CHANNELS, HIDDEN})))}")
        side = image_size // 2 ** len(CHANNELS)
        if side < 1:
            raise ValueError(f"image_size={image_size}: must be at least {2 ** len(CHANNELS)}")
        widths = [in_channels, *(channels // ratio for channels in CHANNELS)]
        self.features = nn.Sequential(
            *(
                _block(convs, before, after)
                for convs, (before, after) in zip(CONVS[arch], pairwise(widths), strict=True)
            )
        )
        hidden = HIDDEN // ratio
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        initialise(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, K) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _block(convs: int, before: int, after: int) -> nn.Sequential:
    """(N, before, H, W) → (N, after, H // 2, W // 2).

    The chapter's block ends in ReLU, then max-pool. Both orders give equal bits, forward and backward; pooling first
    leaves ReLU a quarter of the work.
    """
    layers: list[nn.Module] = []
    for channels in (before, *[after] * (convs - 1)):
        layers += [nn.Conv2d(channels, after, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
    layers.insert(-1, nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def initialise(net: nn.Module, init: Init) -> None:
    """Sets weights and biases of all convolutions and linear layers; `default` leaves torch's.

    `kaiming` (He et al. 2015) keeps the signal's size through ReLU layers of any depth; `xavier` is Glorot & Bengio
    2010. Under `kaiming` the last layer starts at a tenth, so that the first loss is near ln K.
    """
    if init == "default":
        return
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if init == "kaiming":
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if init == "kaiming":
        layers[-1].weight.data.mul_(0.1)
