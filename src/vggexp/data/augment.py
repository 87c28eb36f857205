"""Random changes of training images that keep their class, on any device.

Those of stored bytes (flip, shift, cutout) draw from a generator of the batch. The others are torchvision's, which draw
from torch's own generator; it is set for the batch and then put back.

N images of a batch, C channels, H×W pixels as stored, S×S as the network gets them, K classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(kw_only=True, eq=False, repr=False)
class Augmentation:
    """The changes; what is off draws no random numbers."""

    flip: bool = False  # mirrors every second image, left to right
    shift: int = 0  # moves by up to so many stored pixels each way; the pixels that come in are black
    cutout: int = 0  # blackens a square of this side, centered on any pixel (DeVries & Taylor, "Cutout", 2017)
    rotate: float = 0.0  # turns by up to so many degrees each way
    resized_crop: float | None = None  # takes a part of at least this share of the image
    color_jitter: float = 0.0  # changes brightness, contrast and saturation by up to this share
    mixup: float = 0.0  # mixes pairs of images (Zhang et al. 2018), by a share from Beta(mixup, mixup)
    cutmix: float = 0.0  # puts a rectangle of one image into another (Yun et al. 2019); with mixup, one of both

    def of_bytes(self, images: Tensor, generator: Generator) -> Tensor:
        """(N, C, H, W) uint8 → the same shape, flipped, shifted and cut out; `generator` is on the images' device."""
        if self.flip or self.shift:
            images = _flip_and_shift(images, generator, self.flip, self.shift)
        if self.cutout:
            images = images.masked_fill(_square_masks(images, generator, self.cutout).unsqueeze(1), 0)
        return images

    def transformed(self, images: Tensor, size: int, seed: int) -> Tensor:
        """(N, C, H, W) uint8, each image turned, cropped to (size, size), and colored on its own."""
        if not (self.rotate or self.resized_crop or self.color_jitter) or len(images) == 0:
            return images
        from torchvision.transforms import v2

        steps: list[Any] = []
        if self.rotate:
            steps.append(v2.RandomRotation(self.rotate, v2.InterpolationMode.BILINEAR))
        if self.resized_crop:
            steps.append(v2.RandomResizedCrop(size, scale=(self.resized_crop, 1.0)))
        if self.color_jitter:
            steps.append(v2.ColorJitter(self.color_jitter, self.color_jitter, self.color_jitter))
        transform = v2.Compose(steps)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([transform(image) for image in images])

    def mixed(self, images: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """(N, C, S, S) float32 and (N,) labels → images mixed in pairs and the shares of their classes, (N, K)."""
        if not (self.mixup or self.cutmix) or len(images) == 0:
            return images, labels
        from torchvision.transforms import v2

        kinds = {v2.MixUp: self.mixup, v2.CutMix: self.cutmix}
        choices = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds.items() if alpha]
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            images, labels = v2.RandomChoice(choices)(images, labels)
        return images, labels


def _flip_and_shift(images: Tensor, generator: Generator, flip: bool, shift: int) -> Tensor:
    (count, channels, height, width), device = images.shape, images.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(0), columns)
    if shift:
        images = F.pad(images, (shift, shift, shift, shift))
        moves = torch.randint(2 * shift + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = rows + moves[0], columns + moves[1]
    pixels = (rows.view(-1, height, 1) * images.shape[3] + columns.view(-1, 1, width)).expand(count, -1, -1)
    picked = images.flatten(2).gather(2, pixels.flatten(1).unsqueeze(1).expand(-1, channels, -1))
    return picked.view(count, channels, height, width)


def _square_masks(images: Tensor, generator: Generator, side: int) -> Tensor:
    """(N, H, W) bool, true within each image's square, which may hang over the edge."""

    def within(size: int) -> Tensor:
        center = torch.randint(size, (len(images), 1), generator=generator, device=images.device)
        pixels = torch.arange(size, device=images.device) - center + side // 2
        return (pixels >= 0) & (pixels < side)

    height, width = images.shape[2:]
    return within(height).unsqueeze(2) & within(width).unsqueeze(1)
