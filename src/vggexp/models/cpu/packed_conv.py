"""Convolutions of small maps, several images side by side: a CPU multiplies along a row, and so fills it.

The mathematics is the convolution's own, forward and backward: a column of zeros, its padding, separates neighbors.

N images, C channels, H×W pixels.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROW_PIXELS = 32  # pixels of a row that AMX takes at once in the gradient of the weights, which gains most
MIN_IMAGES = 4  # with fewer images in a row, packing them costs more than it saves
Pair = tuple[int, ...]  # along height and width


def usual(conv: nn.Conv2d) -> bool:
    """Whether a convolution is 3×3 and leaves height and width as they are."""
    same = (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    return same and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")


def images_per_row(maps: Tensor, conv: nn.Conv2d) -> int:
    """How many images to put side by side; 1 where that does not help or `conv` has other options than ours."""
    if not usual(conv) or (torch.is_autocast_enabled("cpu") and maps.dtype != torch.get_autocast_dtype("cpu")):
        return 1
    fit = ROW_PIXELS // (maps.shape[3] + 1)
    return math.gcd(len(maps), 1 << (fit.bit_length() - 1)) if fit >= MIN_IMAGES else 1


def convolve(maps: Tensor, conv: nn.Conv2d, count: int) -> Tensor:
    """(N, C, H, W) → (N, C', H, W), applies `conv` to `count` images side by side; N is a multiple of `count`."""
    output: Tensor = _Conv.apply(maps, conv.weight, conv.bias, count)
    return output


def _pack(maps: Tensor, count: int) -> Tensor:
    """(N, C, H, W) → (N / count, C, H, count · (W + 1)) in channels_last, a column of zeros after each image."""
    images, channels, height, width = maps.shape
    rows = torch.empty(images // count, height, count, width + 1, channels, dtype=maps.dtype)
    rows[:, :, :, width] = 0
    rows[:, :, :, :width] = maps.permute(0, 2, 3, 1).reshape(-1, count, height, width, channels).transpose(1, 2)
    return rows.flatten(2, 3).permute(0, 3, 1, 2)


def _unpack(wide: Tensor, count: int) -> Tensor:
    """Undoes `_pack`, into memory of its own."""
    groups, channels, height, columns = wide.shape
    rows = wide.permute(0, 2, 3, 1).reshape(groups, height, count, columns // count, channels)[:, :, :, :-1]
    shape = (groups * count, channels, height, columns // count - 1)
    maps = torch.empty(shape, dtype=wide.dtype, memory_format=torch.channels_last)
    maps.permute(0, 2, 3, 1).view(groups, count, height, -1, channels).copy_(rows.transpose(1, 2))
    return maps


def gradients(gradient: Tensor, maps: Tensor, kernel: Tensor, stride: Pair, padding: Pair, wanted: list[bool]) -> Any:
    """The gradients of a convolution's input, weight and bias, each a tensor, or None where it is not wanted."""
    options = ([len(kernel)], stride, padding, [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(gradient, maps, kernel, *options, wanted)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
        wide, kernel = _pack(maps, count), weight.to(maps.dtype)
        ctx.save_for_backward(wide, kernel)
        ctx.count, ctx.has_bias = count, bias is not None
        with torch.autocast("cpu", enabled=False):
            return _unpack(F.conv2d(wide, kernel, None if bias is None else bias.to(maps.dtype), padding=1), count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        wide, kernel = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], True, ctx.has_bias]
        to_maps, to_weight, to_bias = gradients(_pack(gradient, ctx.count), wide, kernel, (1, 1), (1, 1), wanted)
        return None if to_maps is None else _unpack(to_maps, ctx.count), to_weight, to_bias, None
