"""Bilinear resize of uint8 images on any device, with the bits of PIL's `Image.resize((size, size), BILINEAR)`.

PIL resizes the rows, then the columns; since version 13 the columns first where the height shrinks much more than the
width. Each output pixel is a sum of input pixels with integer weights of 22 fractional bits, rounded to uint8 after
each pass: of two pixels where a side grows, of more where it shrinks.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vggexp.data.source import Fit

_BITS = 22  # as PIL's Resample.c: 32 bits less 8 of the pixel less 2 of headroom


def resize(images: Tensor, size: int, fit: Fit = "stretch") -> Tensor:
    """(N, C, H, W) uint8 → (N, C, size, size) uint8."""
    if images.shape[2] != images.shape[3]:
        images = functional.pad(images, _margins(images, fit))
    planes, (height, width) = images.flatten(0, 1), images.shape[2:]
    columns_first = _prefers_columns(height, width, size) > 0
    if columns_first:
        planes = _resize_columns(planes, size)
    if width != size:
        # picking whole rows is faster than picking pixels, and transposing small images faster than large ones
        planes = _resize_columns(planes.transpose(1, 2).contiguous(), size).transpose(1, 2).contiguous()
    if height != size and not columns_first:
        planes = _resize_columns(planes, size)
    return planes.reshape(*images.shape[:2], size, size)


def prepared(images: Tensor, size: int, fit: Fit = "stretch") -> Tensor:
    """Stored images as a network's input: (N, C, H, W) uint8 → (N, C, size, size) float32 in [0, 1]."""
    return resize(images, size, fit).float().div_(255)


def resize_in_graph(images: Tensor, size: int, fit: Fit = "stretch") -> Tensor:
    """As `resize`, but traced as one graph for all N, H and W; it is slower, and needs float64."""
    (height, width), (left, right, top, bottom) = images.shape[2:], _margins(images, fit)
    rows = functional.pad(_weights(height + top + bottom, size), [-top, -bottom]).to(images.device)
    columns = functional.pad(_weights(width + left + right, size), [-left, -right]).to(images.device).T
    pixels = images.double()
    resized = _rounded(rows @ _rounded(pixels @ columns))
    if fit == "stretch":
        columns_first = torch.full((), _prefers_columns(height, width, size), device=images.device) > 0
        resized = torch.where(columns_first, _rounded(_rounded(rows @ pixels) @ columns), resized)
    return resized.to(torch.uint8)


def _margins(images: Tensor, fit: Fit) -> list[int]:
    """How many pixels to add on the left, right, top and bottom; negative numbers are cut off."""
    height, width = images.shape[2:]
    side: Any  # an integer, or a symbol where traced
    if fit == "crop":
        side = torch.sym_min(height, width)
        left, top = (-((n - side) // 2) for n in (width, height))
    elif fit == "pad":
        side = torch.sym_max(height, width)
        left, top = ((side - n) // 2 + (side - n) % 4 // 3 for n in (width, height))  # round((side - n) / 2), as PIL
    else:
        return [0, 0, 0, 0]
    return [left, side - width - left, top, side - height - top]


def _prefers_columns(height: int, width: int, size: int) -> int | torch.SymInt:
    """Positive where PIL resizes the columns first."""
    return height - size - 2 * torch.sym_max(0, width - size)


def _resize_columns(images: Tensor, size: int) -> Tensor:
    """(N, H, W) → (N, size, W)."""
    (rows, weights), *others = _taps(images.shape[1], size, images.device)
    out = images.index_select(1, rows).to(torch.int32).mul_(weights)
    for rows, weights in others:
        out.addcmul_(images.index_select(1, rows).to(torch.int32), weights)
    return out.add_(1 << (_BITS - 1)).bitwise_right_shift_(_BITS).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _taps(before: int, after: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each tap the input pixel of each output pixel, (after,) int64, and its weight, (after, 1) int32."""
    weights = _weights(before, after).int()
    count = int(weights.count_nonzero(dim=1).max())
    pixels = (weights > 0).int().argmax(dim=1, keepdim=True).clamp(max=before - count) + torch.arange(count)
    columns = zip(pixels.T, weights.gather(1, pixels).T.unsqueeze(2), strict=True)
    return [(rows.contiguous().to(device), weights.contiguous().to(device)) for rows, weights in columns]


def _weights(before: int, after: int) -> Tensor:
    """The weight of each input pixel in each output pixel in units of 2^-22, (after, before) float64, whole numbers."""
    scale = torch.full((), before, dtype=torch.float64) / after
    centers = (torch.arange(after, dtype=torch.float64).unsqueeze(1) + 0.5) * scale
    distances = (torch.arange(before, dtype=torch.float64) - centers + 0.5) * (1 / scale.clamp(min=1))
    weights = (1 - distances.abs()).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True) * (1 << _BITS) + 0.5).floor()


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + (1 << (_BITS - 1))) / (1 << _BITS)).floor()
