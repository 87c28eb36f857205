"""2×2 max-pool and ReLU in one pass on a CPU, by a kernel in C++ where there is a compiler for it.

torch's own max-pool keeps an 8-byte place for each maximum and is slow to write it; `maxpool.cpp` keeps one byte.

N images, C channels, H×W pixels, in channels_last.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair

from vggexp.models.cpu import compiler as kernels


def fits(maps: Tensor, pool: nn.MaxPool2d) -> bool:
    """Whether there is a kernel for such maps and such a pool, which has no padding and no dilation."""
    usual = (_pair(pool.kernel_size), _pair(pool.stride)) == ((2, 2), (2, 2))
    return usual and kernels.fits(maps, "maxpool")


def forward(maps: Tensor, output: Tensor, places: Tensor | None) -> None:
    """(N, C, H, W) → `output`, (N, C, H // 2, W // 2), and the places of its maxima, uint8, for `backward`."""
    _call("forward", maps, maps, output, places)


def backward(gradient: Tensor, places: Tensor, back: Tensor) -> None:
    """The gradient of the output, (N, C, H // 2, W // 2) → of the input, into `back`, (N, C, H, W).

    What belongs to no window, a last row or column, is left as it is.
    """
    gradient = gradient.to(back.dtype).contiguous(memory_format=torch.channels_last)
    _call("backward", back, gradient, places, back)


def _call(name: str, large: Tensor, *tensors: Tensor | None) -> None:
    count, channels, height, width = large.shape
    kernels.call("maxpool", name, large.dtype, *tensors, count, height, width, channels)


def room(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """For a gradient of the input: (N, C, H, W), where what belongs to no window is zero already."""
    back = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    return back.zero_() if shape[2] % 2 or shape[3] % 2 else back


class PoolReLU(torch.autograd.Function):
    """Of a whole batch: (N, C, H, W) → (N, C, H // 2, W // 2)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, learns: bool) -> Tensor:
        count, channels, height, width = ctx.shape = maps.shape
        shape, last = (count, channels, height // 2, width // 2), torch.channels_last
        output = torch.empty(shape, dtype=maps.dtype, memory_format=last)
        places = torch.empty(shape, dtype=torch.uint8, memory_format=last) if learns else None
        forward(maps, output, places)
        if learns:
            ctx.save_for_backward(places)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        back = room(ctx.shape, gradient.dtype)
        backward(gradient, places, back)
        return back, None
