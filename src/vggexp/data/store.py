"""Keeps the pixels of decoded pictures in the cache, to be mapped into memory.

A store is two files: pixels, one picture after another, and lines, the first of which is their size; each other line
says what a picture was made from. A build writes pixels, then the lines that speak of them, so that one that was killed
is continued. Where pictures have changed, a new store takes what is still right from the old one. Either file may be
damaged, or written by someone else; nothing that a process may have mapped is written again.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from vggexp.data import pictures
from vggexp.data.source import Fit, digest
from vggexp.errors import UserError
from vggexp.system import files, terminal

log = logging.getLogger("vggexp.data")

LINES, PIXELS = ".lines", ".pixels"
LARGEST_SIDE = 2**15
LARGEST_CHUNK, MOST = 2**24, 128  # bytes of pixels, and pictures, that are written between two lines
THREADS = min(16, os.cpu_count() or 1)
Given = TypeVar("Given")
Made = TypeVar("Made")


class File(NamedTuple):
    """A picture file as a listing shows it."""

    name: str  # relative to the folder, with "/"
    bytes: int
    mtime: int  # nanoseconds


class Row(NamedTuple):
    """A line of a store: a file, and what was found in it."""

    name: str
    bytes: int
    mtime: int
    width: int = 0  # of the picture in the file
    height: int = 0
    digest: int = 0  # the first 8 bytes of the sha256 of the stored pixels
    fault: str = ""  # why the file cannot be read; it then has no pixels
    sha256: str = ""  # of the file, where it was asked for

    @property
    def file(self) -> File:
        return File(*self[:3])


@dataclass(frozen=True)
class Stored:
    """The pictures of a store."""

    lines: Path
    rows: list[Row]
    pixels: np.ndarray  # (N, C, S, S) uint8, a memory map; of the rows without a fault

    @cached_property
    def good(self) -> list[Row]:
        """The rows that have pixels, in their order."""
        return [row for row in self.rows if not row.fault]

    @cached_property
    def bad(self) -> list[Row]:
        """The rows of files that cannot be read."""
        return [row for row in self.rows if row.fault]

    @property
    def side(self) -> int:
        """S, pixels on a side."""
        return int(self.pixels.shape[-1])

    def begins(self, listing: Sequence[File]) -> bool:
        """Whether its pictures are the first ones of a listing."""
        return [row.file for row in self.rows] == listing[: len(self.rows)]


@dataclass
class Store:
    """The pictures of one folder, decoded."""

    folder: Path  # of the store
    source: Path  # of the pictures
    channels: Literal[1, 3]
    size: int  # pixels on a side; 0: as large as they are, which needs one square size
    fit: Fit
    full: bool = False  # whether contents are compared, not only sizes and times
    contents: dict[str, str] = field(init=False, default_factory=dict)  # the sha256 of files, where it was needed
    pool: ThreadPoolExecutor = field(init=False)

    def load(self, listing: Sequence[File], side: int | None = None) -> Stored:
        """The pictures of these files in their order, decoded where no store has them.

        They are kept at `side` pixels, by default at those of all pictures, where these are square and not too large.
        """
        place = f"data.cache_dir={self.folder}"
        with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as self.pool:
            warnings.simplefilter("ignore")  # Pillow's of broken metadata and of large pictures
            Image.init()  # which threads should not do at once
            if stored := self._current(listing, side):
                return stored
            with files.writing(self.folder, place):
                if self.folder.is_symlink():
                    raise UserError(f"{place}: is a link, through which nothing is written; remove it", 1)
                with self._alone():
                    if stored := self._current(listing, side) or self._build(listing, side):
                        return stored
        raise UserError(f"{place}: what was written cannot be read again; name a folder on another disk", 1)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that reads the pictures of %s", self.source)
            held = lock.acquire()
        with held:
            yield

    def _stores(self) -> list[Stored]:
        """All that there are; of one build that goes on or was killed, what it has done."""
        found = (_read(path, self.channels) for path in self.folder.glob(f"*{LINES}"))
        return [self._verified(stored) if self.full else stored for stored in found if stored]

    def _verified(self, stored: Stored) -> Stored:
        """The same, but the rows of pictures whose files or pixels have changed belong to no file any more."""
        images = dict(zip(stored.good, stored.pixels, strict=True))

        def verified(row: Row) -> Row:
            if row.fault:
                return row  # is tried again in any case
            if row.name not in self.contents:
                self.contents[row.name] = self._sha256(row.name)
            same = row.sha256 == self.contents[row.name] and row.digest == digest(images[row].tobytes())
            return row if same else row._replace(bytes=-2)

        return replace(stored, rows=[*self._map("verifying pictures", verified, stored.rows)])

    def _sha256(self, name: str) -> str:
        """Of a file, as hexadecimal digits; of one that cannot be read, something else."""
        try:
            with _opened(self.source / name, files.unblocked) as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError:
            return "unreadable"

    def _current(self, listing: Sequence[File], side: int | None) -> Stored | None:
        """The store that has all these files, and of those that cannot be read none that now can."""
        for stored in self._stores():
            if len(stored.rows) == len(listing) and stored.begins(listing) and side in (None, stored.side):
                form = pictures.Form(self.channels, stored.side, self.fit)
                if all(self._decode(row.file, form)[0].fault for row in stored.bad):
                    return stored
        return None

    def _build(self, listing: Sequence[File], side: int | None) -> Stored | None:
        """Continues a store whose pictures are the first ones, or makes a new one; then removes the others."""
        stores = self._stores()
        sizes = {row.file: (row.width, row.height) for stored in stores for row in stored.good}
        side = side or self._side(listing, sizes)
        form = pictures.Form(self.channels, side, self.fit)
        same = [stored for stored in stores if stored.side == side]
        known = {row.file: (row, stored.pixels[n]) for stored in same for n, row in enumerate(stored.good)}

        def made(file: File) -> tuple[Row, bytes]:
            if file not in known:
                return self._decode(file, form)
            row, image = known[file]
            return row, image.tobytes()

        begun = [each for each in same if not each.bad and each.begins(listing)]
        rows = begun[0].rows if begun else []
        path = begun[0].lines if begun else self.folder / f"{secrets.token_hex(8)}{LINES}"
        files.write_text(path, "".join(f"{json.dumps(part)}\n" for part in (side, *rows)))
        with (
            open(path.with_suffix(PIXELS), "ab", opener=files.no_link) as pixels,
            open(path, "ab", opener=files.no_link) as lines,
            terminal.counting("reading pictures", len(listing) - len(rows)) as advance,
        ):
            pixels.truncate(len(rows) * (one := self.channels * side**2))
            for chunk in _chunks(listing[len(rows) :], max(1, min(MOST, LARGEST_CHUNK // one))):
                done: list[Row] = []
                for row, content in self.pool.map(made, chunk):
                    pixels.write(content)
                    done.append(row)
                    advance(1)
                for file, content in ((pixels, b""), (lines, "".join(f"{json.dumps(row)}\n" for row in done).encode())):
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        stored = _read(path, self.channels)
        for other in self.folder.iterdir():
            if stored and other.stem != path.stem and (LINES in other.name or PIXELS in other.name):
                with contextlib.suppress(PermissionError):  # on Windows while it is mapped; a later build removes it
                    other.unlink()
        return stored

    def _side(self, listing: Sequence[File], known: Mapping[File, tuple[int, int]]) -> int:
        """Pixels on a side of the store: those of all pictures, where these are square and not too large, or `size`."""
        seen = {known[file] for file in listing if file in known}

        def alike() -> bool:
            return len(seen) < 2 and all(width == height <= (self.size or width) for width, height in seen)

        for found in self._map("looking at sizes", self._size, [file for file in listing if file not in known]):
            seen |= {found} if found else set()
            if not alike():
                break
        if seen and alike():
            return next(iter(seen))[0]
        if seen and not self.size:
            shown = ", ".join(f"{width}×{height}" for width, height in sorted(seen)[:2])
            raise UserError(f"data.store_size: missing; the pictures differ in size ({shown}, …); set pixels on a side")
        return self.size or 1

    def _decode(self, file: File, form: pictures.Form) -> tuple[Row, bytes]:
        """A row and its pixels, which are none where the file cannot be read."""
        sizes: list[tuple[int, int]] = []
        try:
            with _opened(self.source / file.name, files.unblocked) as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest() if self.full else ""
                opened.seek(0)
                content = pictures.decoded(opened, form, lambda picture: sizes.append(picture.size)).tobytes()
        except Exception as error:  # noqa: BLE001  Pillow's readers raise anything
            return Row(*file, fault=pictures.reason(error)), b""
        return Row(*file, *sizes[0], digest(content), sha256=sha256), content

    def _size(self, file: File) -> tuple[int, int] | None:
        """Width and height of a picture, by its header; None if it cannot be read, which decoding it will explain."""
        with (
            contextlib.suppress(Exception),  # Pillow's readers raise anything
            _opened(self.source / file.name, files.unblocked) as opened,
            Image.open(opened, formats=pictures.FORMATS) as picture,
        ):
            return picture.size
        return None

    def _map(self, what: str, call: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
        """As the pool's, with few items on their way at once."""
        with terminal.counting(what, len(items)) as advance:
            for chunk in _chunks(items, 1024):
                for made in self.pool.map(call, chunk):
                    advance(1)
                    yield made


def _chunks(items: Sequence[Given], size: int) -> Iterator[Sequence[Given]]:
    return (items[n : n + size] for n in range(0, len(items), size))


@contextlib.contextmanager
def _opened(path: Path, opener: Callable[[str, int], int] = files.no_link) -> Iterator[io.BufferedReader]:
    """A file to read, which is neither a pipe nor a device."""
    with open(path, "rb", opener=opener) as file:
        files.check_regular(path, os.fstat(file.fileno()).st_mode)
        yield file


def _read(path: Path, channels: int) -> Stored | None:
    """What a store holds, as far as its lines are whole; None if it is damaged."""
    try:
        with _opened(path) as lines:
            side = json.loads(lines.readline())
            if type(side) is not int or not 0 < side <= LARGEST_SIDE:
                raise ValueError(f"a side of {side}")
            rows = [_row(line) for line in lines if line.endswith(b"\n")]
        shape = (sum(not row.fault for row in rows), channels, side, side)
        with _opened(path.with_suffix(PIXELS)) as file:  # which must be long enough
            pixels = np.memmap(file, np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return Stored(path, rows, pixels)


def _row(line: bytes) -> Row:
    row = Row(*json.loads(line))
    if tuple(map(type, row)) != (str, int, int, int, int, int, str, str) or not -(2**63) <= row.digest < 2**63:
        raise ValueError("not a row")
    return row
