"""The data module: splits, order, batches, and the position from which training resumes exactly."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import synthetic
from conftest import QUICK, configure, refusal
from synthetic import TEST, TRAIN
from vggexp.data import DataModule, datamodule
from vggexp.data.augment import Augmentation
from vggexp.data.datamodule import Batches, split
from vggexp.data.resize import resize
from vggexp.data.source import Images, Source, Split
from vggexp.errors import UserError
from vggexp.system.seeds import AUGMENTATION, seed_at
from vggexp.system.signals import Signals
from vggexp.training.run import prepare


def module(**options: Any) -> DataModule:
    data = synthetic.module(**options)
    data.setup()
    return data


def order(size: int = 1000, epoch: int = 0, **options: int) -> list[int]:
    batches = Batches(torch.arange(size), 64, **{"seed": 0, **options})
    batches.set_epoch(epoch)
    return torch.cat(list(batches)).tolist()


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert order() == order()
    assert sorted(order()) == list(range(1000))
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}) == 25


@pytest.mark.parametrize("workers", [1, 2])
def test_order_is_the_same_for_any_number_of_workers(workers: int) -> None:
    alone, helped = module().train_dataloader(), module(num_workers=workers).train_dataloader()
    for epoch in range(2):
        for loader in (alone, helped):
            loader.sampler.set_epoch(epoch)
        for (images, labels), (same_images, same_labels) in zip(alone, helped, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_each_global_batch(world_size: int) -> None:
    alone = list(Batches(torch.arange(1000), 64, seed=0))
    ranks = [list(Batches(torch.arange(1000), 64, seed=0, rank=r, world_size=world_size)) for r in range(world_size)]
    for batch, *shares in zip(alone, *ranks, strict=True):
        assert sorted(torch.cat(shares).tolist()) == sorted(batch.tolist())


def test_split_is_stratified_disjoint_and_fixed_by_the_seed() -> None:
    labels = torch.arange(1000) % 10
    stay, taken = split(labels, 100, seed=3)
    assert torch.bincount(labels[taken]).tolist() == [10] * 10
    assert sorted([*stay.tolist(), *taken.tolist()]) == list(range(1000))
    assert torch.equal(taken, split(labels, 100, seed=3)[1])
    assert not torch.equal(taken, split(labels, 100, seed=4)[1])


@pytest.mark.parametrize("size", [0, 1, 7, 333, 999])
def test_split_takes_exactly_as_many_images_as_requested(size: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 7, 1000))
    stay, taken = split(labels, size, seed=0)
    assert (len(stay), len(taken)) == (1000 - size, size)
    share = torch.bincount(labels[taken], minlength=7) - torch.bincount(labels) * size / 1000
    assert share.abs().max() < 1


def test_each_stage_has_its_images_and_the_test_set_is_complete() -> None:
    data = module()

    def labels(stage: str) -> Tensor:
        return torch.cat([batch[1] for batch in data.loader(stage)])

    assert [len(labels(stage)) for stage in ("train", "val", "test")] == [TRAIN - 100, 100, TEST]
    assert torch.equal(labels("test"), data.sets["test"].tensors[1])
    assert not set(data.indices["train"].tolist()) & set(data.indices["val"].tolist())


def test_batches_are_resized_pixels_between_0_and_1() -> None:
    data = module(resize=45)
    images, labels = next(iter(data.val_dataloader()[0]))
    assert images.dtype == torch.uint8
    ready, same = data.on_after_batch_transfer((images, labels), 0)
    assert (ready.shape, ready.dtype) == ((100, 1, 45, 45), torch.float32)
    assert torch.equal(ready, resize(images, 45).float() / 255)
    assert torch.equal(labels, same)


def test_the_images_are_held_once_as_bytes() -> None:
    data = module()
    assert data.sets["train"] is data.sets["val"]
    assert data.sets["train"].tensors[0].dtype == torch.uint8


def test_train_size_takes_a_stratified_part_of_the_rest() -> None:
    data = module(train_size=50)
    assert torch.bincount(data.sets["train"].tensors[1][data.indices["train"]]).tolist() == [5] * 10
    assert not set(data.indices["train"].tolist()) & set(data.indices["val"].tolist())


def test_the_split_follows_data_seed_and_everything_else_the_seed(tmp_path: Path) -> None:
    def built(*options: str) -> tuple[list[int], list[int], Tensor]:
        """The validation and the training images, and the first weights."""
        cfg = configure(*QUICK, "data.train_size=200", *options)
        made = prepare(cfg, tmp_path / "run", False, Signals(), (), lambda epoch, batch: None)
        val, train = (made.data.indices[part].tolist() for part in ("val", "train"))
        return val, train, next(made.module.net.parameters())

    val, train, weights = built("seed=1")
    for options in (["seed=1", "data.seed=1"], ["seed=2", "data.seed=1"]):
        assert built(*options)[:2] == (val, train)
    other = built("seed=1", "data.seed=2")
    assert (other[0] != val, other[1] != train) == (True, True)
    assert torch.equal(other[2], weights)
    assert not torch.equal(built("seed=2", "data.seed=1")[2], weights)

    def places(options: dict[str, int]) -> list[int]:
        """Where the images of the first batch stand among the training images."""
        data = module(**options)
        return [data.indices["train"].tolist().index(n) for n in next(iter(data.loader("train").sampler)).tolist()]

    assert places({"seed": 1}) == places({"seed": 1, "split_seed": 2}) != places({"seed": 2, "split_seed": 1})


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"val_size": TRAIN}, "data.val_size=400"),
        ({"train_size": 301}, "data.train_size=301"),
        ({"test_each_epoch": True}, "data.val_size=0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        module(**options)


def test_the_data_decide_the_networks_input_and_output_sizes() -> None:
    assert synthetic.module(resize=45).dimensions == {"image_size": 45, "in_channels": 1, "num_classes": 10}


@dataclass(kw_only=True)
class Given(Source):
    """Images of a user's own, as a test wants them."""

    pixels: Any = field(default_factory=lambda: torch.zeros(6, 2, 8, 8, dtype=torch.uint8))
    numbers: Any = field(default_factory=lambda: torch.arange(6) % 3)
    channels: int = 2
    classes = ("a", "b", "c")

    def load(self, split: Split) -> Images | None:
        return Images(self.pixels, self.numbers, {"pixels": "0"}) if split == "train" else None


def test_a_source_without_parts_of_its_own_is_split() -> None:
    data = DataModule(source=Given(), resize=8, val_size=0.25, test_size=2)
    data.setup()
    assert [len(data.indices[part]) for part in ("train", "val", "test")] == [3, 1, 2]
    assert sorted(torch.cat(list(data.indices.values())).tolist()) == list(range(6))
    assert data.dimensions == {"image_size": 8, "in_channels": 2, "num_classes": 3}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pixels": torch.zeros(6, 2, 8, 8)}, "uint8"),
        ({"pixels": torch.zeros(6, 8, 8, dtype=torch.uint8)}, "(N, 2, H, W)"),
        ({"pixels": torch.zeros(6, 3, 8, 8, dtype=torch.uint8)}, "(N, 2, H, W)"),
        ({"numbers": torch.arange(5) % 3}, "(6,) int64"),
        ({"numbers": (torch.arange(6) % 3).int()}, "int64"),
        ({"numbers": torch.arange(6)}, "labels must be 0 to 2, not 0 to 5"),
        ({"numbers": torch.arange(6) % 3 - 1}, "not -1 to 1"),
        ({"pixels": torch.zeros(0, 2, 8, 8, dtype=torch.uint8), "numbers": torch.arange(0)}, "there are none"),
    ],
)
def test_what_a_source_gives_is_checked(options: dict[str, Any], said: str) -> None:
    text = refusal(DataModule(source=Given(**options), resize=8, val_size=0).setup)
    assert text.startswith("data._target_=Given: its train images: ")
    assert said in text


@pytest.mark.parametrize(
    ("options", "key"),
    [({"val_size": 0.01}, "val_size=0.01"), ({"test_size": 0}, "test_size=0"), ({"normalize": "imagenet"}, "imagenet")],
)
def test_options_that_the_images_do_not_allow_are_named(options: dict[str, Any], key: str) -> None:
    data = DataModule(source=Given(), resize=8, **{"val_size": 0, "test_size": 2} | options)
    assert key in refusal(data.setup)


CHANGES = {"flip": True, "shift": 2, "cutout": 8}
EPOCHS, BATCHES = 3, 5
"""Batches per epoch: 300 images in batches of 64."""


class Recorder(L.LightningModule):
    """A module that does not learn, but records what it receives in training and the position that the data report."""

    def __init__(self, save_at: dict[str, tuple[int, int]], folder: Path) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.save_at, self.folder = save_at, folder
        self.seen: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.positions: dict[str, list[tuple[int, int]]] = {}
        self.saving = ""

    def _note(self, hook: str) -> None:
        position = self.trainer.datamodule.position
        self.positions.setdefault(hook, []).append(position)
        if self.save_at.get(hook) == position:
            self.saving = hook
            self.trainer.save_checkpoint(self.folder / f"{hook}.ckpt")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets a run that was saved during validation resume at the beginning of it, as real runs do."""
        if self.saving == "validation":
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for counter in ("total", "current"):
                progress[counter] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_train_epoch_start(self) -> None:
        self._note("epoch start")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen[self.trainer.current_epoch, batch_idx] = batch
        return batch[0].mean() * self.weight

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._note("batch end")
        if self.save_at.get("stop") == self.positions["batch end"][-1]:
            raise KeyboardInterrupt

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._note("validation")

    def on_train_epoch_end(self) -> None:
        self._note("epoch end")

    def on_train_end(self) -> None:
        self._note("end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, workers: int, *, epochs: int = EPOCHS, resume: str | None = None, **save_at: Any) -> Recorder:
    recorder = Recorder({key.replace("_", " "): value for key, value in save_at.items()}, folder)
    options = {
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
    }
    trainer = L.Trainer(max_epochs=epochs, enable_model_summary=False, use_distributed_sampler=False, **options)
    data = module(num_workers=workers, batch_size=64, seed=5, **CHANGES)
    try:
        trainer.fit(recorder, data, ckpt_path=resume and str(folder / f"{resume}.ckpt"), weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        assert "stop" in save_at
    return recorder


def same(ours: Recorder, theirs: Recorder) -> bool:
    return all(
        torch.equal(a, b) for place in ours.seen for a, b in zip(ours.seen[place], theirs.seen[place], strict=True)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_training_resumes_as_if_it_had_never_stopped(workers: int, tmp_path: Path) -> None:
    whole = fit(tmp_path, workers)
    assert list(whole.seen) == [(epoch, batch) for epoch in range(EPOCHS) for batch in range(BATCHES)]
    stopped = fit(tmp_path, workers, batch_end=(1, 2), stop=(1, 3))
    resumed = fit(tmp_path, workers, resume="batch end")
    assert list(resumed.seen) == [(1, 2), (1, 3), (1, 4), *((2, batch) for batch in range(BATCHES))]
    assert same(stopped, whole)
    assert same(resumed, whole)
    assert resumed.positions["batch end"] == whole.positions["batch end"][-len(resumed.seen) :]

    fit(tmp_path, workers, validation=(1, BATCHES))
    validated = fit(tmp_path, workers, resume="validation")
    assert list(validated.seen) == [(2, batch) for batch in range(BATCHES)]
    assert validated.positions["validation"] == [(1, BATCHES)] * 2 + [(2, BATCHES)] * 2
    assert same(validated, whole)

    fit(tmp_path, workers, epochs=2, end=(2, 0))
    longer = fit(tmp_path, workers, resume="end")
    assert list(longer.seen) == [(2, batch) for batch in range(BATCHES)]
    assert same(longer, whole)


@pytest.mark.filterwarnings("ignore")
def test_the_position_counts_the_finished_batches_of_the_epoch(tmp_path: Path) -> None:
    found = fit(tmp_path, 0).positions
    assert found == {
        "validation": [(epoch, BATCHES) for epoch in range(EPOCHS) for _ in range(2)],
        "epoch start": [(epoch, 0) for epoch in range(EPOCHS)],
        "batch end": [(epoch, batch + 1) for epoch in range(EPOCHS) for batch in range(BATCHES)],
        "epoch end": [(epoch, BATCHES) for epoch in range(EPOCHS)],
        "end": [(EPOCHS, 0)],
    }


@pytest.mark.filterwarnings("ignore")
def test_augmentation_depends_only_on_seed_epoch_and_batch(tmp_path: Path) -> None:
    plain = module(batch_size=64, seed=5)
    for (epoch, batch), (images, _) in fit(tmp_path, 1, epochs=2).seen.items():
        stored = list(plain.loader("train", epoch))[batch][0]
        generator = torch.Generator().manual_seed(seed_at(5, AUGMENTATION, 0, epoch, batch))
        assert torch.equal(images, resize(Augmentation(**CHANGES).of_bytes(stored, generator), 32).float() / 255)


def test_workers_start_within_processes_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib's processes start others in their own way, which torch's workers cannot use."""
    assert datamodule._context() == {}
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "loky")
    assert datamodule._context()["multiprocessing_context"] in ("fork", "spawn", "forkserver")
