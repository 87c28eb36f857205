"""Augmentation only shifts, flips and cuts out; it is off by default, and a resumed run draws the same values."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Generator, Tensor

import synthetic
from conftest import QUICK, Run, configure, refusal
from vggexp.data.augment import Augmentation
from vggexp.system.signals import Interrupted, Signals
from vggexp.training.run import run

IMAGES = torch.arange(1, 1 + 200 * 28 * 28).remainder(251).add(1).byte().view(200, 1, 28, 28)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_what_is_off_changes_nothing_and_draws_nothing() -> None:
    generator = seeded()
    before = generator.get_state()
    assert Augmentation().of_bytes(IMAGES, generator) is IMAGES
    assert torch.equal(generator.get_state(), before)


def test_flips_mirror_about_half_of_the_images() -> None:
    found = Augmentation(flip=True).of_bytes(IMAGES, seeded())
    same, mirrored = (found == IMAGES).all((1, 2, 3)), (found == IMAGES.flip(-1)).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 70 < mirrored.sum() < 130


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    out = torch.zeros_like(images)
    rows, columns = range(max(0, -down), 28 - max(0, down)), range(max(0, -right), 28 - max(0, right))
    for row in rows:
        for column in columns:
            out[..., row + down, column + right] = images[..., row, column]
    return out


def test_shifts_reach_all_offsets_up_to_their_size_and_no_others() -> None:
    found = Augmentation(shift=1).of_bytes(IMAGES, seeded())
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    same = torch.stack([(found == shifted(IMAGES, *move)).all((1, 2, 3)) for move in moves])
    assert (same.sum(0) == 1).all()
    assert same.sum(1).min() > 8


def test_cutouts_are_squares_that_may_extend_over_the_edge() -> None:
    found = Augmentation(cutout=8).of_bytes(IMAGES, seeded())
    black = found == 0
    assert torch.equal(found[~black], IMAGES[~black])
    sizes = set()
    for mask in black[:, 0]:
        rows, columns = mask.any(1).nonzero().view(-1), mask.any(0).nonzero().view(-1)
        assert mask.sum() == len(rows) * len(columns)
        assert int(rows[-1] - rows[0]) + 1 == len(rows) <= 8
        sizes.add((len(rows), len(columns)))
    assert {(8, 8), (4, 8), (8, 4)} <= sizes
    assert min(min(pair) for pair in sizes) == 4


@pytest.fixture(scope="module")
def plain(train: Callable[..., Run]) -> Run:
    """One step without augmentation."""
    return train("trainer.max_steps=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        *("data.flip=true", "data.shift=2", "data.cutout=8", "data.rotate=20.0", "data.resized_crop=0.5"),
        *("data.color_jitter=0.4", "data.mixup=0.4", "data.cutmix=1.0"),
    ],
)
def test_each_option_reaches_training_and_only_training(
    option: str, trained: Run, plain: Run, train: Callable[..., Run]
) -> None:
    changed = train(option, "trainer.max_steps=1")
    assert changed.result["train/loss"] != plain.result["train/loss"]
    cfg = configure(*QUICK, option)
    assert cfg.hash() != trained.cfg.hash()


def test_validation_and_test_images_are_not_augmented() -> None:
    plain, changed = synthetic.module(), synthetic.module(flip=True, shift=2, cutout=8, rotate=90.0, mixup=1.0)
    for data in (plain, changed):
        data.setup()
    batch = next(iter(plain.test_dataloader()))
    assert torch.equal(*(data.on_after_batch_transfer(batch, 0)[0] for data in (plain, changed)))


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_augmentation(train: Callable[..., Run], tmp_path: Path) -> None:
    options = ("data.flip=true", "data.shift=2", "data.cutout=8", "data.rotate=20.0", "data.resized_crop=0.5")
    options += ("data.color_jitter=0.2", "data.mixup=0.4", "data.cutmix=1.0", "model.dropout=0.1")
    whole = train(*options)
    cfg, signals = configure(*QUICK, *options), Signals()

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 8:  # within the second epoch
                signals.received = signal.SIGTERM

    with pytest.raises(Interrupted):
        run(cfg, tmp_path, signals=signals, callbacks=[Stop()])
    stopped = run(cfg, tmp_path, resume=True)
    names = ("train/loss", "val/loss", "test/loss", "test/acc")
    assert [stopped[name] for name in names] == [whole.result[name] for name in names]


COLORED = torch.arange(12 * 3 * 20 * 24).remainder(251).byte().view(12, 3, 20, 24)


@pytest.mark.parametrize(
    "options", [{"rotate": 30.0}, {"resized_crop": 0.5}, {"color_jitter": 0.4}, {"rotate": 9.0, "resized_crop": 0.8}]
)
def test_torchvisions_changes_are_drawn_for_each_image_from_the_seed_alone(options: dict[str, float]) -> None:
    changes, before = Augmentation(**options), torch.get_rng_state()
    found = changes.transformed(COLORED, 16, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # the state of torch's generator does not matter
    assert torch.equal(changes.transformed(COLORED, 16, 7), found)
    assert not torch.equal(changes.transformed(COLORED, 16, 8), found)
    assert found.shape[2:] == ((16, 16) if "resized_crop" in options else (20, 24))
    alike = COLORED[:1].expand(12, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in changes.transformed(alike, 16, 7)}) > 6


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixed_images_carry_the_shares_of_their_classes(options: dict[str, float]) -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    mixed, shares = Augmentation(**options).mixed(images, labels, 5, 3)
    assert (mixed.shape, shares.shape) == (images.shape, (8, 5))
    assert torch.allclose(shares.sum(1), torch.ones(8))
    assert not torch.equal(mixed, images)
    assert (shares.max(1).values < 1).any()
    assert torch.equal(Augmentation(**options).mixed(images, labels, 5, 3)[0], mixed)


def test_a_process_without_images_has_nothing_to_change() -> None:
    none = torch.zeros(0, 1, 28, 28, dtype=torch.uint8)
    changes = Augmentation(flip=True, shift=2, cutout=4, rotate=9.0, resized_crop=0.5, color_jitter=0.1, mixup=1.0)
    assert changes.transformed(changes.of_bytes(none, seeded()), 28, 0).shape == none.shape
    labels = torch.zeros(0, dtype=torch.int64)
    assert changes.mixed(none.float(), labels, 10, 0)[1] is labels


def test_values_out_of_range_are_refused() -> None:
    assert "data.shift=28: the images have 28 pixels" in refusal(lambda: synthetic.module(shift=28).setup())
    assert "data.cutout=-1" in refusal(lambda: configure(*QUICK, "data.cutout=-1"))
