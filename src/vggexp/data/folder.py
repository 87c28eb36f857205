"""A folder of pictures, one sub-folder for each class, as torchvision's ImageFolder reads it."""

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from vggexp.data import pictures
from vggexp.data.source import Images, Source, Split
from vggexp.data.store import File, Store, Stored
from vggexp.errors import UserError
from vggexp.system import paths
from vggexp.system.text import label

log = logging.getLogger("vggexp.data")

LAYOUT = "train/CLASS/*.jpg, or CLASS/*.jpg"
NAMED = 3  # names that a message lists
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # names of parts, never of classes


@dataclass(kw_only=True)
class Folder(Source):
    """Pictures in `root/train/CLASS/` and, where there are such folders, `root/val/CLASS/` and `root/test/CLASS/`.

    Without `train/`, the folders in `root` are the classes. Pictures may lie at any depth below their class. Links to
    folders are not followed, except as `root`, `train`, `val` and `test`. Names that begin with a dot are skipped.

    The images come in the order of their file names, without folders; classes decide only between equal names. So an
    exported set whose files have zero-padded numbers as names gets its order back, whatever its classes are.
    """

    channels: Literal[1, 3] = 3  # gray or colored, whatever the files are
    store_size: int | None = None  # pixels on a side that pictures are stored at; None: `size`
    skip_bad: bool = False  # whether files that cannot be read are left out
    verify: Literal["stat", "full"] = "stat"  # what is compared with the store: sizes and times, or contents, too
    _side: int = field(init=False, default=0)  # pixels at which the training pictures are kept

    @cached_property
    def _root(self) -> Path:
        if not self.root:
            raise UserError(f"data.root: missing; name a folder that holds {LAYOUT}")
        with self._looking(self.root):
            root = Path(self.root).expanduser().resolve()
            if not root.is_dir():
                raise UserError(f"data.root={self.root}: no such folder; name one that holds {LAYOUT}")
            next(root.iterdir(), None)  # which says why it cannot be looked into
            return root

    @contextmanager
    def _looking(self, folder: str | Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._refuse(error, folder)

    def _refuse(self, error: Exception, folder: str | Path | None = None) -> None:
        reason, place = getattr(error, "strerror", None) or error, folder or getattr(error, "filename", "")
        remedy = f"name a folder that can be read and holds {LAYOUT}"
        raise UserError(f"data.root={self.root}: {place} cannot be read: {reason}; {remedy}") from error

    @cached_property
    def _folders(self) -> dict[Split, Path]:
        """The folders of classes, by split."""
        parts: tuple[Split, ...] = ("train", "val", "test")
        names = self._subfolders(self._root)
        with self._looking(self._root):
            there = {path.name for path in self._root.iterdir() if path.name in parts and path.is_dir()}
        found = {part: self._root / part for part in parts if part in there}
        if (found or {name.lower() for name in names} <= PARTS) and "train" not in found and names:
            others = _few(sorted(names))
            raise UserError(
                f"data.root={self.root}: holds {others}, but not train/; call the parts train, val and test"
            )
        if found and (others := _few(sorted(set(names) - set(parts)))):
            log.warning("data.root=%s: has train/, so these folders beside it are not used: %s", self.root, others)
        return found or {"train": self._root}

    @cached_property
    def _names(self) -> list[str]:
        """The folders of the classes, sorted."""
        if not (names := self._subfolders(self._folders["train"])):
            raise UserError(f"data.root={self.root}: holds no folders of classes; name a folder that holds {LAYOUT}")
        return sorted(names)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the folders, sorted; characters that a terminal obeys are spelled out."""
        names = tuple(map(label, self._names))
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"data.root={self.root}: two classes are called {twice[0]}; rename one of the folders")
        return names

    def load(self, split: Split) -> Images | None:
        """(N, C, S, S) images, mapped; None where there is no such folder, or nothing in it."""
        if (folder := self._folders.get(split)) is None:
            return None
        if others := sorted(set(self._subfolders(folder)) - set(self._names)):
            raise UserError(f"data.root={self.root}: train/ lacks {others[0]}, a class of {split}/; add or remove it")
        listing = self._listing(folder)
        if not listing and split != "train":
            log.warning("data.root=%s: %s/ holds no pictures in folders of classes, and is not used", self.root, split)
            return None
        if not listing:
            raise UserError(
                f"data.root={self.root}: holds no pictures in its classes; name a folder that holds {LAYOUT}"
            )
        # all parts are kept at the size of the training pictures, because predict brings new pictures to that size
        if split != "train" and not self._side:
            self.load("train")
        stored = self._store(folder, split).load(listing, None if split == "train" else self._side)
        self._side = stored.side
        self._check(stored)
        numbers = {name: n for n, name in enumerate(self._names)}
        labels = torch.tensor([numbers[row.name.split("/")[0]] for row in stored.good])
        digests = torch.tensor([row.digest for row in stored.good])
        if split == "train":
            self._warn_of_classes(labels)
        content = b"".join(column.numpy().astype("<i8").tobytes() for column in (labels, digests))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's: what the map shows cannot be written
            pixels = torch.from_numpy(stored.pixels)
        prefix = f"{folder.name}/" if folder != self._root else ""
        names = [prefix + row.name for row in stored.good]
        hashes = {f"{self._root.name}/{split}": hashlib.sha256(content).hexdigest()}
        return Images(pixels, labels, hashes, files=names, digests=digests, mapped=True)

    def _store(self, folder: Path, split: Split) -> Store:
        size = self.store_size or self.size
        about = "\n".join(map(str, (self._root, split, self.channels, size, self.fit)))
        key = f"{self._root.name[:40] or 'root'}-{hashlib.sha256(os.fsencode(about)).hexdigest()[:12]}"
        place = paths.cache(self.cache_dir) / "pictures" / key
        return Store(place, folder, self.channels, size, self.fit, self.verify == "full")

    def _check(self, stored: Stored) -> None:
        """Refuses or reports files that cannot be read."""
        bad, total = stored.bad, len(stored.rows)
        if bad and not (self.skip_bad and stored.good):
            remedy = "remove them or set data.skip_bad=true" if stored.good else "check the folder"
            first = f"the first is {bad[0].name} ({bad[0].fault})"
            raise UserError(f"data.root={self.root}: {len(bad)} of {total} files cannot be read, {first}; {remedy}")
        if bad:
            names = _few([row.name for row in bad])
            log.warning("%d of %d files cannot be read and are left out: %s", len(bad), total, names)

    def _warn_of_classes(self, labels: torch.Tensor) -> None:
        """Reports classes that cannot be learned or split."""
        counts = torch.bincount(labels, minlength=len(self.classes)).tolist()
        for count, words in ((0, "no picture"), (1, "one picture only")):
            if names := [name for name, found in zip(self.classes, counts, strict=True) if found == count]:
                log.warning("data.root=%s: %d classes have %s: %s", self.root, len(names), words, _few(names))

    def _subfolders(self, folder: Path) -> list[str]:
        with self._looking(folder), os.scandir(folder) as entries:
            return [each.name for each in entries if each.is_dir(follow_symlinks=False) and each.name[0] != "."]

    def _listing(self, folder: Path) -> list[File]:
        """The picture files below the folders of classes, in the order of the images."""
        known, found = pictures.suffixes(), []
        for name in self._subfolders(folder):
            for place, inside, files in os.walk(folder / name, onerror=self._refuse):
                inside[:] = [each for each in inside if each[0] != "."]
                names = [each for each in files if each[0] != "." and os.path.splitext(each)[1].lower() in known]  # noqa: PTH122
                found += [(each, name, _file(folder, os.path.join(place, each))) for each in names]  # noqa: PTH118
        return [file for *_, file in sorted(found)]


def _few(names: Sequence[str]) -> str:
    return ", ".join([*map(label, names[:NAMED]), *(["…"] if len(names) > NAMED else [])])


def _file(folder: Path, path: str) -> File:
    name = path[len(str(folder)) + 1 :].replace(os.sep, "/")
    try:
        status = os.stat(path)  # noqa: PTH116  a Path for each file would take time
    except OSError:
        return File(name, -1, -1)  # a link to nothing; reading it gives the reason
    return File(name, status.st_size, status.st_mtime_ns)
