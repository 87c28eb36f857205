"""Augmentation only shifts, flips and cuts out; it is off by default, and a resumed run draws the same values."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Generator, Tensor

from conftest import QUICK, Run, configure, refusal
from synthetic import SyntheticMNIST
from vggexp.data.augment import augment
from vggexp.system.signals import Interrupted, Signals
from vggexp.training.run import run

IMAGES = torch.arange(1, 1 + 200 * 28 * 28).remainder(251).add(1).byte().view(200, 28, 28)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_what_is_off_changes_nothing_and_draws_nothing() -> None:
    generator = seeded()
    before = generator.get_state()
    assert augment(IMAGES, generator) is IMAGES
    assert torch.equal(generator.get_state(), before)


def test_flips_mirror_about_half_of_the_images() -> None:
    found = augment(IMAGES, seeded(), flip=True)
    same, mirrored = (found == IMAGES).all((1, 2)), (found == IMAGES.flip(-1)).all((1, 2))
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
    found = augment(IMAGES, seeded(), shift=1)
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    same = torch.stack([(found == shifted(IMAGES, *move)).all((1, 2)) for move in moves])
    assert (same.sum(0) == 1).all()
    assert same.sum(1).min() > 8


def test_cutouts_are_squares_that_may_extend_over_the_edge() -> None:
    found = augment(IMAGES, seeded(), cutout=8)
    black = found == 0
    assert torch.equal(found[~black], IMAGES[~black])
    sizes = set()
    for mask in black:
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
@pytest.mark.parametrize("option", ["data.flip=true", "data.shift=2", "data.cutout=8"])
def test_each_option_reaches_training_and_only_training(
    option: str, trained: Run, plain: Run, train: Callable[..., Run]
) -> None:
    changed = train(option, "trainer.max_steps=1")
    assert changed.result["train/loss"] != plain.result["train/loss"]
    cfg = configure(*QUICK, option)
    assert cfg.hash() != trained.cfg.hash()


def test_validation_and_test_images_are_not_augmented() -> None:
    options = {"root": os.environ["VGGEXP_TEST_ROOT"], "val_size": 100, "resize": 32}
    plain, changed = SyntheticMNIST(**options), SyntheticMNIST(**options, flip=True, shift=2, cutout=8)
    for data in (plain, changed):
        data.prepare_data()
        data.setup()
    batch = next(iter(plain.test_dataloader()))
    assert torch.equal(*(data.on_after_batch_transfer(batch, 0)[0] for data in (plain, changed)))


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_augmentation(train: Callable[..., Run], tmp_path: Path) -> None:
    options = ("data.flip=true", "data.shift=2", "data.cutout=8")
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


def test_values_out_of_range_are_refused() -> None:
    assert "data.shift=15" in refusal(lambda: configure(*QUICK, "data.shift=15"))
    assert "data.cutout=-1" in refusal(lambda: configure(*QUICK, "data.cutout=-1"))
