"""AlexNet has the layers and shapes of the book's network."""

import pytest
import torch
from torch import nn

from vggexp.models import AlexNet


def test_shapes_are_the_books() -> None:
    with torch.device("meta"):
        net, images = AlexNet(), torch.empty(1, 1, 224, 224)
    found = []
    for layer in (*net.features, *net.classifier):
        images = layer(images)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.Flatten | nn.Linear):
            found.append(tuple(images.shape[1:]))
    assert found == [
        (96, 54, 54), (96, 26, 26), (256, 26, 26), (256, 12, 12), (384, 12, 12), (384, 12, 12), (256, 12, 12),
        (256, 5, 5), (6400,), (4096,), (4096,), (10,),
    ]  # fmt: skip
    assert sum(p.numel() for p in net.parameters()) == 46_764_746


@pytest.mark.parametrize("size", [65, 66, 80, 96, 100, 225])
def test_any_size_from_65_fits(size: int) -> None:
    assert AlexNet(ratio=32, image_size=size, num_classes=7)(torch.rand(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize(("options", "key"), [({"ratio": 3}, "ratio=3"), ({"image_size": 64}, "image_size=64")])
def test_arguments_out_of_range_are_named(options: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        AlexNet(**options)
