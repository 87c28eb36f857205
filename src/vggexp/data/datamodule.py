"""The LightningDataModule: splits, batches in an order that depends on the seed and the epoch alone, and resizing.

N images of a batch, H = W = 28 pixels as stored, S = `resize` pixels as the network gets them.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import vggexp.system.torchmetrics  # noqa: F401

# isort: split
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from vggexp.data import idx
from vggexp.data.augment import augment
from vggexp.data.resize import prepared
from vggexp.errors import UserError
from vggexp.system.seeds import AUGMENTATION, seed_at
from vggexp.system.signals import blocked

Stage = Literal["train", "val", "test"]


@dataclass(eq=False)
class Batches(Sampler[Tensor]):
    """Yields the indices of each batch, (N,) int64."""

    indices: Tensor  # of the images in an epoch, (M,)
    batch_size: int  # over all processes together; the last batch may be smaller
    _: KW_ONLY
    seed: int | None = None  # shuffles, differently in each epoch; None keeps the order
    rank: int = 0  # this process takes every `world_size`-th image of each batch
    world_size: int = 1
    device: torch.device | str = "cpu"  # where the images lie
    epoch: int = 0  # where a resumed run begins, and how many of the epoch's batches are done
    done: int = 0

    def __post_init__(self) -> None:
        self.start = self.done

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, also before one that is resumed."""
        if epoch != self.epoch:
            self.epoch, self.start, self.done = epoch, 0, 0

    def __len__(self) -> int:
        """How many batches a whole epoch has."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = self.indices
        if self.seed is not None:
            generator = np.random.default_rng([self.seed, 1 + self.epoch])
            order = order[torch.from_numpy(generator.permutation(len(order)))]
        for batch in order.to(self.device).split(self.batch_size)[self.start :]:  # type: ignore[no-untyped-call]
            yield batch[self.rank :: self.world_size]


class Loader(DataLoader[tuple[Tensor, ...]]):
    """Shields its workers from signals: a terminal or a cluster signals all processes, but a run still needs these."""

    def __iter__(self) -> Any:
        with blocked():
            return super().__iter__()


def _context() -> dict[str, Any]:
    """How workers are started: by Python's default, also where a launcher has brought its own way, as joblib's does."""
    own = multiprocessing.get_start_method() in (methods := multiprocessing.get_all_start_methods())
    return {} if own else {"multiprocessing_context": methods[0]}


def split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Chooses `size` images, the same share of each class; returns the sorted indices of the others and of these."""
    generator = np.random.default_rng([seed, 0])
    by_class = [np.flatnonzero(labels.numpy() == label) for label in np.unique(labels.numpy())]
    exact = np.array([len(members) * size / len(labels) for members in by_class])
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    pairs = zip(by_class, counts, strict=True)
    taken = np.sort(np.concatenate([generator.permutation(members)[:count] for members, count in pairs]))
    return torch.from_numpy(np.setdiff1d(np.arange(len(labels)), taken)), torch.from_numpy(taken)


@dataclass(kw_only=True, eq=False, repr=False)
class FashionMNIST(L.LightningDataModule):
    """Batches of ((N, 1, S, S) float32 images in [0, 1], (N,) int64 labels).

    A subclass with its own `source` is another set of this form. The arguments are a seed and the keys of `conf/data`.
    """

    source: ClassVar[idx.IDXSet] = idx.FASHION_MNIST

    root: str | None = None  # for this and `cache_dir`, see `vggexp.data.idx.obtain`
    cache_dir: str | None = None
    resize: int = 224  # S, at least the stored size
    batch_size: int = 128  # images per optimizer step, over all processes together
    val_size: int = 5000  # images taken out of the training set for validation, stratified, chosen by the seed
    train_size: int | None = None  # use only this many of the rest, stratified; None: all
    num_workers: int = 0  # processes that load batches; their number does not change the order
    test_each_epoch: bool = False  # the test set replaces the validation set
    flip: bool = False  # this, `shift` and `cutout` change training images, see `vggexp.data.augment.augment`
    shift: int = 0
    cutout: int = 0
    seed: int = 0  # of the order and of the split

    def __post_init__(self) -> None:
        super().__init__()
        if self.test_each_epoch and self.val_size:
            raise UserError(f"data.test_each_epoch=true: excludes data.val_size={self.val_size}; set data.val_size=0")
        self.sets: dict[str, TensorDataset] = {}
        self._start = (0, 0)
        self._batches: Batches | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by label."""
        return self.source.classes

    @property
    def dimensions(self) -> dict[str, int]:
        """The network's ends: pixels of its input, channels and classes."""
        return {"image_size": self.resize, "in_channels": 1, "num_classes": len(self.classes)}

    @property
    def position(self) -> tuple[int, int]:
        """Where training stands: the epoch, counted from 0, and how many of its batches are done."""
        position = (self._batches.epoch, self._batches.done) if self._batches else self._start
        # at the end of an epoch that the next one does not follow, Lightning alone knows that it is complete
        return max(position, (self.trainer.current_epoch, 0)) if self.trainer else position

    @property
    def validates(self) -> Stage | None:
        """What is scored after each epoch."""
        return "test" if self.test_each_epoch else "val" if self.val_size else None

    def prepare_data(self) -> None:
        """Fills the cache, in one process per machine."""
        idx.obtain(self.source, self.root, self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """Loads the set once, onto the training device unless workers load the batches."""
        if self.sets:
            return
        files = idx.obtain(self.source, self.root, self.cache_dir)
        arrays = {name: torch.from_numpy(idx.parse(content).copy()) for name, content in files.items()}
        labels = arrays[idx.TRAIN_LABELS].long()
        if self.val_size >= len(labels):
            raise UserError(f"data.val_size={self.val_size}: the training set holds {len(labels)} images; use fewer")
        train, val = split(labels, self.val_size, self.seed)
        if self.train_size is not None:
            if self.train_size > len(train):
                raise UserError(f"data.train_size={self.train_size}: only {len(train)} images are left; use fewer")
            train = train[split(labels[train], self.train_size, self.seed)[1]]
        self.indices = {"train": train, "val": val, "test": torch.arange(len(arrays[idx.TEST_LABELS]))}
        fit = TensorDataset(arrays[idx.TRAIN_IMAGES].to(self._device), labels.to(self._device))
        held_out = (arrays[idx.TEST_IMAGES].to(self._device), arrays[idx.TEST_LABELS].long().to(self._device))
        self.sets = {"train": fit, "val": fit, "test": TensorDataset(*held_out)}

    @property
    def _device(self) -> torch.device:
        if self.trainer is None or self.num_workers:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    def loader(self, stage: Stage, epoch: int = 0, done: int = 0) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of ((N, H, W) uint8, (N,) int64); only "train" is shuffled. See `Batches` for `epoch` and `done`."""
        seed = self.seed if stage == "train" else None
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        options: dict[str, Any] = {"device": self._device, "epoch": epoch, "done": done}
        batches = Batches(self.indices[stage], self.batch_size, seed=seed, rank=rank, world_size=world, **options)
        workers = {"num_workers": self.num_workers, **_context()} if self.num_workers else {}
        return Loader(self.sets[stage], sampler=batches, batch_size=None, **workers)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        loader = self.loader("train", *self._start)
        self._batches = loader.sampler  # type: ignore[assignment]
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The position in the order; the order itself follows from the seed."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        epoch, batch = state_dict["position"]
        self._start, self._batches = (int(epoch), int(batch)), None

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        return [self.loader(self.validates)] if self.validates else []

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.loader("test")

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """On the device: (N, H, W) uint8 → (N, 1, S, S) float32, training images augmented."""
        images, labels = batch
        if self.trainer and self.trainer.training and self._batches:
            if self.flip or self.shift or self.cutout:
                generator = torch.Generator(images.device)
                generator.manual_seed(seed_at(self.seed, AUGMENTATION, self.trainer.global_rank, *self.position))
                images = augment(images, generator, flip=self.flip, shift=self.shift, cutout=self.cutout)
            self._batches.done += 1
        return prepared(images, self.resize), labels
