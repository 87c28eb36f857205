"""A convolution, its max-pool and its ReLU on a CPU, a few images at a time: what lies between them stays in the cache.

The mathematics is the layers' own; only the sums over the batch, of the gradients of weights and biases, are taken in
another order. The convolution's output, a network's largest tensor by far, is never held for a whole batch.

N images, C channels, H×W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

PIECE = 7_000_000
"""Bytes of the convolution's output in a piece: few enough for the cache, enough to be worth a call."""

MOST = 64
"""Pieces of a batch, about: more would cost more calls than they save."""

aten = torch.ops.aten


class Block(nn.Sequential):
    """Layers one after another; on a CPU, each `Conv2d [MaxPool2d] ReLU` among them in pieces of the batch.

    A layer with a hook runs as itself, so that the hook sees what it asks for.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        layers = list(self)
        while layers:
            conv, pool, count = _leading(layers)
            if conv is not None and _may_split(maps, layers[:count]) and _images(maps, conv) < len(maps):
                learns = torch.is_grad_enabled() and (maps.requires_grad or conv.weight.requires_grad)
                maps = _Pieces.apply(maps, conv.weight, conv.bias, conv, pool, learns)
            else:
                maps, count = layers[0](maps), 1
            del layers[:count]
        return maps


def _leading(layers: list[nn.Module]) -> tuple[nn.Conv2d | None, nn.MaxPool2d | None, int]:
    """The convolution and the max-pool of a `Conv2d [MaxPool2d] ReLU` that comes first, and how many layers it has."""
    conv, pool = layers[0], layers[1] if len(layers) > 2 else None
    if not isinstance(pool, nn.MaxPool2d):
        pool = None
    count = 2 if pool is None else 3
    if not isinstance(conv, nn.Conv2d) or len(layers) < count or not isinstance(layers[count - 1], nn.ReLU):
        return None, None, 1
    usual = (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
    usual &= conv.bias is not None and not isinstance(conv.padding, str)
    if pool is not None:
        usual &= (pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode) == (0, 1, False, False)
    return (conv, pool, count) if usual else (None, None, 1)  # our networks use no other options


def _may_split(maps: Tensor, layers: list[nn.Module]) -> bool:
    """Whether this is a CPU, nobody watches the layers, and nobody writes down what they do for any batch size."""
    hooks = [(x._forward_hooks, x._forward_pre_hooks, x._backward_hooks, x._backward_pre_hooks) for x in layers]
    written = torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())
    return maps.device.type == "cpu" and not any(map(any, hooks)) and not written


def _images(maps: Tensor, conv: nn.Conv2d) -> int:
    """How many images make a piece: all of them where pieces would not help."""
    size = conv.out_channels * _dtype(maps).itemsize
    for pixels, kernel, stride, padding in zip(
        maps.shape[2:], conv.kernel_size, conv.stride, _pair(conv.padding), strict=True
    ):
        size *= (pixels + 2 * padding - kernel) // stride + 1
    fit = max(1, PIECE // size, len(maps) // MOST)
    return min(len(maps), 1 << (fit.bit_length() - 1))  # a power of two, which the threads can share evenly


def _dtype(maps: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, pool: nn.MaxPool2d | None, learns: bool
    ) -> Tensor:
        ctx.conv, ctx.pool, ctx.images = conv, pool, _images(maps, conv)
        dtype = _dtype(maps)
        kernel, shift = weight.to(dtype), bias.to(dtype)
        output = places = None
        with torch.autocast("cpu", enabled=False):
            for start in range(0, len(maps), ctx.images):
                piece = slice(start, start + ctx.images)
                found = F.conv2d(maps[piece].to(dtype), kernel, shift, conv.stride, conv.padding)
                if output is None:
                    output, places = _room(found, pool, len(maps), learns)
                    ctx.shape = found.shape
                if pool is None:
                    torch.clamp_min(found, 0, out=output[piece])
                else:
                    _max_pool(found, pool, output[piece], None if places is None else places[piece])
                    output[piece].relu_()
                del found  # its memory, still in the cache, is the next piece's
        if learns:
            ctx.save_for_backward(maps, weight, output, places)
        assert output is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        maps, weight, output, places = ctx.saved_tensors
        kernel = weight.to(output.dtype)
        of_maps = torch.empty_like(maps) if ctx.needs_input_grad[0] else None
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight[:, 0, 0, 0])
        scratch = None if places is None else torch.empty(ctx.shape, dtype=output.dtype, memory_format=_format(output))
        for start in range(0, len(maps), ctx.images):
            piece = slice(start, start + ctx.images)
            back = aten.threshold_backward(gradient[piece], output[piece], 0)
            if scratch is not None:
                back = _unpool(back, places[piece], scratch[: len(back)], ctx.pool)
            of_piece, more, shift = aten.convolution_backward(
                back,
                maps[piece].to(output.dtype),
                kernel,
                [len(of_bias)],
                ctx.conv.stride,
                _pair(ctx.conv.padding),
                [1, 1],
                False,
                [0, 0],
                1,
                [of_maps is not None, True, True],
            )
            of_weight += more
            of_bias += shift
            if of_maps is not None:
                of_maps[piece] = of_piece
        return of_maps, of_weight, of_bias, None, None, None


def _room(found: Tensor, pool: nn.MaxPool2d | None, images: int, learns: bool) -> tuple[Tensor, Tensor | None]:
    """For the output of all images and, where they will be asked for, the places of the maxima.

    Args:
        found: what the convolution gives for a piece.
    """
    height, width = found.shape[2:]
    if pool is not None:
        (high, wide), (down, right) = _pair(pool.kernel_size), _pair(pool.stride)
        height, width = (height - high) // down + 1, (width - wide) // right + 1
    shape, last = (images, found.shape[1], height, width), _format(found)
    output = torch.empty(shape, dtype=found.dtype, memory_format=last)
    return output, torch.empty(shape, dtype=torch.int64, memory_format=last) if pool and learns else None


def _format(maps: Tensor) -> torch.memory_format:
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _window(pool: nn.MaxPool2d) -> tuple[Any, ...]:
    return _pair(pool.kernel_size), _pair(pool.stride), (0, 0), (1, 1), False


def _max_pool(maps: Tensor, pool: nn.MaxPool2d, output: Tensor, places: Tensor | None) -> None:
    """Into `output` and, if somebody will ask for them, `places`; 2×2 windows are three times as fast without."""
    if places is not None:
        aten.max_pool2d_with_indices.out(maps, *_window(pool), out=output, indices=places)
    elif _window(pool)[:2] == ((2, 2), (2, 2)):
        maps = maps[..., : 2 * output.shape[2], : 2 * output.shape[3]]
        rows = torch.maximum(maps[:, :, ::2], maps[:, :, 1::2])
        torch.maximum(rows[..., ::2], rows[..., 1::2], out=output)
    else:
        output.copy_(F.max_pool2d(maps, pool.kernel_size, pool.stride))


def _unpool(gradient: Tensor, places: Tensor, back: Tensor, pool: nn.MaxPool2d) -> Tensor:
    """Each pooled value's gradient, at the place of its maximum in `back`."""
    aten.max_pool2d_with_indices_backward.grad_input(gradient, back, *_window(pool), places, grad_input=back)
    return back
