"""VGG (Simonyan & Zisserman 2014, arXiv 1409.1556), as the chapter builds it, at every depth and width.

    net = VGG("vgg11", ratio=4, image_size=96)
    net = VGG(blocks=[[1, 32], [2, 64]], hidden=256, image_size=28)  # [convolutions, channels] of each block
    logits = net(images)  # (N, C, H, W) → (N, K)

N images, C channels, H = W pixels, K classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vggexp.models.cpu.fused import Block
from vggexp.models.layers import Init, classifier, initialise

LRN = "lrn"
KERNELS: dict[str, tuple[tuple[int | str, ...], ...]] = {
    "vgg11": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg11_lrn": ((3, LRN), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg13": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "vgg16_c": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "vgg16": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "vgg19": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
"""The paper's table 1, columns A, A-LRN, B, C, D and E: the kernel sizes of each block's convolutions."""

CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Blocks of convolutions, each halving height and width, then three fully connected layers.

    Args:
        arch: a key of `KERNELS`: five blocks of 64, 128, 256, 512 and 512 channels.
        blocks: instead of `arch`: of each block the number of its 3×3 convolutions and of its channels.
        ratio: divides the channels and the hidden units.
        hidden: units of the two hidden layers; 0 leaves them out.
        image_size: H = W of the images, at least 2 ** blocks; the classifier's input follows from it.
        in_channels: C.
        num_classes: K.
        batch_norm: normalise after each convolution.
        dropout: probability, after each hidden layer.
        init: `default` is torch's, under which VGG-19 does not learn and VGG-16 wakes late.

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
        if blocks is None and arch not in KERNELS:
            raise ValueError(f"arch={arch}: must be one of {', '.join(KERNELS)}")
        kernels = KERNELS[arch] if blocks is None else [(3,) * convs for convs, _ in blocks]
        widths = CHANNELS if blocks is None else [channels for _, channels in blocks]
        if ratio < 1 or any(width % ratio for width in (*widths, hidden)):
            raise ValueError(f"ratio={ratio}: must divide {', '.join(map(str, sorted({*widths, hidden})))}")
        side = image_size // 2 ** len(widths)
        if side < 1:
            raise ValueError(f"image_size={image_size}: {len(widths)} blocks need at least {2 ** len(widths)}")
        widths, hidden = [width // ratio for width in widths], hidden // ratio
        befores = [in_channels, *widths[:-1]]
        self.features = nn.Sequential(
            *(_block(*sizes, batch_norm) for sizes in zip(kernels, befores, widths, strict=True)),
        )
        self.classifier = classifier(widths[-1] * side * side, hidden, num_classes, dropout)
        initialise(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, K) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

    def torchvision_names(self) -> dict[str, str]:
        """The names under which torchvision's VGG keeps the entries of our state dict, by our names.

        torchvision numbers the layers of all blocks in one sequence, and its classifier has no flatten layer.
        """
        prefixes: dict[str, str] = {}
        for b, block in enumerate(self.features):
            assert isinstance(block, nn.Sequential)
            for n in range(len(block)):
                prefixes[f"features.{b}.{n}"] = f"features.{len(prefixes)}"
        prefixes |= {f"classifier.{n}": f"classifier.{n - 1}" for n in range(1, len(self.classifier))}
        pairs = ((key, *key.rpartition(".")[::2]) for key in self.state_dict())
        return {key: f"{prefixes[prefix]}.{name}" for key, prefix, name in pairs}


def _block(kernels: Sequence[int | str], before: int, after: int, batch_norm: bool) -> Block:
    """(N, before, H, W) → (N, after, H // 2, W // 2).

    The chapter's block ends in ReLU, then max-pool. Both orders give equal bits, forward and backward; pooling first
    leaves ReLU a quarter of the work.
    """
    layers: list[nn.Module] = []
    for kernel in kernels:
        if isinstance(kernel, int):
            layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.ReLU(inplace=True))
            before = after
        else:
            # k = 2, n = 5, α = 1e-4, β = 0.75 of Krizhevsky et al. 2012; torch divides its alpha by n
            layers.append(nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0))
    pool = nn.MaxPool2d(kernel_size=2, stride=2)
    layers.insert(len(layers) - isinstance(layers[-1], nn.ReLU), pool)
    return Block(*layers)
