"""The shapes of the networks and the values that they accept, known without loading torch."""

import math
from collections.abc import Sequence

LRN = "lrn"
KERNELS: dict[str, tuple[tuple[int | str, ...], ...]] = {
    "vgg11": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg11_lrn": ((3, LRN), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg13": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "vgg16_c": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "vgg16": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "vgg19": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
"""Table 1 of the VGG paper, columns A, A-LRN, B, C, D and E: the kernel sizes of each block's convolutions."""

VGG_CHANNELS = (64, 128, 256, 512, 512)
ALEXNET_CHANNELS, ALEXNET_HIDDEN = (96, 256, 384, 384, 256), 4096
ALEXNET_SMALLEST = 65  # pixels; a smaller image leaves nothing after AlexNet's third max-pool


def vgg_blocks(
    arch: str, blocks: Sequence[Sequence[int]] | None
) -> tuple[Sequence[Sequence[int | str]], Sequence[int]]:
    """The kernel sizes and the channels of each block, from `blocks` or, without them, from a column of table 1.

    Raises:
        ValueError: there is no such column.
    """
    if blocks is not None:
        return [(3,) * convolutions for convolutions, _ in blocks], [channels for _, channels in blocks]
    if arch not in KERNELS:
        raise ValueError(f"arch={arch}: must be one of {', '.join(KERNELS)}")
    return KERNELS[arch], VGG_CHANNELS


def check_image_size(image_size: int, smallest: int) -> None:
    """Raises a ValueError, whose message begins with the key, for images that are too small for a network."""
    if image_size < smallest:
        raise ValueError(f"image_size={image_size}: too small for this network; it must be at least {smallest}")


def check_ratio(ratio: int, widths: Sequence[int]) -> None:
    """Raises a ValueError, whose message begins with the key, where a network's widths are not divisible by `ratio`."""
    widest = math.gcd(*widths)
    if ratio < 1 or widest % ratio:
        divisors = ", ".join(str(n) for n in range(1, widest + 1) if widest % n == 0)
        raise ValueError(f"ratio={ratio}: must divide all channels and hidden units; use one of {divisors}")
