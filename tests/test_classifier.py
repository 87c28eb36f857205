"""Scores are exact means over samples; schedules span the run; components come from allowed places."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from conftest import configure
from vggexp.config.instantiate import construct, locate
from vggexp.errors import UserError
from vggexp.training.classifier import Classifier

CLASSES = [f"class {n}" for n in range(10)]


def classifier(*options: str) -> Classifier:
    cfg = configure("model.ratio=64", "data.resize=32", *options)
    return Classifier(cfg, {"classes": CLASSES}, {"image_size": 32, "in_channels": 1, "num_classes": 10})


def test_scores_are_means_over_samples_not_over_batches() -> None:
    torch.manual_seed(0)
    module = classifier().eval()
    images, labels = torch.rand(37, 1, 32, 32), torch.randint(0, 10, (37,))
    with torch.no_grad():
        logits = module(images)
        for part in (slice(0, 32), slice(32, 36), slice(36, 37)):
            module._step((images[part], labels[part]), "val")
    scores = module._scores_of("val").compute()
    assert scores["acc"] == (logits.argmax(1) == labels).float().mean()
    assert scores["loss"].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_each_stage_has_its_own_scores_and_none_is_in_the_checkpoint() -> None:
    module = classifier()
    module._step((torch.rand(4, 1, 32, 32), torch.arange(4)), "train")
    assert module._scores_of("val")["loss"].update_called is False
    assert all(name.startswith("net.") for name in module.state_dict())


def test_label_smoothing_changes_only_the_training_loss() -> None:
    torch.manual_seed(0)
    module = classifier("step.label_smoothing=0.2").eval()
    images, labels = torch.rand(8, 1, 32, 32), torch.arange(8)
    log = module(images).log_softmax(1)
    plain = -log[range(8), labels].mean()
    smooth = 0.8 * plain - 0.2 * log.mean()
    assert module._step((images, labels), "train")["loss"].item() == pytest.approx(smooth.item(), rel=1e-5)
    for stage in ("val", "test"):
        assert module._step((images, labels), stage)["loss"].item() == pytest.approx(plain.item(), rel=1e-5)


def test_test_time_flip_averages_over_the_mirror_image_in_prediction_but_not_in_training() -> None:
    torch.manual_seed(0)
    module = classifier("step.test_time_flip=true", "model.dropout=0").eval()
    images = torch.rand(8, 1, 32, 32)
    both = (module.net(images) + module.net(images.flip(-1))) / 2
    assert torch.equal(module(images), both)
    assert torch.equal(module.predictor(images), both)
    assert torch.equal(module.train()(images), module.net(images))
    assert not torch.equal(both, module.net(images))


def test_a_checkpoint_describes_its_run_in_plain_python() -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        return isinstance(value, int | float | str | list | None)

    about = classifier().about
    assert about["classes"] == CLASSES
    assert about["dimensions"] == {"image_size": 32, "in_channels": 1, "num_classes": 10}
    assert plain(about)


def test_scores_are_bit_identical_to_those_of_torchmetrics() -> None:
    torch.manual_seed(1)
    module = classifier().eval()
    accuracy, total, count = MulticlassAccuracy(10, average="micro"), torch.tensor(0.0), 0
    for size in (37, 64, 1, 23):
        images, labels = torch.rand(size, 1, 32, 32), torch.randint(0, 10, (size,))
        with torch.no_grad():
            step = module._step((images, labels), "test")
        accuracy.update(step["logits"], labels)
        total, count = total + step["loss"] * size, count + size
    scores = module._scores_of("test").compute()
    assert torch.equal(scores["acc"], accuracy.compute())
    assert torch.equal(scores["loss"], total / count)


def test_a_metric_of_torchmetrics_is_computed_for_validation_and_test() -> None:
    module = classifier("+metrics.f1={_target_: torchmetrics.classification.MulticlassF1Score, num_classes: 10}").eval()
    images, labels = torch.rand(40, 1, 32, 32), torch.arange(40) % 10
    for stage in ("train", "val", "test"):
        with torch.no_grad():
            logits = module._step((images, labels), stage)["logits"]
        scores = module._scores_of(stage).compute()
        if stage == "train":
            assert set(scores) == {"loss", "acc"}
        else:
            assert scores["f1"] == MulticlassF1Score(10)(logits, labels)


def rates(name: str, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = construct(LRScheduler, {"_target_": f"vggexp.training.schedules.{name}", **options}, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return found


def test_constant_keeps_the_learning_rate() -> None:
    assert set(rates("constant", 10)) == {0.5}


def test_cosine_rises_and_then_falls_to_its_final_value() -> None:
    found = rates("cosine", 100, warmup=0.1, final=0.02)
    assert found[:11] == sorted(found[:11])
    assert max(found) == pytest.approx(0.5)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] == pytest.approx(0.01)


def test_onecycle_starts_peaks_and_ends_as_configured() -> None:
    found = rates("onecycle", 101, warmup=0.3, initial=0.1, final=0.001)
    assert (found[0], max(found), found[-1]) == (
        pytest.approx(0.05), pytest.approx(0.5, rel=1e-3), pytest.approx(0.0005)
    )  # fmt: skip
    assert found.index(max(found)) == pytest.approx(0.3 * 101, abs=2)


@pytest.mark.parametrize(("steps", "warmup"), [(2, 0.5), (4, 0.25), (5, 0.2)])
def test_onecycle_with_a_rise_of_no_step_begins_at_its_peak(steps: int, warmup: float) -> None:
    found = rates("onecycle", steps, warmup=warmup, initial=0.1, final=0.001)
    assert found[0] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)


def test_triangular_is_two_straight_lines() -> None:
    found = rates("triangular", 100, warmup=0.2, initial=0.1, final=0.02)
    assert found[0] == pytest.approx(0.05)
    assert found[10] == pytest.approx(0.5 * 0.55)
    assert found[20] == max(found) == 0.5
    assert found[60] == pytest.approx(0.5 * 0.51)
    assert found[99] == pytest.approx(0.5 * (1 - 0.98 * 79 / 80))


@pytest.mark.parametrize("name", ["cosine", "onecycle", "triangular"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_support_the_shortest_runs(name: str, steps: int) -> None:
    assert all(0 <= rate <= 0.5 for rate in rates(name, steps))


@pytest.mark.parametrize("target", ["vggexp.nowhere.X", "vggexp.models.Nope", "vggexp.data.idx.subprocess", "vggexp.runs.manifest.Path"])  # fmt: skip  # noqa: E501
def test_targets_outside_the_package_are_refused(target: str) -> None:
    with pytest.raises(UserError, match=f"_target_={target}"):
        locate(target, object)


def test_options_that_a_component_does_not_accept_are_named() -> None:
    with pytest.raises(UserError, match=r"_target_=vggexp\.models\.VGG.*depth"):
        construct(nn.Module, {"_target_": "vggexp.models.VGG", "depth": 11})


def test_class_weights_make_a_mean_over_images_whatever_a_process_has() -> None:
    """The gradients of two shares, weighed by their images, are those of the whole batch."""
    torch.manual_seed(0)
    weighed = classifier()
    weighed.class_weights = torch.tensor([4.0, *[0.5] * 9])
    images, labels = torch.rand(12, 1, 32, 32), torch.tensor([0] * 4 + [1, 2] * 4)
    weighed.eval()
    parts = (slice(0, 12), slice(0, 4), slice(4, 12))
    whole, one, other = (weighed._step((images[n], labels[n]), "train")["loss"] for n in parts)
    assert torch.allclose(whole, (4 * one + 8 * other) / 12)
    mixed = torch.nn.functional.one_hot(labels, 10).float()
    assert torch.allclose(weighed._step((images, mixed), "train")["loss"], whole)
