"""The files of the store of pictures: pixels, one image after another, and a manifest of what they were made from.

The first line of a manifest names the file of pixels and the size of the images; each other line is a picture, in the
order of the pixels. A journal is the manifest of a build that has not ended: its last line may be torn, and pixels may
follow that it does not speak of yet. Either may be damaged, or written by someone else.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggexp.system import files

MANIFEST, JOURNAL = "manifest.jsonl", "journal.jsonl"
LARGEST_SIDE = 2**15
KINDS = (str, int, int, int, int, int, str, str)
PIXELS = re.compile(r"[0-9a-f]{16}\.pixels")


class File(NamedTuple):
    """A picture file as a listing shows it."""

    name: str  # relative to the folder, with "/"
    bytes: int
    mtime: int  # nanoseconds


class Row(NamedTuple):
    """A line of a manifest: a file, and what was found in it."""

    name: str
    bytes: int
    mtime: int
    width: int = 0  # of the picture in the file
    height: int = 0
    digest: int = 0  # the first 8 bytes of the sha256 of the stored pixels
    sha256: str = ""  # of the file, where `full` was asked for
    fault: str = ""  # why the file cannot be read; it then has no pixels

    @property
    def file(self) -> File:
        return File(*self[:3])


@dataclass(frozen=True)
class Stored:
    """A manifest and its pixels."""

    rows: list[Row]
    pixels: np.ndarray  # (N, C, S, S) uint8, a memory map; of the rows without a fault
    name: str  # of the file of pixels
    length: int  # bytes of the manifest

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


def read(folder: Path, name: str, channels: int) -> Stored | None:
    """The manifest or the journal, if it is whole but for the journal's end; anyone may have written it."""
    rows: list[Row] = []
    try:
        with open(folder / name, "rb", opener=files.no_link) as lines:
            files.check_regular(folder / name, os.fstat(lines.fileno()).st_mode)
            header = lines.readline()
            said, length = json.loads(header), len(header)
            path, side = folder / PIXELS.fullmatch(said["pixels"])[0], said["side"]  # type: ignore[index]
            if type(side) is not int or not 0 < side <= LARGEST_SIDE:
                raise ValueError(f"a side of {side}")
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                rows.append(_row(line))
                length += len(line)
        count = sum(not row.fault for row in rows)
        shape = (count, channels, side, side)
        with open(path, "rb", opener=files.no_link) as file:
            status = os.fstat(file.fileno())
            files.check_regular(path, status.st_mode)
            beyond = status.st_size - math.prod(shape)
            if beyond < 0 or (beyond and name == MANIFEST):
                raise ValueError(f"{beyond} bytes of pixels too many")
            pixels = np.memmap(file, np.uint8, "r", shape=shape) if count else np.empty(shape, np.uint8)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return Stored(rows, pixels, path.name, length)


def header(name: str, side: int) -> str:
    return json.dumps({"pixels": name, "side": side}) + "\n"


def line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _row(line: bytes) -> Row:
    row = Row(*json.loads(line))
    if tuple(map(type, row)) != KINDS or not -(2**63) <= row.digest < 2**63:
        raise ValueError("not a row")
    return row
