"""Runs a convolution, its max-pool and its ReLU on a CPU a few images at a time, so that the maps stay in the cache.

The convolution's output, a network's largest tensor by far, is never held for a whole batch.

The mathematics is the layers' own; only the gradients of weights and biases are summed over the batch in another order.

N images, C channels, H×W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vggexp.models.cpu import batchnorm, maxpool, packed_conv, winograd
from vggexp.models.cpu.maxpool import pair
from vggexp.models.cpu.packed_conv import gradients

MAX_PIECES = 64  # pieces of a batch, about: the calls for more of them would cost more than they save

Pool = nn.MaxPool2d | None
aten = torch.ops.aten


class Options(NamedTuple):
    """How blocks run; what is fastest depends on the machine, and `tuning` measures it."""

    piece_bytes: int = 7_000_000  # of a convolution's output for one piece: it fits into the cache and is worth a call
    side_by_side: bool = False  # convolutions of small maps
    winograd: bool = False  # Winograd's algorithm where it has a kernel


class Block(nn.Sequential):
    """Layers one after another, several of them at once on a CPU where that is faster.

    Each `Conv2d [MaxPool2d] ReLU` runs in pieces of the batch, each other `MaxPool2d ReLU` and each `BatchNorm2d
    [ReLU]` by a C++ kernel, and a convolution of small maps on several images side by side. Hooks of these layers are
    not called, except within `layer_by_layer`.
    """

    fused: bool = True
    options = Options()

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        # an exported network has to work for any batch size and on any machine
        exported = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        fuse = self.fused and maps.device.type == "cpu" and not exported
        layers = list(self)
        while layers:
            maps, count = (_run_fused(maps, layers, self.options) if fuse else None) or (layers[0](maps), 1)
            del layers[:count]
        return maps


@contextmanager
def layer_by_layer(net: nn.Module) -> Iterator[None]:
    """Runs every layer of a network as itself for a while, so that its hooks are called."""
    before = [(module, module.fused) for module in net.modules() if isinstance(module, Block)]
    try:
        for block, _ in before:
            block.fused = False
        yield
    finally:
        for block, fused in before:
            block.fused = fused


def _leading_layers(layers: list[nn.Module]) -> tuple[nn.Conv2d | None, nn.MaxPool2d | None, int]:
    """The convolution and the max-pool of a leading `[Conv2d] [MaxPool2d] ReLU`, and how many layers it has."""
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


def _run_fused(maps: Tensor, layers: list[nn.Module], options: Options) -> tuple[Tensor, int] | None:
    """The output of the leading layers and how many they are; None where layer by layer is fastest."""
    first, grad = layers[0], torch.is_grad_enabled()
    conv, pool, count = _leading_layers(layers)
    if isinstance(first, nn.Conv2d) and options.winograd and winograd.has_kernel(maps, first):
        with_pool = pool is not None and maxpool.usual(pool)
        after = winograd.POOL if with_pool else winograd.RELU if count > 1 and pool is None else winograd.NOTHING
        needs_gradient = grad and (maps.requires_grad or first.weight.requires_grad)
        output = winograd.Convolution.apply(maps, first.weight, first.bias, after, needs_gradient)
        return output, count if after else 1
    if count > 1:
        if conv is not None and images_per_piece(maps, conv, options.piece_bytes) < len(maps):
            needs_gradient = grad and (maps.requires_grad or conv.weight.requires_grad)
            return _InPieces.apply(maps, conv.weight, conv.bias, conv, pool, options, needs_gradient), count
        if conv is None and pool is not None and maxpool.has_kernel(maps, pool):
            return maxpool.PoolReLU.apply(maps, grad and maps.requires_grad), count
    if isinstance(first, nn.BatchNorm2d):
        count = 2 if len(layers) > 1 and isinstance(layers[1], nn.ReLU) else 1
        if batchnorm.has_kernel(maps, first):
            return batchnorm.batch_norm(maps, first, relu=count > 1), count
    if isinstance(first, nn.Conv2d) and options.side_by_side:
        count = packed_conv.images_per_row(maps, first)
        return (packed_conv.convolve(maps, first, count), 1) if count > 1 else None
    return None


def images_per_piece(maps: Tensor, conv: nn.Conv2d, piece_bytes: int) -> int:
    """How many images make a piece: all of them where pieces do not help."""
    size = conv.out_channels * _dtype(maps).itemsize
    for n, padding in enumerate(pair(conv.padding)):
        size *= (maps.shape[2 + n] + 2 * padding - conv.kernel_size[n]) // conv.stride[n] + 1
    fit = max(1, piece_bytes // size, len(maps) // MAX_PIECES)
    return min(len(maps), 1 << (fit.bit_length() - 1))  # a power of two, which the threads share evenly


def _dtype(maps: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        conv: nn.Conv2d,
        pool: Pool,
        options: Options,
        needs_gradient: bool,
    ) -> Tensor:
        ctx.conv, ctx.pool, ctx.one_pass = conv, pool, False
        ctx.images = images_per_piece(maps, conv, options.piece_bytes)
        dtype = _dtype(maps)
        kernel, shift = weight.to(dtype), bias.to(dtype)
        output: Any = None
        positions = None
        with torch.autocast("cpu", enabled=False):
            for start in range(0, len(maps), ctx.images):
                piece = slice(start, start + ctx.images)
                found = F.conv2d(maps[piece].to(dtype), kernel, shift, conv.stride, conv.padding)
                if output is None:
                    ctx.shape, ctx.one_pass = found.shape, pool is not None and maxpool.has_kernel(found, pool)
                    output, positions = _buffers(found, pool, len(maps), needs_gradient, ctx.one_pass)
                where = None if positions is None else positions[piece]
                if pool is None:
                    torch.clamp_min(found, 0, out=output[piece])
                elif ctx.one_pass:
                    maxpool.forward(found, output[piece], where)
                else:
                    _max_pool(found, pool, output[piece], where)
                    output[piece].relu_()
                del found  # the next piece reuses its memory, which is still in the cache
        if needs_gradient:
            ctx.save_for_backward(maps, weight, output, positions)
        return output  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None, None]:
        maps, weight, output, positions = ctx.saved_tensors
        kernel = weight.to(output.dtype)
        maps_gradient = torch.empty_like(maps) if ctx.needs_input_grad[0] else None
        weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(weight[:, 0, 0, 0])
        padding, wanted = pair(ctx.conv.padding), [maps_gradient is not None, True, True]
        scratch = None
        if ctx.one_pass:
            scratch = maxpool.gradient_buffer(ctx.shape, output.dtype)
        elif positions is not None:
            scratch = torch.empty(ctx.shape, dtype=output.dtype, memory_format=_format(output))
        for start in range(0, len(maps), ctx.images):
            piece = slice(start, start + ctx.images)
            piece_gradient = gradient[piece]
            if not ctx.one_pass:
                piece_gradient = aten.threshold_backward(piece_gradient, output[piece], 0)
            if scratch is not None:
                buffer = scratch[: len(piece_gradient)]
                if ctx.one_pass:
                    maxpool.backward(piece_gradient, positions[piece], buffer)
                else:
                    unpool = aten.max_pool2d_with_indices_backward.grad_input
                    unpool(piece_gradient, buffer, *_window(ctx.pool), positions[piece], grad_input=buffer)
                piece_gradient = buffer
            of_piece = maps[piece].to(output.dtype)
            to_maps, to_weight, to_bias = gradients(piece_gradient, of_piece, kernel, ctx.conv.stride, padding, wanted)
            weight_gradient += to_weight
            bias_gradient += to_bias
            if maps_gradient is not None:
                maps_gradient[piece] = to_maps
        return maps_gradient, weight_gradient, bias_gradient, None, None, None, None


def _buffers(found: Tensor, pool: Pool, images: int, needs_gradient: bool, one_pass: bool) -> tuple[Any, Any]:
    """Memory for the output of all images and, for the backward pass, for the positions of its maxima."""
    height, width = found.shape[2:]
    if pool is not None:
        (high, wide), (down, right) = pair(pool.kernel_size), pair(pool.stride)
        height, width = (height - high) // down + 1, (width - wide) // right + 1
    shape, last = (images, found.shape[1], height, width), _format(found)
    output = torch.empty(shape, dtype=found.dtype, memory_format=last)
    dtype = torch.uint8 if one_pass else torch.int64
    return output, torch.empty(shape, dtype=dtype, memory_format=last) if pool and needs_gradient else None


def _format(maps: Tensor) -> torch.memory_format:
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _window(pool: nn.MaxPool2d) -> tuple[Any, ...]:
    return pair(pool.kernel_size), pair(pool.stride), (0, 0), (1, 1), False


def _max_pool(maps: Tensor, pool: nn.MaxPool2d, output: Tensor, positions: Tensor | None) -> None:
    """Writes `output` and the `positions` of its maxima; without these, 2×2 windows are three times as fast."""
    if positions is not None:
        aten.max_pool2d_with_indices.out(maps, *_window(pool), out=output, indices=positions)
    elif _window(pool)[:2] == ((2, 2), (2, 2)):
        maps = maps[..., : 2 * output.shape[2], : 2 * output.shape[3]]
        rows = torch.maximum(maps[:, :, ::2], maps[:, :, 1::2])
        torch.maximum(rows[..., ::2], rows[..., 1::2], out=output)
    else:
        output.copy_(F.max_pool2d(maps, pool.kernel_size, pool.stride))
