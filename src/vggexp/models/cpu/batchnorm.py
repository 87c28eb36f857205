"""Batch normalization and ReLU on a CPU by C++ kernels, in two passes over the maps forward and two backward.

The mathematics is torch's own; its sums over the batch are rounded in another order.

N images, C channels, H×W pixels, in channels_last.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggexp.models.cpu import compiler


def has_kernel(maps: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether there are kernels for such maps and such a layer; our networks use no other options."""
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None and norm.num_features % 16 == 0
    usual = usual and norm.weight.dtype == torch.float32
    # a single value has no variance, and in evaluation the gradient is another
    usual &= maps.numel() > norm.num_features if norm.training else not torch.is_grad_enabled()
    return usual and compiler.has_kernel(maps, "batchnorm")


def batch_norm(maps: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """(N, C, H, W) → (N, C, H, W): applies `norm`, which updates its running statistics in training, then ReLU."""
    mean: Any = norm.running_mean
    variance: Any = norm.running_var
    if norm.training:
        mean, variance = _batch_statistics(maps.detach(), norm, mean, variance)
    output: Tensor = _BatchNorm.apply(maps, norm.weight, norm.bias, mean, (variance + norm.eps).rsqrt(), relu)
    return output


def _batch_statistics(maps: Tensor, norm: Any, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the maps' means and variances, both (C,) float32, and moves the running ones towards them in place."""
    origin = maps[0, :, 0, 0].float()  # near the mean, so that its square does not swallow the variance
    mean, square = torch.empty_like(origin, dtype=torch.float64), torch.empty_like(origin, dtype=torch.float64)
    _call("moments", maps, maps, origin, mean, square, relu=False)
    mean, variance = (origin + mean).float(), (square - mean * mean).clamp_(min=0).float()
    count = maps.numel() // norm.num_features
    means.lerp_(mean, norm.momentum)
    variances.lerp_(variance * (count / (count - 1)), norm.momentum)
    norm.num_batches_tracked.add_(1)
    return mean, variance


def _call(name: str, maps: Tensor, *tensors: Tensor, relu: bool) -> None:
    channels = maps.shape[1]
    compiler.call("batchnorm", name, maps.dtype, *tensors, maps.numel() // channels, channels, relu)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, relu: bool) -> Tensor:
        scale = weight * rstd
        shift = bias - mean * scale
        output = torch.empty_like(maps)
        _call("apply", maps, maps, scale, shift, output, relu=relu)
        ctx.relu = relu
        ctx.save_for_backward(maps, scale, shift, mean, rstd)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        maps, scale, shift, mean, rstd = ctx.saved_tensors
        gradient = gradient.to(maps.dtype).contiguous(memory_format=torch.channels_last)
        sums, products = torch.empty_like(mean, dtype=torch.float64), torch.empty_like(mean, dtype=torch.float64)
        _call("gradient_sums", maps, gradient, maps, scale, shift, mean, sums, products, relu=ctx.relu)
        count, maps_gradient = maps.numel() // maps.shape[1], torch.empty_like(maps)
        tilt, offset = (-scale * rstd**2 * products / count).float(), (-scale * sums / count).float()
        _call("backward", maps, gradient, maps, scale, shift, mean, tilt, offset, maps_gradient, relu=ctx.relu)
        return maps_gradient, (products * rstd).float(), sums.float(), None, None, None
