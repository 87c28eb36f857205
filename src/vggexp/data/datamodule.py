"""The LightningDataModule: splits, batches in an order that depends on (seed, epoch) alone, resize on the device.

N images of a batch, H = W = 28 pixels as stored, S = `resize` pixels as the network gets them.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from vggexp.data import idx
from vggexp.data.augment import augment
from vggexp.data.resize import prepared
from vggexp.errors import UserError
from vggexp.system.seeds import AUGMENTATION, position, seed_at
from vggexp.system.signals import held_back

Stage = Literal["train", "val", "test"]


class Batches(Sampler[Tensor]):
    """Yields the indices of each batch, (N,) int64.

    Args:
        indices: the images to go through, (M,).
        batch_size: over all processes together; the last batch may be smaller.
        seed: shuffles, differently in each epoch; None keeps the order.
        rank, world_size: this process takes every `world_size`-th image of each batch.
        device: where the images lie.
        epoch, start: where to begin, for a run that goes on: the epoch, and how many of its batches to leave out.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        self.indices, self.batch_size, self.seed = indices, batch_size, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.epoch, self.start = epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, also before one that goes on."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = self.indices
        if self.seed is not None:
            generator = np.random.default_rng([self.seed, 1 + self.epoch])
            order = order[torch.from_numpy(generator.permutation(len(order)))]
        for batch in order.to(self.device).split(self.batch_size)[self.start :]:  # type: ignore[no-untyped-call]
            yield batch[self.rank :: self.world_size]


class Loader(DataLoader[tuple[Tensor, ...]]):
    """Its workers are not signalled: a terminal or a cluster signals all processes, and the run still needs them."""

    def __iter__(self) -> Any:
        with held_back():
            return super().__iter__()


def split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Takes `size` of the images away, the same share of each class, chosen by the seed.

    Returns:
        The sorted indices that stay and those that were taken.
    """
    generator = np.random.default_rng([seed, 0])
    by_class = [np.flatnonzero(labels.numpy() == label) for label in np.unique(labels.numpy())]
    exact = np.array([len(members) * size / len(labels) for members in by_class])
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    pairs = zip(by_class, counts, strict=True)
    taken = np.sort(np.concatenate([generator.permutation(members)[:count] for members, count in pairs]))
    stay = np.setdiff1d(np.arange(len(labels)), taken)
    return torch.from_numpy(stay), torch.from_numpy(taken)


class FashionMNIST(L.LightningDataModule):
    """Batches of ((N, 1, S, S) float32 images in [0, 1], (N,) int64 labels).

    Another MNIST-like set is a subclass with its own `source`.

    Args:
        root, cache_dir: see `vggexp.data.idx.obtain`.
        resize: S, at least the stored size.
        batch_size: images per optimizer step, over all processes together.
        val_size: images taken out of the training set for validation, stratified, chosen by the seed.
        train_size: use only this many of the rest, stratified; None: all.
        num_workers: processes that pick the images; the order is the same for any number.
        test_each_epoch: the test set takes the place of the validation set.
        flip, shift, cutout: of training images, see `vggexp.data.augment`.
        seed: of the order and of the split.
    """

    source: ClassVar[idx.IDXSet] = idx.FASHION_MNIST

    def __init__(
        self,
        *,
        root: str | None = None,
        cache_dir: str | None = None,
        resize: int = 224,
        batch_size: int = 128,
        val_size: int = 5000,
        train_size: int | None = None,
        num_workers: int = 0,
        test_each_epoch: bool = False,
        flip: bool = False,
        shift: int = 0,
        cutout: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if test_each_epoch and val_size:
            raise UserError(f"data.test_each_epoch=true: with data.val_size={val_size}; set data.val_size=0")
        self.root, self.cache_dir = root, cache_dir
        self.resize, self.batch_size, self.num_workers, self.seed = resize, batch_size, num_workers, seed
        self.val_size, self.train_size = val_size, train_size
        self.test_each_epoch = test_each_epoch
        self.augments: dict[str, Any] = {"flip": flip, "shift": shift, "cutout": cutout}
        self.sets: dict[str, TensorDataset] = {}
        self._start = (0, 0)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by label."""
        return self.source.classes

    @property
    def validates(self) -> Stage | None:
        """What is scored after each epoch."""
        return "test" if self.test_each_epoch else "val" if self.val_size else None

    def prepare_data(self) -> None:
        """Fills the cache, in one process of each machine."""
        idx.obtain(self.source, self.root, self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """Loads the set once, onto the device that trains unless workers pick the images."""
        if self.sets:
            return
        files = idx.obtain(self.source, self.root, self.cache_dir)
        arrays = {name: torch.from_numpy(idx.parse(content).copy()) for name, content in files.items()}
        labels = arrays[idx.TRAIN_LABELS].long()
        if self.val_size >= len(labels):
            raise UserError(f"data.val_size={self.val_size}: the training set holds {len(labels)} images")
        train, val = split(labels, self.val_size, self.seed)
        if self.train_size is not None:
            if self.train_size > len(train):
                raise UserError(f"data.train_size={self.train_size}: only {len(train)} images are left to train on")
            train = train[split(labels[train], self.train_size, self.seed)[1]]
        test = torch.arange(len(arrays[idx.TEST_LABELS]))
        self.indices = {"train": train, "val": val, "test": test}
        fit = TensorDataset(arrays[idx.TRAIN_IMAGES].to(self._home), labels.to(self._home))
        held_out = (arrays[idx.TEST_IMAGES].to(self._home), arrays[idx.TEST_LABELS].long().to(self._home))
        self.sets = {"train": fit, "val": fit, "test": TensorDataset(*held_out)}

    @property
    def _home(self) -> torch.device:
        if self.trainer is None or self.num_workers:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    def loader(self, stage: Stage, epoch: int = 0, start: int = 0) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of ((N, H, W) uint8, (N,) int64); only "train" is shuffled. For `epoch`, `start` see Batches."""
        batches = Batches(
            self.indices[stage],
            self.batch_size,
            seed=self.seed if stage == "train" else None,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            device=self._home,
            epoch=epoch,
            start=start,
        )
        return Loader(self.sets[stage], sampler=batches, batch_size=None, num_workers=self.num_workers)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.loader("train", *self._start)

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands; the order itself follows from the seed."""
        return {"position": position(self.trainer)} if self.trainer else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict["position"]

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        return [self.loader(self.validates)] if self.validates else []

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.loader("test")

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """On the device: (N, H, W) uint8 → (N, 1, S, S) float32, training images augmented."""
        images, labels = batch
        if self.trainer and self.trainer.training and any(self.augments.values()):
            place = position(self.trainer)
            generator = torch.Generator(images.device)
            generator.manual_seed(seed_at(self.seed, AUGMENTATION, self.trainer.global_rank, *place))
            images = augment(images, generator, **self.augments)
        return prepared(images, self.resize), labels
