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

from vggexp.models.cpu import batchnorm, maxpool
from vggexp.models.cpu import packed_conv as sidebyside
from vggexp.system import hardware

PIECE = 28_000_000 if hardware.last_level_cache() >= 2**27 else 7_000_000
"""Bytes of the convolution's output in a piece: few enough for the cache, enough to be worth a call."""

MOST = 64
"""Pieces of a batch, about: more would cost more calls than they save."""

aten = torch.ops.aten


class Block(nn.Sequential):
    """Layers one after another; on a CPU, each `Conv2d [MaxPool2d] ReLU` among them in pieces of the batch, each other
    `MaxPool2d ReLU`, and each `BatchNorm2d [ReLU]`, by a kernel of its own, and small convolutions side by side.

    A layer with a hook runs as itself, so that the hook sees what it asks for.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        layers = list(self)
        while layers:
            maps, count = _fused(maps, layers) or (layers[0](maps), 1)
            del layers[:count]
        return maps


def _leading(layers: list[nn.Module]) -> tuple[nn.Conv2d | None, nn.MaxPool2d | None, int]:
    """What comes first: of `[Conv2d] [MaxPool2d] ReLU` the convolution, the max-pool, and how many layers it has."""
    conv = layers[0] if isinstance(layers[0], nn.Conv2d) else None
    rest = layers if conv is None else layers[1:]
    pool = rest[0] if rest and isinstance(rest[0], nn.MaxPool2d) else None
    rest = rest if pool is None else rest[1:]
    usual = bool(rest) and isinstance(rest[0], nn.ReLU)
    # our networks use no other options
    if conv is not None:
        usual &= (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
        usual &= conv.bias is not None and not isinstance(conv.padding, str)
    if pool is not None:
        usual &= (pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode) == (0, 1, False, False)
    return (conv, pool, len(layers) - len(rest) + 1) if usual else (None, None, 1)


def _may_fuse(maps: Tensor, layers: list[nn.Module]) -> bool:
    """Whether this is a CPU, nobody watches the layers, and nobody writes down what they do for any batch size."""
    hooks = [(x._forward_hooks, x._forward_pre_hooks, x._backward_hooks, x._backward_pre_hooks) for x in layers]
    written = torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())
    return maps.device.type == "cpu" and not any(map(any, hooks)) and not written


def _fused(maps: Tensor, layers: list[nn.Module]) -> tuple[Tensor, int] | None:
    """The output of the first layers, and how many they are; None where there is no faster way than layer by layer."""
    first, grad = layers[0], torch.is_grad_enabled()
    conv, pool, count = _leading(layers)
    if count > 1 and _may_fuse(maps, layers[:count]):
        if conv is not None and _images(maps, conv) < len(maps):
            learns = grad and (maps.requires_grad or conv.weight.requires_grad)
            return _Pieces.apply(maps, conv.weight, conv.bias, conv, pool, learns), count
        if conv is None and pool is not None and maxpool.fits(maps, pool):
            return maxpool.PoolReLU.apply(maps, grad and maps.requires_grad), count
    if isinstance(first, nn.BatchNorm2d):
        count = 2 if len(layers) > 1 and isinstance(layers[1], nn.ReLU) else 1
        if _may_fuse(maps, layers[:count]) and batchnorm.fits(maps, first):
            return batchnorm.batch_norm(maps, first, relu=count > 1), count
    if isinstance(first, nn.Conv2d) and _may_fuse(maps, layers[:1]):
        together = sidebyside.images(maps, first)
        return (sidebyside.convolve(maps, first, together), 1) if together > 1 else None
    return None


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
        ctx.conv, ctx.pool, ctx.images, ctx.one_pass = conv, pool, _images(maps, conv), False
        dtype = _dtype(maps)
        kernel, shift = weight.to(dtype), bias.to(dtype)
        output = places = None
        with torch.autocast("cpu", enabled=False):
            for start in range(0, len(maps), ctx.images):
                piece = slice(start, start + ctx.images)
                found = F.conv2d(maps[piece].to(dtype), kernel, shift, conv.stride, conv.padding)
                if output is None:
                    ctx.shape, ctx.one_pass = found.shape, pool is not None and maxpool.fits(found, pool)
                    output, places = _room(found, pool, len(maps), learns, ctx.one_pass)
                where = None if places is None else places[piece]
                if pool is None:
                    torch.clamp_min(found, 0, out=output[piece])
                elif ctx.one_pass:
                    maxpool.forward(found, output[piece], where)
                else:
                    _max_pool(found, pool, output[piece], where)
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
        scratch = None
        if ctx.one_pass:
            scratch = maxpool.room(ctx.shape, output.dtype)
        elif places is not None:
            scratch = torch.empty(ctx.shape, dtype=output.dtype, memory_format=_format(output))
        for start in range(0, len(maps), ctx.images):
            piece = slice(start, start + ctx.images)
            back = gradient[piece]
            if not ctx.one_pass:
                back = aten.threshold_backward(back, output[piece], 0)
            if scratch is not None:
                back = _unpool(back, places[piece], scratch[: len(back)], None if ctx.one_pass else ctx.pool)
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


def _room(
    found: Tensor, pool: nn.MaxPool2d | None, images: int, learns: bool, one_pass: bool
) -> tuple[Tensor, Tensor | None]:
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
    dtype = torch.uint8 if one_pass else torch.int64
    return output, torch.empty(shape, dtype=dtype, memory_format=last) if pool and learns else None


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


def _unpool(gradient: Tensor, places: Tensor, back: Tensor, pool: nn.MaxPool2d | None) -> Tensor:
    """Each pooled value's gradient, at the place of its maximum in `back`; without a pool, of pool and ReLU at once."""
    if pool is None:
        maxpool.backward(gradient, places, back)
        return back
    aten.max_pool2d_with_indices_backward.grad_input(gradient, back, *_window(pool), places, grad_input=back)
    return back
