"""The networks match the chapter and the paper at every depth, width and image size."""

import copy
import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggexp.data import DataModule, FashionMNIST
from vggexp.models import VGG
from vggexp.models.architecture import KERNELS
from vggexp.models.layers import Flatten


def shapes(net: VGG, images: Tensor) -> list[tuple[int, ...]]:
    """The shapes after each block, then after each layer of the classifier."""
    found = []
    for layer in (*net.features, *net.classifier):
        images = layer(images)
        found.append(tuple(images.shape))
    return found


def test_shapes_are_the_chapters() -> None:
    with torch.device("meta"):
        net, images = VGG("vgg11"), torch.empty(1, 1, 224, 224)
    found = shapes(net, images)
    assert found[:5] == [(1, 64, 112, 112), (1, 128, 56, 56), (1, 256, 28, 28), (1, 512, 14, 14), (1, 512, 7, 7)]
    assert found[5] == (1, 25088)
    assert [shape for shape, layer in zip(found[5:], net.classifier, strict=True) if isinstance(layer, nn.Linear)] == [
        (1, 4096), (1, 4096), (1, 10)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "size", "millions"), [(1, 224, 128.8), (4, 224, 8.06), (4, 96, 2.82)]
)  # fmt: skip
def test_parameter_counts_are_the_chapters(ratio: int, size: int, millions: float) -> None:
    with torch.device("meta"):
        net = VGG("vgg11", ratio=ratio, image_size=size)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(
    ("arch", "convs"),
    [
        ("vgg11", (1, 1, 2, 2, 2)),
        ("vgg11_lrn", (1, 1, 2, 2, 2)),
        ("vgg13", (2, 2, 2, 2, 2)),
        ("vgg16_c", (2, 2, 3, 3, 3)),
        ("vgg16", (2, 2, 3, 3, 3)),
        ("vgg19", (2, 2, 4, 4, 4)),
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_depth_is_the_papers(arch: str, convs: tuple[int, ...], batch_norm: bool) -> None:
    with torch.device("meta"):
        net, images = VGG(arch, ratio=64, batch_norm=batch_norm), torch.rand(2, 1, 224, 224)
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in net.modules()) == int(arch[3:5])
    assert tuple(sum(isinstance(x, nn.Conv2d) for x in block) for block in net.features) == convs
    assert sum(isinstance(x, nn.BatchNorm2d) for x in net.modules()) == batch_norm * sum(convs)
    assert net(images).shape == (2, 10)


def test_the_third_convolutions_of_c_are_1x1() -> None:
    blocks = VGG("vgg16_c", ratio=64).features
    kernels = [[x.kernel_size[0] for x in block if isinstance(x, nn.Conv2d)] for block in blocks]
    assert kernels == [[3, 3], [3, 3], [3, 3, 1], [3, 3, 1], [3, 3, 1]]


def test_lrn_has_krizhevskys_parameters_and_follows_the_first_relu() -> None:
    block = VGG("vgg11_lrn", ratio=4).features[0]
    assert [type(layer).__name__ for layer in block] == ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    maps = 5 * torch.rand(2, 16, 3, 3)
    near = torch.stack([maps[:, max(0, i - 2) : i + 3].square().sum(dim=1) for i in range(16)], dim=1)
    assert torch.allclose(block[2](maps), maps / (2 + 1e-4 * near) ** 0.75)


def test_any_other_network_comes_from_its_blocks() -> None:
    net = VGG(blocks=[[1, 32], [2, 64]], hidden=128, ratio=2, image_size=28)
    assert shapes(net, torch.rand(1, 1, 28, 28))[:2] == [(1, 16, 14, 14), (1, 32, 7, 7)]
    assert [type(layer).__name__ for layer in net.features[1]] == ["Conv2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU"]
    assert net.classifier[1].in_features == 32 * 7 * 7
    assert net.classifier[4].in_features == 64


@pytest.mark.parametrize("size", [32, 33, 63, 95, 96, 100])
def test_any_size_from_32_fits(size: int) -> None:
    assert VGG(ratio=64, image_size=size)(torch.rand(2, 1, size, size)).shape == (2, 10)


def test_options_reach_the_layers() -> None:
    net = VGG("vgg11", ratio=16, image_size=32, in_channels=3, num_classes=7, dropout=0.25)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"arch": "vgg12"}, "arch=vgg12"),
        ({"ratio": 3}, "ratio=3"),
        ({"ratio": 0}, "ratio=0"),
        ({"image_size": 31}, "image_size=31"),
        ({"blocks": [[1, 30]], "ratio": 4}, "ratio=4"),
        ({"blocks": [[1, 32]] * 6, "image_size": 63}, "image_size=63"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        VGG(**options)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_pooling_before_relu_gives_the_chapters_bits(batch_norm: bool) -> None:
    torch.manual_seed(0)
    net = VGG("vgg13", ratio=16, image_size=64, dropout=0.0, batch_norm=batch_norm)
    chapter = copy.deepcopy(net)
    for block in chapter.features:
        layers = list(block)
        layers[-2:] = [nn.ReLU(), nn.MaxPool2d(2)]
        block.__init__(*layers)
    images, labels = torch.rand(8, 1, 64, 64), torch.arange(8)
    losses = []
    for each in (net, chapter):
        losses.append(F.cross_entropy(each(images), labels))
        losses[-1].backward()
    assert torch.equal(*losses)
    for ours, theirs in zip(net.parameters(), chapter.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("init", ["kaiming", "xavier"])
def test_inits_keep_images_apart_through_19_layers(init: Literal["kaiming", "xavier"]) -> None:
    images = torch.rand(16, 1, 32, 32)

    def spread(init: Literal["default", "kaiming", "xavier"]) -> float:
        torch.manual_seed(0)
        features = VGG("vgg19", ratio=8, image_size=32, init=init).features(images)
        return (features - features.mean(dim=0)).std().item()

    assert spread(init) > 100 * spread("default")


def test_without_hidden_units_one_linear_layer_classifies() -> None:
    net = VGG(blocks=[[1, 8], [1, 16]], hidden=0, image_size=28)
    assert [type(layer) for layer in net.classifier] == [Flatten, nn.Linear]
    assert net(torch.rand(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("arch", [*KERNELS, "alexnet"])
def test_every_network_learns_as_configured(arch: str, real_cache: str) -> None:
    """On real images, the loss falls below ln 10 − 0.3, which that of a dead network never does."""
    from conftest import configure
    from vggexp.config.instantiate import network

    size = 96 if arch == "alexnet" else 32
    cfg = configure(f"model={arch}", "model.ratio=16", f"data.resize={size}", f"data.cache_dir={real_cache}")
    torch.manual_seed(0)
    data = DataModule(source=FashionMNIST(cache_dir=real_cache), resize=size)
    data.setup()
    net = network(cfg.model.spec(), data.dimensions).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=cfg.optimizer.lr, fused=True)
    losses: list[float] = []
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        images, labels = data.on_after_batch_transfer(batch, 0)
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) >= 10 and sum(losses[-10:]) / 10 < math.log(10) - 0.3:
            return
    pytest.fail(f"after {len(losses)} steps the loss is {losses[-1]:.3f}")
