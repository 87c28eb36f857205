"""VGG (Simonyan & Zisserman 2014, arXiv 1409.1556), as the chapter builds it, at every depth and width.

    net = VGG("vgg11", ratio=4, image_size=96)
    net = VGG(blocks=[[1, 32], [2, 64]], hidden=256, image_size=28)  # [convolutions, channels] of each block
    logits = net(images)  # (N, C, H, W) → (N, K)

N images, C channels, H = W pixels, K classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vggexp.models.architecture import check_image_size, check_ratio, vgg_blocks
from vggexp.models.cpu.fused import Block
from vggexp.models.layers import Init, classifier, initialize


class VGG(nn.Module):
    """Blocks of convolutions, each halving height and width, then three fully connected layers.

    Args:
        arch: a column of `vggexp.models.architecture.KERNELS`: five blocks of 64, 128, 256, 512 and 512 channels.
        blocks: replaces `arch`: the number of 3×3 convolutions and of channels of each block.
        ratio: divides the channels and the hidden units.
        hidden: units of the two hidden layers; 0 leaves them out.
        image_size: H = W of the images, at least 2 ** blocks; the classifier's input follows from it.
            In training, maps of images of another size are pooled to fit.
        in_channels: C.
        num_classes: K.
        batch_norm: normalize after each convolution.
        dropout: probability, after each hidden layer.
        init: `default` is torch's, under which VGG-19 does not learn and VGG-16 starts learning late.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        arch: str = "vgg11",
        *,
        blocks: Sequence[Sequence[int]] | None = None,
        ratio: int = 1,
        hidden: int = 4096,
        image_size: int = 224,
        in_channels: int = 1,
        num_classes: int = 10,
        batch_norm: bool = False,
        dropout: float = 0.5,
        init: Init = "default",
    ) -> None:
        super().__init__()
        kernels, channels = vgg_blocks(arch, blocks)
        check_ratio(ratio, [*channels, hidden])
        check_image_size(image_size, 2 ** len(channels))
        side = image_size // 2 ** len(channels)
        widths, hidden = [width // ratio for width in channels], hidden // ratio
        inputs = [in_channels, *widths[:-1]]
        blocks_of_layers = [_block(*sizes, batch_norm) for sizes in zip(kernels, inputs, widths, strict=True)]
        self.features = nn.Sequential(*blocks_of_layers)
        self.classifier = classifier(widths[-1], side, hidden, num_classes, dropout)
        initialize(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, K) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

    def torchvision_names(self) -> dict[str, str]:
        """Maps each name in the state dict to the name of the same entry in torchvision's VGG.

        torchvision numbers the layers of all blocks in one sequence, and its classifier has no flatten layer.
        """
        prefixes: dict[str, str] = {}
        for b, block in enumerate(self.features):
            for n, _ in enumerate(block.children()):
                prefixes[f"features.{b}.{n}"] = f"features.{len(prefixes)}"
        prefixes |= {f"classifier.{n}": f"classifier.{n - 1}" for n in range(1, len(self.classifier))}
        pairs = ((key, *key.rpartition(".")[::2]) for key in self.state_dict())
        return {key: f"{prefixes[prefix]}.{name}" for key, prefix, name in pairs}


def _block(kernels: Sequence[int | str], in_channels: int, out_channels: int, batch_norm: bool) -> Block:
    """(N, in_channels, H, W) → (N, out_channels, H // 2, W // 2).

    The chapter's block ends in ReLU, then max-pool. Both orders give equal bits, forward and backward; pooling first
    leaves ReLU a quarter of the work.
    """
    layers: list[nn.Module] = []
    for kernel in kernels:
        if isinstance(kernel, int):
            layers.append(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
            in_channels = out_channels
        else:
            # k = 2, n = 5, α = 1e-4, β = 0.75 of Krizhevsky et al. 2012; torch divides its alpha by n
            layers.append(nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0))
    pool = nn.MaxPool2d(kernel_size=2, stride=2)
    layers.insert(len(layers) - isinstance(layers[-1], nn.ReLU), pool)
    return Block(*layers)
