"""The LightningDataModule: splits, batches in an order that depends on the seed and the epoch alone, and resizing.

N images of a batch, C channels, H×W pixels as stored, S = `resize` pixels as the network gets them.
"""

import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import vggexp.system.torchmetrics  # noqa: F401

# isort: split
import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from vggexp.data.augment import Augmentation
from vggexp.data.preparation import IMAGENET, Normalize, Preparation, statistics
from vggexp.data.source import Images, Source, Split, distinct, fault_of, identity, overlaps
from vggexp.errors import UserError
from vggexp.system import terminal
from vggexp.system.seeds import AUGMENTATION, TRANSFORMS, seed_at
from vggexp.system.signals import CAN_BLOCK, blocked, ignore

LARGEST_ON_GPU = 2**30  # bytes of a set that is kept on the GPU


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
    context = {} if own else {"multiprocessing_context": methods[0]}
    return context if CAN_BLOCK else {**context, "worker_init_fn": ignore}


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
class DataModule(Augmentation, L.LightningDataModule):
    """Batches of ((N, C, S, S) float32 images, (N,) int64 labels) from any source.

    The arguments are a source, a seed, and the keys of `conf/data` that all sources have in common, those of
    `Augmentation` among them.
    """

    source: Source
    resize: int | Mapping[int, int] = 224  # S; or several by the epoch at which they begin, the last is the network's
    normalize: Normalize = "none"  # by which mean and deviation of each channel
    batch_size: int = 128  # images per optimizer step, over all processes together
    val_size: int | float = 5000  # images, or their share, that validate where the source has none for that; 0: none do
    test_size: int | float = 0.2  # the same for the test; both are taken out of the training images, stratified
    train_size: int | None = None  # use only this many of the rest, stratified; None: all
    num_workers: int = 0  # processes that load batches; their number does not change the order
    test_each_epoch: bool = False  # the test set replaces the validation set
    seed: int = 0  # of the order and of changes
    split_seed: int | None = None  # of the splits and of train_size; None: `seed`

    def __post_init__(self) -> None:
        L.LightningDataModule.__init__(self)  # super's would be that of Augmentation, which has its values
        if self.test_each_epoch and self.val_size:
            raise UserError(f"data.test_each_epoch=true: excludes data.val_size={self.val_size}; set data.val_size=0")
        self._split_seed = self.seed if self.split_seed is None else self.split_seed
        self.sizes = {0: self.resize} if isinstance(self.resize, int) else dict(self.resize)
        self.size = self.sizes[max(self.sizes)]
        self.sets: dict[Split, TensorDataset] = {}
        self.indices: dict[Split, Tensor] = {}
        self._start = (0, 0)
        self._batches: Batches | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by label."""
        return self.source.classes

    @property
    def dimensions(self) -> dict[str, int]:
        """The network's ends: pixels of its input, channels and classes."""
        return {"image_size": self.size, "in_channels": self.source.channels, "num_classes": len(self.classes)}

    @cached_property
    def preparation(self) -> Preparation:
        """How a batch becomes the network's input; a trained network brings its own."""
        self.setup()
        pixels = self.parts["train"].pixels
        mean, std = IMAGENET[pixels.shape[1]] if self.normalize == "imagenet" else ((), ())
        if self.normalize == "dataset":
            mean, std = statistics(pixels, self.indices["train"])  # type: ignore[assignment]
        return Preparation(self.size, self.source.fit, pixels.shape[2:], mean, std)

    @property
    def position(self) -> tuple[int, int]:
        """Where training stands: the epoch, counted from 0, and how many of its batches are done."""
        position = (self._batches.epoch, self._batches.done) if self._batches else self._start
        # at the end of an epoch that the next one does not follow, Lightning alone knows that it is complete
        return max(position, (self.trainer.current_epoch, 0)) if self.trainer else position

    @property
    def validates(self) -> Split | None:
        """What is scored after each epoch."""
        return "test" if self.test_each_epoch else "val" if len(self.indices["val"]) else None

    def setup(self, stage: str | None = None) -> None:
        """Loads the set once."""
        if self.sets:
            return
        kind, indices = f"data._target_={type(self.source).__name__}", self.indices
        parts: dict[Split, Images] = {}
        for name in ("train", "test", "val"):
            part = self.source.load(name) if name != "val" or self.val_size else None
            if part is not None:
                if fault := fault_of(part, self.source.channels, len(self.classes)):
                    raise UserError(f"{kind}: its {name} images: {fault}")
                indices[name] = torch.arange(len(part.labels))
            elif name == "train":
                raise UserError(f"{kind}: load('train') returned None; return the training images")
            else:
                indices["train"], indices[name] = self._taken(name, parts["train"].labels, indices["train"])
            parts[name] = part or parts["train"]
        if self.train_size is not None:
            if self.train_size > len(rest := indices["train"]):
                raise UserError(f"data.train_size={self.train_size}: only {len(rest)} images are left; use fewer")
            indices["train"] = rest[split(parts["train"].labels[rest], self.train_size, self._split_seed)[1]]
        self.parts = parts
        self._check()
        self.identity = identity(parts, self.classes)
        made = {id(part): TensorDataset(part.pixels, part.labels) for part in parts.values()}
        self.sets = {name: made[id(part)] for name, part in parts.items()}

    def _taken(self, name: Split, labels: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the validation or test images out of those with these indices; returns the others and these."""
        size = getattr(self, key := f"{name}_size")
        count = round(size * len(among)) if isinstance(size, float) else size
        if count >= len(among):
            whole = "the training set holds" if len(among) == len(labels) else "beside the test images there are"
            raise UserError(f"data.{key}={size}: {whole} {len(among)} images; use fewer")
        if not count and (size or name == "test"):
            raise UserError(f"data.{key}={size}: leaves no {name} images; use more{' or 0' if name == 'val' else ''}")
        others, taken = split(labels[among], count, self._split_seed)
        return among[others], among[taken]

    def _check(self) -> None:
        parts = self.parts
        if self.source.channels not in IMAGENET and (self.normalize == "imagenet" or self.color_jitter):
            key = "normalize=imagenet" if self.normalize == "imagenet" else f"color_jitter={self.color_jitter}"
            raise UserError(f"data.{key}: needs 1 or 3 channels, the images have {self.source.channels}; leave it out")
        if self.shift >= (least := min(parts["train"].pixels.shape[2:])):
            raise UserError(f"data.shift={self.shift}: the images have {least} pixels on a side; use less")
        if self.num_workers and parts["train"].mapped and multiprocessing.get_start_method() != "fork":
            raise UserError(f"data.num_workers={self.num_workers}: would copy the set, which lies in a file; set 0")
        for line in overlaps(parts, self.indices):
            rank_zero_only(terminal.say)(line, stderr=True)

    def loader(self, stage: Split, epoch: int = 0, done: int = 0) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of ((N, C, H, W) uint8, (N,) int64); only "train" is shuffled. See `Batches` for the others."""
        batches = Batches(self.indices[stage], self.batch_size, epoch=epoch, done=done)
        batches.seed = self.seed if stage == "train" else None
        parts = distinct(self.sets)
        if self.trainer:
            batches.rank, batches.world_size = self.trainer.global_rank, self.trainer.world_size
            if not self.num_workers and sum(part.tensors[0].nbytes for part in parts) <= LARGEST_ON_GPU:
                batches.device = self.trainer.strategy.root_device
        for part in parts:
            part.tensors = tuple(tensor.to(batches.device) for tensor in part.tensors)
        workers = {"num_workers": self.num_workers, **_context()} if self.num_workers else {}
        return Loader(self.sets[stage], sampler=batches, batch_size=None, **workers)

    def stored(self, stage: Split, positions: Tensor) -> Tensor:
        """The images at these positions of a part, (N, C, H, W) uint8."""
        pixels = self.sets[stage].tensors[0]
        return pixels[self.indices[stage][positions.cpu()].to(pixels.device)]

    def labels(self, stage: Split) -> Tensor:
        """The labels of a part, (N,) int64, on the CPU."""
        return self.sets[stage].tensors[1].cpu()[self.indices[stage]]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        loader = self.loader("train", *self._start)
        self._batches = loader.sampler  # type: ignore[assignment]
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The position in the order, which follows from the seed, and what the data were."""
        return {"position": self.position, "identity": self.identity}

    def check_same(self, state_dict: Mapping[str, Any]) -> None:
        """Refuses to go on with other images or classes than those of a state."""
        self.setup()
        if state_dict.get("identity", self.identity) != self.identity:
            changed = "the images or classes are not those that the run began with"
            raise UserError(f"data.root={self.source.root}: {changed}; restore them, or start a new run")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.check_same(state_dict)
        epoch, batch = state_dict["position"]
        self._start, self._batches = (int(epoch), int(batch)), None

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        return [self.loader(self.validates)] if self.validates else []

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.loader("test")

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """On the device: (N, C, H, W) uint8 → (N, C, S, S) float32, training images augmented."""
        images, labels = batch
        if not (self.trainer and self.trainer.training and self._batches):
            return self.preparation(images), labels
        place = (self.trainer.global_rank, *self.position)
        size = self.sizes[max(begun for begun in self.sizes if begun <= place[1])]
        generator = torch.Generator(images.device)
        generator.manual_seed(seed_at(self.seed, AUGMENTATION, *place))
        seed = seed_at(self.seed, TRANSFORMS, *place)
        images = self.of_bytes(images, generator)
        images = self.preparation(self.transformed(images, size, seed), size)
        self._batches.done += 1
        return self.mixed(images, labels, len(self.classes), seed)
