"""Stored images as a network's input; the same in training, prediction and export.

N images, C channels, H×W pixels as stored, S×S as the network gets them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from vggexp.data.resize import prepared
from vggexp.data.source import Fit

Normalize = Literal["none", "imagenet", "dataset"]
LARGEST = 10_000  # pixels on a side
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
"""Mean and standard deviation of ImageNet's pixels, which torchvision's weights expect; for gray, their means."""


class Normalization(nn.Module):
    """(N, C, S, S) images in [0, 1] → each channel less its mean, divided by its standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


@dataclass
class Preparation:
    """How images become a network's input."""

    size: int  # S
    fit: Fit
    stored: Sequence[int]  # H and W of the training images
    mean: Sequence[float] = ()  # of each channel, in [0, 1]; empty where nothing is normalized
    std: Sequence[float] = ()

    def __post_init__(self) -> None:
        self.normalize: nn.Module = Normalization(self.mean, self.std) if self.mean else nn.Identity()

    def __call__(self, images: Tensor, size: int | None = None) -> Tensor:
        """(N, C, H, W) uint8 → (N, C, S, S) float32; `size` is another S."""
        ready = prepared(images, size or self.size, self.fit)
        if isinstance(self.normalize, Normalization):  # in place, which takes half of the time
            ready.sub_(self.normalize.mean.to(ready.device)).div_(self.normalize.std.to(ready.device))
        return ready

    def shown(self, ready: Tensor) -> Tensor:
        """(N, C, S, S) as the network gets them → in [0, 1], to be looked at."""
        if not isinstance(self.normalize, Normalization):
            return ready
        return ready * self.normalize.std.to(ready.device) + self.normalize.mean.to(ready.device)

    @property
    def side(self) -> int:
        """Pixels on a side to which new pictures are brought first, so that they are like the training images."""
        height, width = self.stored
        return height if height == width else self.size

    def values(self) -> dict[str, Any]:
        """The arguments as plain values, for a checkpoint."""
        lists = {name: [*getattr(self, name)] for name in ("stored", "mean", "std")}
        return {"size": self.size, "fit": self.fit, **lists}

    @classmethod
    def read(cls, found: Any, channels: int) -> Self:
        """What `values` has returned, from a file that anyone may have written.

        Raises:
            ValueError: it is something else.
        """
        try:
            size, fit, stored, mean, std = (found[key] for key in ("size", "fit", "stored", "mean", "std"))
            sides = all(type(side) is int and 0 < side <= LARGEST for side in (size, *stored)) and len(stored) == 2
            numbers = all(type(number) is float and math.isfinite(number) for number in (*mean, *std))
            fits = fit in get_args(Fit) and len(mean) == len(std) and len(mean) in (0, channels)
            valid = sides and numbers and fits and min(std, default=1) > 0
        except (KeyError, TypeError) as error:
            raise ValueError("it does not say how images are prepared") from error
        if not valid:
            raise ValueError("it says nothing valid of how images are prepared")
        return cls(size, fit, tuple(stored), tuple(mean), tuple(std))


def statistics(pixels: Tensor, indices: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of (N, C, H, W) uint8 images with these indices, in [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.int64)
    for part in indices.split(1024):  # type: ignore[no-untyped-call]
        for count, channel in zip(counts, pixels[part].transpose(0, 1), strict=True):
            count += channel.reshape(-1).bincount(minlength=256)
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    std = (shares @ values**2 - mean**2).clamp_min(0).sqrt()
    return mean.tolist(), [max(value, 1 / 255) for value in std.tolist()]
