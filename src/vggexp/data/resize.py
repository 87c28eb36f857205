"""Bilinear resize of uint8 images on any device, with the bits of PIL's `Image.resize(size, BILINEAR)`.

PIL resizes rows first, then columns. Each output pixel is a sum of two input pixels with integer weights of 22
fractional bits, rounded to uint8 after each pass. (Enlarging only: shrinking takes more than two pixels.)
"""

import functools
import math

import torch
from torch import Tensor

_BITS = 22  # as PIL's Resample.c: 32 bits less 8 of the pixel less 2 of headroom


def resize(images: Tensor, size: int) -> Tensor:
    """(N, H, W) uint8 → (N, size, size) uint8; a ValueError says that `size` is smaller than the images."""
    height, width = images.shape[-2:]
    if size < max(height, width):
        raise ValueError(f"size={size}: images of {height}×{width} can only be enlarged")
    if width != size:
        # picking whole rows is faster than picking pixels, and transposing small images faster than large ones
        images = _enlarge(images.transpose(1, 2).contiguous(), size).transpose(1, 2).contiguous()
    if height != size:
        images = _enlarge(images, size)
    return images


def prepared(images: Tensor, size: int) -> Tensor:
    """Stored images as a network's input: (N, H, W) uint8 → (N, 1, size, size) float32 in [0, 1]."""
    return resize(images, size).unsqueeze(1).float().div_(255)


def _enlarge(images: Tensor, size: int) -> Tensor:
    """(N, H, W) → (N, size, W)."""
    low, high, weight_low, weight_high = _taps(images.shape[1], size, images.device)
    out = images.index_select(1, low).to(torch.int32).mul_(weight_low.view(-1, 1))
    out.addcmul_(images.index_select(1, high).to(torch.int32), weight_high.view(-1, 1))
    return out.add_(1 << (_BITS - 1)).bitwise_right_shift_(_BITS).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _taps(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each output pixel the two input pixels, int64, and their weights, int32; each (after,)."""
    rows = []
    for x in range(after):
        center = (x + 0.5) * before / after
        first = max(0, int(center - 1.0 + 0.5))
        last = min(before, int(center + 1.0 + 0.5))
        weights = [max(0.0, 1.0 - abs(i - center + 0.5)) for i in range(first, last)]
        fixed = [math.floor(0.5 + weight / sum(weights) * (1 << _BITS)) for weight in weights]
        rows.append((first, min(first + 1, before - 1), fixed[0], fixed[1] if len(fixed) > 1 else 0))
    low, high, weight_low, weight_high = (column.contiguous() for column in torch.tensor(rows, device=device).unbind(1))
    return low, high, weight_low.int(), weight_high.int()
