"""Our VGG matches torchvision's in counts, names and outputs."""

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from vggexp.models import VGG

DEPTHS, NORMED = (11, 13, 16, 19), (False, True)


def name(depth: int, batch_norm: bool) -> str:
    return f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"


@pytest.mark.parametrize("batch_norm", NORMED)
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_names_are_torchvisions(depth: int, batch_norm: bool) -> None:
    with torch.device("meta"):
        ours = VGG(f"vgg{depth}", in_channels=3, num_classes=1000, image_size=224, batch_norm=batch_norm)
        theirs = getattr(torchvision.models, name(depth, batch_norm))()
    names = ours.torchvision_names()
    assert {names[key]: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "batch_norm"), [(11, False), (16, True)])
def test_a_state_dict_converts_both_ways_and_gives_the_same_outputs(depth: int, batch_norm: bool) -> None:
    torch.manual_seed(depth)
    ours = VGG(f"vgg{depth}", in_channels=3, num_classes=1000, image_size=224, batch_norm=batch_norm).eval()
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name(depth, batch_norm))().eval()
    names = ours.torchvision_names()
    assert names.keys() == ours.state_dict().keys()
    if batch_norm:  # statistics like those of a trained network
        for key, value in ours.state_dict().items():
            if "running" in key:
                value.uniform_(0.5, 1.5)
    theirs.load_state_dict({names[key]: value for key, value in ours.state_dict().items()}, assign=True)
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert (theirs(images) - ours(images)).abs().max() <= 1e-5
    back = {key: theirs.state_dict()[names[key]] for key in names}
    assert all(torch.equal(back[key], value) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("batch_norm", NORMED)
@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_and_macs_are_those_that_torchvision_publishes(depth: int, batch_norm: bool) -> None:
    published = get_model_weights(name(depth, batch_norm)).DEFAULT.meta
    with torch.device("meta"):
        net = VGG(f"vgg{depth}", in_channels=3, num_classes=1000, image_size=224, batch_norm=batch_norm).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    assert sum(parameter.numel() for parameter in net.parameters()) == published["num_params"]
    assert counter.get_total_flops() / 2e9 == pytest.approx(published["_ops"], abs=0.001)
