"""2×2 max-pool and ReLU in one pass on a CPU, by a C++ kernel.

torch's own max-pool keeps an 8-byte position of each maximum and is slow to write it; `maxpool.cpp` keeps one byte.

N images, C channels, H×W pixels, in channels_last.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggexp.models.cpu import compiler


def pair(size: Any) -> tuple[int, int]:
    """Height and width, as torch's layers write them: one number stands for both."""
    return size if isinstance(size, tuple) else (size, size)


def usual(pool: nn.MaxPool2d) -> bool:
    """Whether a pool, which has no padding and no dilation, halves height and width."""
    return pair(pool.kernel_size) == pair(pool.stride) == (2, 2)


def has_kernel(maps: Tensor, pool: nn.MaxPool2d) -> bool:
    """Whether there is a kernel for such maps and such a pool."""
    return usual(pool) and compiler.has_kernel(maps, "maxpool")


def forward(maps: Tensor, output: Tensor, positions: Tensor | None) -> None:
    """(N, C, H, W) → `output`, (N, C, H // 2, W // 2), and the positions of its maxima, uint8, for `backward`."""
    _call("forward", maps, maps, output, positions)


def backward(gradient: Tensor, positions: Tensor, input_gradient: Tensor) -> None:
    """The gradient of the output, (N, C, H // 2, W // 2) → `input_gradient`, (N, C, H, W).

    A last row or column that belongs to no window is left as it is.
    """
    gradient = gradient.to(input_gradient.dtype).contiguous(memory_format=torch.channels_last)
    _call("backward", input_gradient, gradient, positions, input_gradient)


def _call(name: str, large: Tensor, *tensors: Tensor | None) -> None:
    count, channels, height, width = large.shape
    compiler.call("maxpool", name, large.dtype, *tensors, count, height, width, channels)


def gradient_buffer(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory for an input's gradient, (N, C, H, W), zero where a last row or column belongs to no window."""
    buffer = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    return buffer.zero_() if shape[2] % 2 or shape[3] % 2 else buffer


class PoolReLU(torch.autograd.Function):
    """Pools a whole batch: (N, C, H, W) → (N, C, H // 2, W // 2)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, needs_gradient: bool) -> Tensor:
        count, channels, height, width = ctx.shape = maps.shape
        shape, last = (count, channels, height // 2, width // 2), torch.channels_last
        output = torch.empty(shape, dtype=maps.dtype, memory_format=last)
        positions = torch.empty(shape, dtype=torch.uint8, memory_format=last) if needs_gradient else None
        forward(maps, output, positions)
        if needs_gradient:
            ctx.save_for_backward(positions)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        input_gradient = gradient_buffer(ctx.shape, gradient.dtype)
        backward(gradient, positions, input_gradient)
        return input_gradient, None
