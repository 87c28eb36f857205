"""Winograd's 3×3 convolution in fp32 on a CPU: 36 multiplications for each tile of 4×4 outputs instead of 144.

The mathematics is the convolution's own; rounding differs. What a tile gives does not depend on the images beside it.

N images, C channels, H×W pixels. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggexp.models.cpu import compiler

PANEL = 16  # channels that the kernels take at a time
TILES = 12  # that a thread transforms and multiplies at once, so that they stay in its cache
TILES_OF_WEIGHTS = 48  # the same in the gradient of the weights, for all threads
_ROWS = torch.tensor(((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))) / 24
OF_WEIGHTS = torch.kron(_ROWS, _ROWS)
"""(36, 9), from the numbers of a kernel to those by which the numbers of a tile are multiplied."""


def has_kernel(maps: Tensor, conv: nn.Conv2d) -> bool:
    """Whether there is a kernel for such maps and such a convolution."""
    usual = (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    usual &= (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
    usual &= conv.in_channels % PANEL == conv.out_channels % PANEL == 0
    single = maps.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return usual and single and compiler.has_kernel(maps, "winograd")


def convolve(maps: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W) and weights, (C', C, 3, 3) → (N, C', H, W)."""
    count, channels, height, width = maps.shape
    outputs = len(kernel)
    weights = OF_WEIGHTS @ kernel.unflatten(0, (-1, PANEL)).permute(3, 4, 0, 2, 1).reshape(9, -1)
    output = torch.empty(count, outputs, height, width, memory_format=torch.channels_last)
    scratch = torch.empty(torch.get_num_threads(), 36, TILES * (channels + outputs) + 2 * PANEL)
    sizes = TILES, count, height, width, channels, outputs
    compiler.call("winograd", "forward", maps.dtype, maps, weights, bias, output, scratch, *sizes)
    return output


def gradients(gradient: Tensor, maps: Tensor, kernel: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    """The gradients of a convolution's input, weight and bias; None where one is not wanted."""
    count, channels, height, width = maps.shape
    outputs = len(kernel)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    total = torch.zeros(36, outputs // PANEL, channels, PANEL)
    scratch = torch.empty(36, TILES_OF_WEIGHTS * (channels + outputs) + 2 * PANEL)
    sizes = TILES_OF_WEIGHTS, count, height, width, channels, outputs
    compiler.call("winograd", "weights", maps.dtype, maps, gradient, total, scratch, *sizes)
    weights = (OF_WEIGHTS.T @ total.flatten(1)).view(3, 3, -1, channels, PANEL)
    return [
        convolve(gradient, kernel.flip(2, 3).transpose(0, 1)) if wanted[0] else None,
        weights.permute(2, 4, 3, 0, 1).flatten(0, 1),
        gradient.sum((0, 2, 3)) if wanted[2] else None,
    ]


class Convolution(torch.autograd.Function):
    """(N, C, H, W) → (N, C', H, W), for a convolution that has a kernel."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return convolve(maps, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(gradients(gradient, *ctx.saved_tensors, ctx.needs_input_grad))
