"""AlexNet (Krizhevsky et al. 2012), as the book builds it for Fashion-MNIST.

    net = AlexNet(ratio=4, image_size=96)
    logits = net(images)  # (N, C, H, W) → (N, K)

N images, C channels, H = W pixels, K classes.
"""

from torch import Tensor, nn

from vggexp.models.architecture import ALEXNET_CHANNELS, ALEXNET_HIDDEN, ALEXNET_SMALLEST, check_image_size, check_ratio
from vggexp.models.cpu.fused import Block
from vggexp.models.layers import Init, classifier, initialize


class AlexNet(nn.Module):
    """Five convolutions, three of them followed by a 3×3 max-pool of stride 2, then three fully connected layers.

    Args: as of `vggexp.models.VGG`; `image_size` is at least 65.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        ratio: int = 1,
        image_size: int = 224,
        in_channels: int = 1,
        num_classes: int = 10,
        dropout: float = 0.5,
        init: Init = "default",
    ) -> None:
        super().__init__()
        check_ratio(ratio, [*ALEXNET_CHANNELS, ALEXNET_HIDDEN])
        check_image_size(image_size, ALEXNET_SMALLEST)
        a, b, c, d, e = (channels // ratio for channels in ALEXNET_CHANNELS)
        # as in VGG, max-pool before ReLU: equal bits, less work
        self.features = Block(
            nn.Conv2d(in_channels, a, kernel_size=11, stride=4, padding=1),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(a, b, kernel_size=5, padding=2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(b, c, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, d, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, e, kernel_size=3, padding=1),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
        )
        side = (image_size - 1) // 32 - 1  # of the maps after the last max-pool
        self.classifier = classifier(e, side, ALEXNET_HIDDEN // ratio, num_classes, dropout)
        initialize(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, K) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
