"""Packed convolutions give the usual output and gradients, and are used only where that was chosen."""

import pytest
import torch
from torch import Tensor, nn

from vggexp.models import VGG
from vggexp.models.cpu import fused, packed_conv


def conv(**options: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(5, 6, **{"kernel_size": 3, "padding": 1, **options})


def maps(number: int, size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(number, 5, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("learns", [True, False], ids=["inner", "first"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_output_and_gradients_match_the_plain_convolution(size: int, bias: bool, learns: bool) -> None:
    layer, images = conv(bias=bias).double(), maps(12, size, torch.float64)
    results = []
    for run in (layer, lambda entry: packed_conv.convolve(entry, layer, 4)):
        entry = images.clone().requires_grad_(learns)
        output = run(entry)
        assert output.is_contiguous(memory_format=torch.channels_last)
        wanted = [*layer.parameters(), *([entry] if learns else [])]
        results.append([output, *torch.autograd.grad(output.sin().sum(), wanted)])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("number", "size", "count"),
    [(256, 3, 8), (256, 7, 4), (96, 6, 4), (10, 3, 2), (7, 3, 1), (256, 8, 1), (256, 1, 16), (1, 3, 1)],
)
def test_how_many_images_are_packed(number: int, size: int, count: int) -> None:
    assert packed_conv.images_per_row(maps(number, size), conv()) == count


@pytest.mark.parametrize(
    ("layer", "images"),
    [
        (conv(kernel_size=1, padding=0), maps(8, 3)),
        (conv(stride=2), maps(8, 3)),
        (conv(dilation=2, padding=2), maps(8, 3)),
    ],
    ids=["1×1", "stride", "dilation"],
)
def test_other_convolutions_are_not_packed(layer: nn.Conv2d, images: Tensor) -> None:
    assert packed_conv.images_per_row(images, layer) == 1


def test_images_that_autocast_would_convert_are_not_packed() -> None:
    images = maps(8, 3, torch.float32)
    assert packed_conv.images_per_row(images, conv()) == 8
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_conv.images_per_row(images, conv()) == 1


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_network_learns_the_same_with_packed_convolutions(
    batch_norm: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused.Block, "options", fused.Options(side_by_side=chosen))
    torch.manual_seed(0)
    net = VGG(blocks=[[1, 16], [2, 16]], hidden=0, image_size=14, batch_norm=batch_norm, init="kaiming")
    net, images, used = net.to(memory_format=torch.channels_last), torch.rand(8, 1, 14, 14), []
    convolve = packed_conv.convolve
    monkeypatch.setattr(packed_conv, "convolve", lambda *args: (used.append(args[2]), convolve(*args))[1])

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        return list(torch.autograd.grad(logits.float().square().sum(), list(net.parameters())))

    ours = gradients()
    assert used == ([4, 4] if chosen else [])
    monkeypatch.setattr(packed_conv, "images_per_row", lambda *_: 1)
    assert all(a.dtype == b.dtype for a, b in zip(ours, gradients(), strict=True))
    for a, b in zip(ours, gradients(), strict=True):
        assert (a - b).abs().max() <= 0.03 * b.abs().max() + 1e-3
