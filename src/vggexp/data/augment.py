"""Random changes of training images that keep their class, on whole batches of bytes, on any device.

N images of a batch, H×W pixels as stored: a shift by one is a shift by resize / 28 pixels of the network's input.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def augment(images: Tensor, generator: Generator, *, flip: bool = False, shift: int = 0, cutout: int = 0) -> Tensor:
    """(N, H, W) uint8 → (N, H, W) uint8, each image changed on its own; an option that is off draws no random numbers.

    Args:
        generator: on the images' device.
        flip: mirrors every second image, left to right.
        shift: moves by up to so many pixels each way; the pixels that come in are black.
        cutout: blackens a square of this side, centered on any pixel (DeVries & Taylor, "Cutout", 2017).
    """
    if flip or shift:
        images = _flip_and_shift(images, generator, flip, shift)
    if cutout:
        images = images.masked_fill(_square_masks(images, generator, cutout), 0)
    return images


def _flip_and_shift(images: Tensor, generator: Generator, flip: bool, shift: int) -> Tensor:
    (count, height, width), device = images.shape, images.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(0), columns)
    if shift:
        images = F.pad(images, (shift, shift, shift, shift))
        moves = torch.randint(2 * shift + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = rows + moves[0], columns + moves[1]
    # picking single bytes by one index is faster than indexing by three tensors
    _, high, wide = images.shape
    first = torch.arange(count, device=device).view(-1, 1, 1) * (high * wide)
    pixels = first + rows.view(-1, height, 1) * wide + columns.view(-1, 1, width)
    return images.reshape(-1)[pixels]


def _square_masks(images: Tensor, generator: Generator, side: int) -> Tensor:
    """(N, H, W) bool, true within each image's square, which may hang over the edge."""
    (count, height, width), device = images.shape, images.device

    def within(size: int) -> Tensor:
        center = torch.randint(size, (count, 1), generator=generator, device=device)
        start = center - side // 2
        pixels = torch.arange(size, device=device)
        return (pixels >= start) & (pixels < start + side)

    return within(height).unsqueeze(2) & within(width).unsqueeze(1)
