"""Winograd's convolutions give the usual output and gradients, up to rounding, and only where they were chosen."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggexp.models import VGG
from vggexp.models.cpu import fused, winograd

NEEDS_COMPILER = pytest.mark.skipif(winograd.compiler.library("winograd") is None, reason="no kernels were compiled")


def conv(inputs: int = 16, outputs: int = 32, **options: int | bool) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1, **options})  # type: ignore[arg-type]
    return made.to(memory_format=torch.channels_last)


def maps(number: int, channels: int, height: int, width: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(number, channels, height, width).contiguous(memory_format=torch.channels_last)


def following(after: int, output: Tensor) -> Tensor:
    """The chapter's order, which gives the same: first ReLU, then the pool."""
    return (
        output
        if after == winograd.NOTHING
        else F.relu(output)
        if after == winograd.RELU
        else F.max_pool2d(F.relu(output), 2)
    )


@NEEDS_COMPILER
@pytest.mark.parametrize("after", [winograd.NOTHING, winograd.RELU, winograd.POOL], ids=["conv", "relu", "pool"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learns", [True, False], ids=["inner", "first"])
@pytest.mark.parametrize(
    ("number", "inputs", "outputs", "height", "width"),
    [(1, 16, 16, 2, 2), (3, 16, 32, 4, 4), (5, 32, 16, 7, 3), (13, 48, 16, 9, 14), (2, 64, 128, 24, 24)],
)
def test_output_and_gradients_match_the_plain_layers(
    number: int, inputs: int, outputs: int, height: int, width: int, learns: bool, bias: bool, after: int
) -> None:
    layer, images = conv(inputs, outputs, bias=bias), maps(number, inputs, height, width)
    results = []
    for exact in (True, False):
        each = conv(inputs, outputs, bias=bias).double() if exact else layer
        entry = (images.double() if exact else images).requires_grad_(learns)
        plain = following(after, each(entry))
        output = plain if exact else winograd.Convolution.apply(entry, each.weight, each.bias, after, True)
        wanted = [*each.parameters(), *([entry] if learns else [])]
        results.append([output, *torch.autograd.grad(output.sin().sum(), wanted)])
    for plain, ours in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == plain.shape
        assert (ours - plain).abs().max() < 1e-4 * plain.abs().max()
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        again = winograd.Convolution.apply(images, layer.weight, layer.bias, after, False)
    assert torch.equal(again, results[1][0])


@NEEDS_COMPILER
@pytest.mark.parametrize("after", [winograd.RELU, winograd.POOL])
def test_a_number_that_is_none_is_passed_on(after: int) -> None:
    layer, images = conv(), maps(1, 16, 8, 8)
    images[0, 3, 1, 1] = torch.nan
    output = winograd.Convolution.apply(images, layer.weight, layer.bias, after, False)
    assert output[:, :, 0, 0].isnan().all()
    assert output[:, :, -1, -1].isfinite().all()


@NEEDS_COMPILER
def test_what_an_image_gives_does_not_depend_on_those_beside_it() -> None:
    layer, images = conv(), maps(11, 16, 10, 10)
    found = [
        winograd.Convolution.apply(each, layer.weight, layer.bias, 0, False) for each in (images, *images.split(1))
    ]
    assert torch.equal(found[0], torch.cat(found[1:]))


@pytest.mark.parametrize(
    "layer",
    [
        conv(kernel_size=1, padding=0),
        conv(kernel_size=5, padding=2),
        conv(stride=2),
        conv(padding=0),
        conv(dilation=2, padding=2),
        conv(groups=2),
        conv(inputs=17),
        conv(outputs=24),
    ],
    ids=["1×1", "5×5", "stride", "padding", "dilation", "groups", "17 inputs", "24 outputs"],
)
def test_other_convolutions_have_no_kernel(layer: nn.Conv2d) -> None:
    assert not winograd.has_kernel(maps(2, layer.in_channels, 8, 8), layer)


@NEEDS_COMPILER
@pytest.mark.parametrize(("size", "saves"), [(2, False), (3, True), (4, True), (5, False), (6, True), (28, True)])
def test_maps_that_leave_much_of_a_tile_empty_have_no_kernel(size: int, saves: bool) -> None:
    assert winograd.has_kernel(maps(2, 16, size, size), conv()) == saves


@NEEDS_COMPILER
def test_other_maps_have_no_kernel() -> None:
    images = maps(2, 16, 8, 8)
    assert winograd.has_kernel(images, conv())
    assert not winograd.has_kernel(images.double(), conv())
    assert not winograd.has_kernel(images, conv().bfloat16())
    assert not winograd.has_kernel(images.bfloat16(), conv())
    assert not winograd.has_kernel(images.contiguous(), conv())
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.has_kernel(images, conv())


@NEEDS_COMPILER
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("chosen", [True, False])
def test_a_network_learns_the_same(batch_norm: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = VGG(blocks=[[1, 16], [2, 32]], hidden=0, image_size=14, batch_norm=batch_norm, init="kaiming")
    net, images, used = net.to(memory_format=torch.channels_last), torch.rand(8, 1, 14, 14), []
    call = winograd._call
    monkeypatch.setattr(winograd, "_call", lambda *args: (used.append(args[1]), call(*args))[1])

    def gradients(**options: int | bool) -> list[Tensor]:
        monkeypatch.setattr(fused.Block, "options", fused.Options(**options))  # type: ignore[arg-type]
        return list(torch.autograd.grad(net(images).square().sum(), list(net.parameters())))

    plain = gradients()
    assert not used
    ours = gradients(winograd=chosen, piece_bytes=30_000)
    after = {winograd.NOTHING} if batch_norm else {winograd.RELU, winograd.POOL}
    assert set(used) == (after if chosen else set())
    scale = max(each.abs().max() for each in plain)
    for one, other in zip(ours, plain, strict=True):
        assert (one - other).abs().max() < 1e-4 * torch.maximum(other.abs().max(), 1e-3 * scale)
