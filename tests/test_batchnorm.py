"""The kernels for batch normalization and ReLU agree with torch in output, gradients and running means."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from vggexp.models.cpu import batchnorm
from vggexp.models.cpu.fused import Block, layer_by_layer

pytestmark = pytest.mark.linux  # where the kernels are compiled

TYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The largest difference allowed, as a share of the largest value."""


def layers(channels: int, relu: bool = True) -> Block:
    torch.manual_seed(0)
    block = Block(nn.BatchNorm2d(channels), *([nn.ReLU()] if relu else []))
    for tensor in (block[0].weight, block[0].bias, block[0].running_mean):
        tensor.data.normal_()
    return block


def plain(block: Block) -> nn.Sequential:
    return nn.Sequential(*copy.deepcopy(list(block)))


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random values whose means are far from zero."""
    torch.manual_seed(1)
    return (3 * torch.randn(shape) + 20).to(dtype).contiguous(memory_format=torch.channels_last)


def close(ours: Tensor, theirs: Tensor, share: float) -> bool:
    assert ours.dtype == theirs.dtype
    return bool((ours.double() - theirs.double()).abs().max() <= share * theirs.double().abs().max())


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4, 16, 7, 5), (70, 64, 9, 9), (8, 48, 1, 1), (3, 512, 3, 3)])
def test_training_agrees_with_torch(shape: tuple[int, ...], dtype: torch.dtype, relu: bool) -> None:
    ours, images = layers(shape[1], relu), maps(*shape, dtype=dtype)
    theirs, gradient = plain(ours), torch.randn(shape).to(dtype)
    results = []
    for net in (ours, theirs):
        entry = images.clone().requires_grad_()
        output = net(entry)
        output.backward(gradient)
        results.append([output.detach(), entry.grad, net[0].weight.grad, net[0].bias.grad, *net[0].buffers()])
        assert ("_BatchNorm" in type(output.grad_fn).__name__) == (net is ours)
    assert all(close(a, b, TYPES[dtype]) for a, b in zip(*results, strict=True))
    assert results[0][-1] == 1


@pytest.mark.parametrize("dtype", TYPES)
def test_evaluation_agrees_with_torch(dtype: torch.dtype) -> None:
    ours, images = layers(32).eval(), maps(5, 32, 6, 6, dtype=dtype)
    with torch.no_grad():
        assert batchnorm.has_kernel(images, ours[0])
        assert close(ours(images), plain(ours)(images), TYPES[dtype])
    assert ours[0].num_batches_tracked == 0


def test_the_bits_are_the_same_each_time() -> None:
    images = maps(64, 32, 14, 14)

    def run() -> tuple[Tensor, Tensor]:
        entry = images.clone().requires_grad_()
        output = layers(32)(entry)
        output.square().sum().backward()
        assert entry.grad is not None
        return output, entry.grad

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("dtype", TYPES)
def test_nan_stays_nan(dtype: torch.dtype) -> None:
    images = maps(2, 16, 2, 2, dtype=dtype)
    images[0, 3, 0, 0], images[0, 5, 0, 0] = math.nan, math.inf
    ours = layers(16)
    output = ours(images)
    assert output.isnan().all(dim=(0, 2, 3)).nonzero().flatten().tolist() == [3, 5]
    assert torch.equal(output.isnan(), plain(layers(16))(images).isnan())


def test_bf16_is_rounded_to_the_nearest_value_and_ties_to_even() -> None:
    block = Block(nn.BatchNorm2d(16)).eval()
    block[0].running_var.fill_(1 - block[0].eps)
    block[0].weight.data = torch.linspace(1, 2, 16)
    images = torch.randn(999, 16, 1, 1).bfloat16()
    with torch.no_grad():
        assert torch.equal(block(images), (images.float() * block[0].weight.view(1, -1, 1, 1)).bfloat16())


@pytest.mark.parametrize(
    ("norm", "images"),
    [
        (nn.BatchNorm2d(12), maps(4, 12, 6, 6)),
        (nn.BatchNorm2d(16, momentum=None), maps(4, 16, 6, 6)),
        (nn.BatchNorm2d(16, affine=False), maps(4, 16, 6, 6)),
        (nn.BatchNorm2d(16).double(), maps(4, 16, 6, 6, dtype=torch.float64)),
        (nn.BatchNorm2d(16), maps(4, 16, 6, 6).contiguous()),
        (nn.BatchNorm2d(16).eval(), maps(4, 16, 6, 6)),
    ],
    ids=["12 channels", "cumulative", "no weights", "float64", "NCHW", "gradient in evaluation"],
)
def test_torch_computes_what_has_no_kernel(norm: nn.BatchNorm2d, images: Tensor) -> None:
    assert not batchnorm.has_kernel(images, norm)
    block = Block(norm, nn.ReLU())
    assert torch.equal(plain(block)(images), block(images))


def test_one_value_per_channel_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layers(16)(maps(1, 16, 1, 1))


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_torch_computes_batch_normalization() -> None:
    assert not batchnorm.has_kernel(maps(4, 16, 6, 6), nn.BatchNorm2d(16))


def test_layer_by_layer_shows_the_layers_own_output() -> None:
    block, seen = layers(16), []
    block[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.min()))
    with layer_by_layer(block):
        block(maps(4, 16, 6, 6))
    assert seen[0] < 0
