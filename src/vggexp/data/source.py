"""What a data set is: one class that gives pixels, labels and names; everything else is written once for all."""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Split = Literal["train", "val", "test"]
Fit = Literal["stretch", "crop", "pad"]
"""How an image that is not square becomes square: its sides are stretched, the longer one is cut at both ends, or the
shorter one is padded with black at both."""


@dataclass(frozen=True)
class Images:
    """One part of a data set: N images of C channels and H×W pixels."""

    pixels: "Tensor"  # (N, C, H, W) uint8; a memory map where `mapped`
    labels: "Tensor"  # (N,) int64
    hashes: Mapping[str, str]  # the sha256, or md5, of each file that was read, by name
    _: KW_ONLY
    files: Sequence[str] = ()  # the file of each image, where each has its own
    digests: "Tensor | None" = None  # (N,) int64, the beginnings of the sha256 of each image's pixels, where known
    mapped: bool = False  # whether the pixels lie in a file, of which memory holds what is in use


@dataclass(kw_only=True)
class Source(ABC):
    """A data set. A subclass says what its classes are and loads their images; its own fields are keys of its YAML."""

    root: str | None = None  # a folder that holds the files
    cache_dir: str | None = None  # for files that are kept, see `vggexp.system.paths.cache`
    size: int = 0  # pixels on a side at which pictures are stored; 0: their own
    fit: Fit = "pad"  # how an image that is not square becomes square

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names, by label."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """C: 1 for gray images, 3 for colored ones."""

    @abstractmethod
    def load(self, split: Split) -> Images | None:
        """The images of one part; None if the set has no such part, which is then taken out of the training images.

        Called by every process of a run, so whatever is written into the cache needs a lock.
        """


def fault_of(part: Images, channels: int, classes: int) -> str | None:
    """What is wrong with the images and labels of a part; None if nothing is."""
    pixels, labels = part.pixels, part.labels
    if str(pixels.dtype) != "torch.uint8" or pixels.ndim != 4 or pixels.shape[1] != channels:
        return f"pixels must be (N, {channels}, H, W) uint8, not {tuple(pixels.shape)} {pixels.dtype}"
    if not len(pixels):
        return "there are none"
    if str(labels.dtype) != "torch.int64" or labels.shape != (len(pixels),):
        return f"labels must be ({len(pixels)},) int64, not {tuple(labels.shape)} {labels.dtype}"
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        return f"labels must be 0 to {classes - 1}, not {int(labels.min())} to {int(labels.max())}"
    if len(part.files) not in (0, len(labels)) or (part.digests is not None and len(part.files) != len(part.digests)):
        return "there must be a file name for each image, or none"
    return None


def distinct(parts: Mapping[Split, T]) -> list[T]:
    """The parts, of which several may be the same, each once."""
    return list({id(part): part for part in parts.values()}.values())


def digest(pixels: bytes) -> int:
    """The beginning of the sha256 of an image's pixels, as a signed 64-bit integer."""
    return int.from_bytes(hashlib.sha256(pixels).digest()[:8], "big", signed=True)


def identity(parts: Mapping[Split, Images], classes: Sequence[str]) -> str:
    """One sha256 for a whole data set, from the checksums of its files and the names of its classes."""
    lines = [f"{name} {sha256}" for name, part in parts.items() for sha256 in part.hashes.values()]
    return hashlib.sha256("\n".join([*lines, *classes]).encode("utf-8", "surrogatepass")).hexdigest()


def overlaps(parts: Mapping[Split, Images], indices: Mapping[Split, "Tensor"]) -> Iterator[str]:
    """A line for each two parts that have pictures in common, which names the first; `indices` are those of a part."""
    found: dict[Split, dict[int, str]] = {}
    for name, part in parts.items():
        if part.digests is not None:
            chosen = indices[name].tolist()
            digests = part.digests[indices[name]].tolist()
            found[name] = {digest: part.files[n] for digest, n in zip(digests, chosen, strict=True)}
    for one, other in itertools.combinations(found, 2):
        if both := sorted(found[one].keys() & found[other].keys()):
            first = f"{found[one][both[0]]} = {found[other][both[0]]}"
            yield f"data: {len(both)} pictures are in both the {one} and the {other} images, the first: {first}"
