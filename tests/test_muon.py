"""Muon updates matrices equally in all directions, leaves the rest to SGD, and resumes from a checkpoint."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from conftest import Run
from vggexp.models import VGG
from vggexp.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 144), (64, 64), (100, 10)])
@pytest.mark.parametrize("bf16", [False, True])
def test_an_update_has_singular_values_near_one_and_the_gradients_singular_vectors(
    shape: tuple[int, int], bf16: bool
) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left * torch.linspace(30, 1, min(shape)) @ right
    found = orthogonal(matrix, bf16) / max(1, shape[0] / shape[1]) ** 0.5
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    rotated = left.T @ found @ right.T
    assert (rotated - rotated.diag().diag()).abs().max() < 0.05


def test_muon_updates_inner_weights_and_sgd_everything_else() -> None:
    net = VGG("vgg11", ratio=64, image_size=32, batch_norm=True)
    optimizer = Muon(net.named_parameters())
    names = {parameter: name for name, parameter in net.named_parameters()}
    inner, outer, vectors = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert outer == {"features.0.0.weight", "classifier.7.weight"}
    assert {"features.1.0.weight", "classifier.1.weight", "classifier.4.weight"} <= inner
    assert vectors == {name for name, parameter in net.named_parameters() if parameter.ndim == 1}
    assert inner | outer | vectors == set(names.values())


def test_the_layers_of_sgd_can_be_named_in_any_order() -> None:
    net = VGG("vgg11", ratio=64, image_size=32)
    named = list(net.named_parameters())
    optimizer = Muon(reversed(named), sgd_layers=["features.0", "classifier"])
    weights = {name for name, parameter in named if parameter.ndim > 1}
    outer = {name for name in weights if name.startswith(("features.0.", "classifier."))}
    assert set(optimizer.param_groups[0]["param_names"]) == weights - outer
    assert set(optimizer.param_groups[1]["param_names"]) == outer
    with pytest.raises(ValueError, match=r"sgd_layers=features\.9: is not a layer with weights; these are features\.0"):
        Muon(named, sgd_layers=["features.9"])


def test_the_rest_is_updated_as_by_torchs_sgd() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(4, 3)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    weight, bias = theirs[0].weight, theirs[0].bias
    groups = [{"params": [weight], "weight_decay": 0.01}, {"params": [bias], "weight_decay": 0.0}]
    optimizers = Muon(ours.named_parameters(), sgd_weight_decay=0.01), torch.optim.SGD(groups, 0.1, 0.9, nesterov=True)
    for _ in range(5):
        images = torch.randn(8, 4)
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(images).square().sum().backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5)


def test_weights_decay_by_the_learning_rate_times_the_weight_decay() -> None:
    weights = [nn.Parameter(torch.ones(3, 3)) for _ in range(3)]
    optimizer = Muon(zip("abc", weights, strict=True), lr=0.5, weight_decay=0.1)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(weights[1], torch.full((3, 3), 0.95))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["onecycle", "triangular", "cosine"])
def test_a_run_with_muon_learns_with_every_schedule(scheduler: str, train: Callable[..., Run]) -> None:
    found = train("optimizer=muon", f"scheduler={scheduler}", "trainer.max_epochs=10", "model.dropout=0")
    assert found.result["train/acc"] > 0.8
