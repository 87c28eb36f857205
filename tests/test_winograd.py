"""Winograd's convolutions give the usual output and gradients, up to rounding, and only where they were chosen."""

import pytest
import torch
from torch import Tensor, nn

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


@NEEDS_COMPILER
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learns", [True, False], ids=["inner", "first"])
@pytest.mark.parametrize(
    ("number", "inputs", "outputs", "height", "width"),
    [(1, 16, 16, 1, 1), (3, 16, 32, 4, 4), (5, 32, 16, 7, 3), (13, 48, 16, 9, 14), (2, 64, 128, 24, 24)],
)
def test_output_and_gradients_match_the_plain_convolution(
    number: int, inputs: int, outputs: int, height: int, width: int, learns: bool, bias: bool
) -> None:
    layer, images = conv(inputs, outputs, bias=bias), maps(number, inputs, height, width)
    assert winograd.has_kernel(images, layer)
    exact, results = conv(inputs, outputs, bias=bias).double(), []
    for run in (exact, lambda entry: winograd.Convolution.apply(entry, layer.weight, layer.bias)):
        single = run is not exact
        entry = (images if single else images.double()).requires_grad_(learns)
        output = run(entry)
        assert output.is_contiguous(memory_format=torch.channels_last)
        wanted = [*(layer if single else exact).parameters(), *([entry] if learns else [])]
        results.append([output, *torch.autograd.grad(output.sin().sum(), wanted)])
    for plain, ours in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == plain.shape
        assert (ours - plain).abs().max() < 3e-5 * plain.abs().max()


@NEEDS_COMPILER
def test_what_an_image_gives_does_not_depend_on_those_beside_it() -> None:
    layer, images = conv(), maps(11, 16, 10, 10)
    together = winograd.convolve(images, layer.weight, layer.bias)
    alone = [winograd.convolve(image[None], layer.weight, layer.bias) for image in images]
    assert torch.equal(together, torch.cat(alone))


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
def test_other_maps_have_no_kernel() -> None:
    images = maps(2, 16, 8, 8)
    assert winograd.has_kernel(images, conv())
    assert not winograd.has_kernel(images.double(), conv())
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
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args: (used.append(len(args[0])), convolve(*args))[1])

    def gradients(**options: int | bool) -> list[Tensor]:
        monkeypatch.setattr(fused.Block, "options", fused.Options(**options))  # type: ignore[arg-type]
        return list(torch.autograd.grad(net(images).square().sum(), list(net.parameters())))

    plain = gradients()
    assert not used
    ours = gradients(winograd=chosen, piece_bytes=30_000)
    assert bool(used) == chosen
    scale = max(each.abs().max() for each in plain)
    for one, other in zip(ours, plain, strict=True):
        assert (one - other).abs().max() < 1e-4 * torch.maximum(other.abs().max(), 1e-3 * scale)
