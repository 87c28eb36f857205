"""The fast paths compute the same mathematics: a batch in pieces trains like a batch that goes layer by layer."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthetic
from vggexp.models import VGG, AlexNet
from vggexp.models.cpu import compiler, fused
from vggexp.models.cpu.fused import layer_by_layer

NETWORKS: list[Callable[[], nn.Module]] = [
    lambda: VGG("vgg13", ratio=8, image_size=65),
    lambda: VGG("vgg11_lrn", ratio=8, image_size=32),
    lambda: VGG("vgg11", ratio=8, image_size=34, batch_norm=True),
    lambda: AlexNet(ratio=8, image_size=80),
]
SIZES = [65, 32, 34, 80]


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused.Block, "options", fused.Options(piece_bytes=60_000))


def plain(net: nn.Module) -> nn.Module:
    """A copy of the network in which each block is a plain `nn.Sequential`, as in the chapter."""
    copied = copy.deepcopy(net)
    for module in copied.modules():
        if isinstance(module, fused.Block):
            module.__class__ = nn.Sequential  # type: ignore[assignment]
    return copied


def gradients(net: nn.Module, images: Tensor) -> list[Tensor]:
    torch.manual_seed(1)  # for dropout
    return list(torch.autograd.grad(F.cross_entropy(net(images), torch.arange(len(images)) % 10), net.parameters()))


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize(("make", "size"), zip(NETWORKS, SIZES, strict=True))
def test_gradients_match_those_of_the_plain_layers(make: Callable[[], nn.Module], size: int, last: bool) -> None:
    """Uses float64, so that rounding does not move the maximum of a window."""
    torch.manual_seed(0)
    net = make().double().to(memory_format=torch.channels_last if last else torch.contiguous_format)
    images = torch.rand(11, 1, size, size, dtype=torch.float64)
    for ours, theirs in zip(gradients(net, images), gradients(plain(net), images), strict=True):
        assert ours.dtype == torch.float64
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-14)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "size"), zip(NETWORKS, SIZES, strict=True))
def test_evaluation_gives_the_logits_of_training(make: Callable[[], nn.Module], size: int, dtype: torch.dtype) -> None:
    net, images = make().eval(), torch.rand(11, 1, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        learning = net(images)
        with torch.inference_mode():
            assert torch.equal(net(images), learning)
    assert learning.dtype == dtype


def losses(net: nn.Module, lr: float, batch_size: int, steps: int = 40) -> list[float]:
    """The losses of training at 64 px, in the precision of the network's weights."""
    data = synthetic.module(val_size=0, resize=64, batch_size=batch_size)
    data.setup()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    found: list[float] = []
    epoch, dtype = 0, next(net.parameters()).dtype
    while len(found) < steps:
        for batch in data.loader("train", epoch):
            images, labels = data.on_after_batch_transfer(batch, 0)
            torch.manual_seed(len(found))  # for dropout
            loss = F.cross_entropy(net(images.to(dtype)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        epoch += 1
    return found[:steps]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "batch_norm", "winograd", "lr", "last", "tolerance"),
    [
        (torch.float32, False, False, 1e-4, 2.26, 1e-3),
        (torch.float32, False, True, 1e-5, 2.28, 1e-3),
        (torch.float32, True, True, 1e-5, 2.28, 1e-3),
        (torch.float64, False, False, 1e-3, 0.5, 1e-8),
    ],
    ids=["fp32", "fp32, Winograd's", "fp32, batch norm, Winograd's", "fp64"],
)
def test_the_loss_curve_matches_the_plain_path_over_40_steps(
    dtype: torch.dtype,
    batch_norm: bool,
    winograd: bool,
    lr: float,
    last: float,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compares our network with the chapter's: NCHW, one layer after another, ReLU before the max-pool.

    In training, a difference of one rounding grows with every step. In fp32, a low learning rate keeps it small; fp64
    is precise enough for the chapter's rate.
    """
    torch.manual_seed(0)
    monkeypatch.setattr(fused.Block, "options", fused.Options(piece_bytes=60_000, winograd=winograd))
    ratio = 4 if winograd else 16  # with 4, all channels are multiples of the kernels' sixteen
    net = VGG("vgg11", ratio=ratio, image_size=64, batch_norm=batch_norm, init="kaiming").to(dtype)
    chapter = plain(net)
    for block in chapter.features:  # type: ignore[union-attr]
        layers = list(block)
        block.__init__(*layers[:-2], layers[-1], layers[-2])
    batch_size = 16 if winograd else 32
    ours, theirs = (losses(each, lr, batch_size) for each in (net.to(memory_format=torch.channels_last), chapter))
    assert ours[0] > 2.2
    assert ours[-1] < last
    assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.usefixtures("_small_pieces")
def test_layer_by_layer_calls_hooks_only_inside_its_context() -> None:
    net, seen = VGG("vgg11", ratio=8, image_size=64), []
    net.features[0][0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    images = torch.rand(9, 1, 64, 64)
    net.features[1].fused = False
    with layer_by_layer(net.eval()):
        watched = net(images)
    assert seen == [(9, 8, 64, 64)]
    assert torch.equal(watched, plain(net)(images))
    assert [block.fused for block in net.features] == [True, False, True, True, True]
    assert torch.allclose(net(images), watched, atol=1e-6)
    assert len(seen) == 2  # the second call comes from the plain copy, which shares the hook
    with pytest.raises(KeyError), layer_by_layer(net):
        raise KeyError
    assert net.features[0].fused


@pytest.mark.usefixtures("_small_pieces")
def test_an_exported_network_works_for_any_batch_size() -> None:
    net = VGG("vgg11", ratio=8, image_size=64).eval()
    images = torch.rand(12, 1, 64, 64)
    with torch.no_grad():
        batch = {"images": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(net, (images,), dynamic_shapes=batch).module()
        traced = torch.jit.trace(net, (images,))
        for count in (2, 12, 20):
            images = torch.rand(count, 1, 64, 64)
            for copied in (exported, traced):
                assert torch.allclose(copied(images), plain(net)(images), atol=1e-5)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("batch_norm", [True, False])
def test_kernels_are_skipped_for_tensors_without_data(batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under FakeTensorMode, which estimates memory, a kernel would access memory at address zero."""
    from torch._subclasses import FakeTensorMode

    called: list[str] = []
    call = compiler.call
    monkeypatch.setattr(compiler, "call", lambda *args: (called.append(args[1]), call(*args))[1])
    with FakeTensorMode():
        net = VGG("vgg11", ratio=4, image_size=64, in_channels=3, batch_norm=batch_norm)
        net(torch.rand(12, 3, 64, 64).to(memory_format=torch.channels_last)).sum().backward()
    assert called
    assert all(parameter.grad.shape == parameter.shape for parameter in net.parameters())


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"bias": False}])
def test_a_convolution_with_other_options_runs_unchanged(options: dict[str, object]) -> None:
    block = fused.Block(nn.Conv2d(4, 8, 3, padding=1, **options), nn.ReLU())
    maps = torch.rand(16, 4, 32, 32)
    assert torch.equal(block(maps), nn.Sequential(*block)(maps))


def test_a_frozen_network_keeps_no_activations() -> None:
    net = VGG("vgg11", ratio=8, image_size=64).requires_grad_(False)
    assert net(torch.rand(9, 1, 64, 64)).grad_fn is None
