"""Keeps the pixels of decoded pictures in the cache, to be mapped into memory.

A build writes pixels, then the lines of its journal that speak of them, so that one that was killed is continued. The
journal then becomes the manifest; or, where only some files have changed, all pixels are copied into a new file.
Nothing that a process may have mapped is written again.
"""

import contextlib
import hashlib
import io
import itertools
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from vggexp.data import pictures
from vggexp.data.pixels import JOURNAL, MANIFEST, File, Row, Stored, header, line, read
from vggexp.data.source import Fit, digest
from vggexp.errors import UserError
from vggexp.system import files, terminal

log = logging.getLogger("vggexp.data")

LARGEST_CHUNK = 2**24  # bytes of pixels between two lines that say how far a build has come
MOST = 128  # pictures, likewise
THREADS = min(16, os.cpu_count() or 1)
Given = TypeVar("Given")
Made = TypeVar("Made")
Places = dict[File, tuple[Row, Stored, int]]
"""Where the pixels of files are: their rows, and their numbers in a store."""


@dataclass
class Store:
    """The pictures of one folder, decoded."""

    folder: Path  # of the store
    source: Path  # of the pictures
    channels: Literal[1, 3]
    size: int  # pixels on a side; 0: as large as they are, which needs one square size
    fit: Fit
    full: bool = False  # whether contents are compared, not only sizes and times
    side: int | None = field(init=False, default=None)
    contents: dict[str, str] = field(default_factory=dict)  # the sha256 of files, where it was needed
    pool: ThreadPoolExecutor = field(init=False)

    def load(self, listing: Sequence[File], side: int | None = None) -> Stored:
        """The pictures of these files in their order, decoded where the store does not match them.

        They are kept at `side` pixels, by default at those of all pictures, where these are square and not too large.
        """
        place, self.side = f"data.cache_dir={self.folder}", side
        with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as self.pool:
            warnings.simplefilter("ignore")  # Pillow's of broken metadata and of large pictures
            Image.init()  # which threads should not do at once
            stored = self._current(listing)
            if stored is None:
                with files.writing(self.folder, place):
                    if self.folder.is_symlink():
                        raise UserError(f"{place}: is a link, through which nothing is written; remove it", 1)
                    with self._alone():
                        stored = self._current(listing) or self._build(listing)
        if stored is None:
            raise UserError(f"{place}: what was written cannot be read again; name a folder on another disk", 1)
        return stored

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

    def _current(self, listing: Sequence[File]) -> Stored | None:
        """The finished store, if it matches the files."""
        stored = read(self.folder, MANIFEST, self.channels)
        if (
            stored is None
            or (self.side or stored.side) != stored.side
            or [row.file for row in stored.rows] != listing
            or not all(self._unchanged(stored))
        ):
            return None
        form = self._form(stored.side)
        return stored if all(self._decode(row.file, form)[0].fault for row in stored.bad) else None

    def _unchanged(self, stored: Stored) -> Iterable[bool]:
        """Whether each row's pixels, and its file's content, are still the same; only `full` looks at them."""

        def same(row: Row, pixels: np.ndarray) -> bool:
            if not row.sha256 or digest(pixels.tobytes()) != row.digest:
                return False
            if row.name not in self.contents:
                self.contents[row.name] = self._sha256(row.name)
            return self.contents[row.name] == row.sha256

        rows = stored.good
        if not self.full:
            return [True] * len(rows)
        return self._map("verifying pictures", lambda n: same(rows[n], stored.pixels[n]), range(len(rows)))

    def _places(self, stored: Stored | None) -> Places:
        if stored is None:
            return {}
        rows = enumerate(zip(stored.good, self._unchanged(stored), strict=True))
        return {row.file: (row, stored, n) for n, (row, unchanged) in rows if unchanged}

    def _build(self, listing: Sequence[File]) -> Stored | None:
        kept, journal = (read(self.folder, name, self.channels) for name in (MANIFEST, JOURNAL))
        listed = set(listing)
        places = self._places(kept) | self._places(journal)
        known = {file: place for file, place in places.items() if file in listed}
        side = self._side(listing, {file: (row.width, row.height) for file, (row, _, _) in known.items()})
        known = {file: place for file, place in known.items() if place[1].side == side}
        fresh = [file for file in listing if file not in known]
        rows = {file: row for file, (row, _, _) in known.items()}
        if journal or fresh:
            journal = self._append(journal if journal and journal.side == side else None, fresh, side)
            if journal is None:
                return None
            rows = {row.file: row for row in journal.rows} | rows
            known = {row.file: (row, journal, n) for n, row in enumerate(journal.good)} | known
        if journal and [row.file for row in journal.rows] == listing:
            os.replace(self.folder / JOURNAL, self.folder / MANIFEST)
            files.sync(self.folder)
        else:
            self._copy([rows[file] for file in listing], known, side)
        stored = read(self.folder, MANIFEST, self.channels)
        for path in self.folder.iterdir():
            left = ".pixels" in path.name or JOURNAL in path.name or path.name.startswith(f".{MANIFEST}")
            if stored and left and path.name != stored.name:
                path.unlink()
        return stored

    def _side(self, listing: Sequence[File], known: Mapping[File, tuple[int, int]]) -> int:
        """Pixels on a side of the store: those of all pictures, where these are square and not too large, or `size`."""
        if self.side:
            return self.side
        seen = set(known.values())

        def alike() -> bool:
            return len(seen) < 2 and all(width == height <= (self.size or width) for width, height in seen)

        unseen = [file.name for file in listing if file not in known]
        for found in self._map("looking at sizes", self._size, unseen):
            seen |= {found} if found else set()
            if not alike():
                break
        if seen and alike():
            return next(iter(seen))[0]
        if seen and not self.size:
            shown = ", ".join(f"{width}×{height}" for width, height in sorted(seen)[:2])
            raise UserError(f"data.store_size: missing; the pictures differ in size ({shown}, …); set pixels on a side")
        return self.size or 1

    def _append(self, journal: Stored | None, fresh: Sequence[File], side: int) -> Stored | None:
        """Decodes pictures into the journal, a new one if there is none; returns the journal."""
        name = journal.name if journal else f"{secrets.token_hex(8)}.pixels"
        first = header(name, side)
        if journal is None:
            (self.folder / name).touch(exist_ok=False)
            files.write_text(self.folder / JOURNAL, first)
        one = self.channels * side**2
        with (
            open(self.folder / name, "r+b", opener=files.no_link) as pixels,
            open(self.folder / JOURNAL, "r+b", opener=files.no_link) as lines,
            terminal.counting("reading pictures", len(fresh)) as advance,
        ):
            pixels.seek(pixels.truncate(len(journal.good) * one if journal else 0))
            lines.seek(lines.truncate(journal.length if journal else len(first)))
            for chunk in _chunks(fresh, max(1, min(MOST, LARGEST_CHUNK // one))):
                rows = []
                for row, content in self.pool.map(self._decode, chunk, itertools.repeat(self._form(side))):
                    pixels.write(content)
                    rows.append(row)
                    advance(1)
                for file, content in ((pixels, b""), (lines, "".join(map(line, rows)).encode())):
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        return read(self.folder, JOURNAL, self.channels)

    def _copy(self, rows: Sequence[Row], known: Places, side: int) -> None:
        """Replaces the manifest by these rows, whose pixels lie in several files, and copies the pixels into one."""
        name = f"{secrets.token_hex(8)}.pixels"
        with files.replacing(self.folder / name) as temporary, open(temporary, "wb") as file:
            for row in rows:
                if not row.fault:
                    _, stored, n = known[row.file]
                    file.write(stored.pixels[n].tobytes())
        with files.replacing(self.folder / MANIFEST) as temporary, open(temporary, "w", encoding="utf-8") as lines:
            lines.write(header(name, side))
            lines.writelines(map(line, rows))

    def _form(self, side: int) -> pictures.Form:
        return pictures.Form(self.channels, side, self.fit)

    def _decode(self, file: File, form: pictures.Form) -> tuple[Row, bytes]:
        """A row and its pixels, which are none where the file cannot be read."""
        sizes: list[tuple[int, int]] = []
        try:
            with self._opened(file.name) as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest() if self.full else ""
                opened.seek(0)
                content = pictures.decoded(opened, form, lambda picture: sizes.append(picture.size)).tobytes()
        except Exception as error:  # noqa: BLE001  Pillow's readers raise anything
            return Row(*file, fault=pictures.reason(error)), b""
        return Row(*file, *sizes[0], digest(content), sha256), content

    def _size(self, name: str) -> tuple[int, int] | None:
        """Width and height of a picture, by its header; None if it cannot be read, which decoding it will explain."""
        try:
            with self._opened(name) as file, Image.open(file, formats=pictures.FORMATS) as picture:
                return picture.size
        except Exception:  # noqa: BLE001  Pillow's readers raise anything
            return None

    def _sha256(self, name: str) -> str:
        try:
            with self._opened(name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""  # which no row has here, so that the file is read again

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[io.BufferedReader]:
        with open(self.source / name, "rb", opener=files.unblocked) as file:
            files.check_regular(self.source / name, os.fstat(file.fileno()).st_mode)
            yield file

    def _map(self, what: str, call: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
        """As the pool's, with few items on their way at once."""
        with terminal.counting(what, len(items)) as advance:
            for chunk in _chunks(items, 1024):
                for made in self.pool.map(call, chunk):
                    advance(1)
                    yield made


def _chunks(items: Sequence[Given], size: int) -> Iterator[Sequence[Given]]:
    return (items[n : n + size] for n in range(0, len(items), size))
