"""Winograd's 3×3 convolution in fp32 on a CPU: 36 multiplications for each tile of 4×4 outputs instead of 144.

The mathematics is the convolution's own; rounding differs. What a tile gives does not depend on the images beside it.

N images, C channels, H×W pixels. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggexp.models.cpu import compiler, packed_conv

PANEL = 16  # channels that the kernels take at a time
TILES = 12  # that a thread transforms and multiplies at once, so that they stay in its cache
TILES_OF_WEIGHTS = 48  # the same in the gradient of the weights, for all threads
SAVED = 2  # times as many multiplications as a direct convolution must need; 4 where a tile's outputs are all wanted


def has_kernel(maps: Tensor, conv: nn.Conv2d) -> bool:
    """Whether there is a kernel for such a convolution, and enough of each tile lies on such maps."""
    height, width = maps.shape[2:]
    saves = height * width >= SAVED * 4 * -(-height // 4) * -(-width // 4)
    usual = packed_conv.usual(conv) and conv.in_channels % PANEL == conv.out_channels % PANEL == 0
    single = maps.dtype == conv.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    names = ("winograd", "winograd_weights")
    return saves and usual and single and all(compiler.has_kernel(maps, name) for name in names)


NOTHING, RELU, POOL = range(3)
"""What follows a convolution and is computed with it: nothing, ReLU, or a 2×2 max-pool and ReLU."""


def _weights(kernel: Tensor, back: bool = False) -> Tensor:
    """(C', C, 3, 3) → (36, C' / PANEL, C, PANEL); `back`, for the gradient of the input, (36, C / PANEL, C', PANEL)."""
    (outputs, inputs, down, across), (count, channels) = kernel.stride(), kernel.shape[:2]
    found = torch.empty(36, count * channels + PANEL)
    if back:  # input and output change places, and the kernel is turned by half
        last = kernel[:, :, 2:, 2:]
        compiler.call(
            "winograd_weights", "forward", kernel.dtype, last, found, inputs, outputs, -down, -across, count, channels
        )
    else:
        compiler.call("winograd_weights", "forward", kernel.dtype, kernel, found, *kernel.stride(), channels, count)
    return found


def _call(function: str, after: int, shape: Sequence[int], outputs: int, tensors: Sequence[Tensor | None]) -> None:
    threads, tiles = (1, TILES_OF_WEIGHTS) if function == "weights" else (torch.get_num_threads(), TILES)
    count, channels, height, width = shape
    scratch = torch.empty(threads, 36, tiles * (channels + outputs) + 2 * PANEL)
    sizes = after, tiles, count, height, width, channels, outputs
    compiler.call("winograd", function, torch.float32, *tensors, scratch, *sizes)


class Convolution(torch.autograd.Function):
    """(N, C, H, W) and weights, (C', C, 3, 3) → (N, C', H, W), or half as high and wide after a pool."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, after: int, needs_gradient: bool
    ) -> Tensor:
        count, _, height, width = maps.shape
        halves = 2 if after == POOL else 1
        shape, last = (count, len(weight), height // halves, width // halves), torch.channels_last
        output, places = torch.empty(shape, memory_format=last), None
        if needs_gradient and after == POOL:
            places = torch.empty(shape, dtype=torch.uint8, memory_format=last)
        _call("forward", after, maps.shape, len(weight), (maps, _weights(weight), bias, output, places))
        if needs_gradient:
            ctx.save_for_backward(maps, weight, output if after == RELU else places)
            ctx.after = after
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, saved = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        (outputs, channels), to_maps = weight.shape[:2], None
        if ctx.needs_input_grad[0]:
            to_maps = torch.empty_like(maps)
            _call("maps", ctx.after, maps.shape, outputs, (gradient, saved, _weights(weight, back=True), to_maps))
        total, to_weight, to_bias = (
            torch.zeros(36, outputs * channels + PANEL),
            torch.empty_like(weight),
            torch.zeros(outputs),
        )
        _call("weights", ctx.after, maps.shape, outputs, (maps, gradient, saved, total, to_bias))
        sizes = (*to_weight.stride(), channels, outputs)
        compiler.call("winograd_weights", "backward", weight.dtype, total, to_weight, *sizes)
        return to_maps, to_weight, to_bias if ctx.needs_input_grad[2] else None, None, None
