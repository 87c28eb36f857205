"""Turns pictures into what the networks learn from: gray or colored bytes, of one size.

A picture is turned upright, to gray by its luma (0.299 R + 0.587 G + 0.114 B) or to RGB, inverted where asked, made
square, and resized by PIL's bilinear filter. A picture that already has the form stays unchanged. Transparent pixels
become background: black, or white where inverted. Of several frames the first is taken.
"""

import contextlib
import functools
import glob
import io
import os
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vggexp.data import idx
from vggexp.data.source import Fit
from vggexp.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
LARGEST_SQUARE = 10**8  # pixels of a picture that is padded before it is resized
LIGHT = 170  # the mean of a border from which on a picture may need `invert`
STDIN = "-"
Note = Callable[[Path, str], None]


@dataclass(frozen=True)
class Form:
    """What pictures become."""

    channels: Literal[1, 3]  # gray or RGB
    size: int | None  # pixels on a side; None: each picture keeps its own height and width
    fit: Fit  # how a picture becomes square; centered
    invert: bool = False  # for dark things on a light background


def files(inputs: str, note: Note = lambda path, text: None) -> list[Path]:
    """What `input=` names: paths and patterns between commas; a folder stands for its pictures and IDX files.

    `note` is told of each folder what is in it beside these.
    """
    found: list[Path] = []
    parts = [inputs] if inputs and os.path.exists(inputs) else inputs.split(",")  # noqa: PTH110  Path's may raise
    if not all(map(str.strip, parts)):
        raise UserError(f"input={inputs}: has an empty part; name a file, a folder or a pattern")
    for text in parts:
        path = Path(text).expanduser()
        if os.path.isdir(path):  # noqa: PTH112
            found += _inside(path, note)
        elif os.path.lexists(path) or text == STDIN:
            found.append(path)
        elif matches := [Path(m) for m in sorted(glob.glob(str(path), recursive=True)) if not Path(m).is_dir()]:  # noqa: PTH207
            found += matches
        else:
            raise UserError(f"input={text}: no such file or folder; check the path")
    return found


def _inside(folder: Path, note: Note) -> list[Path]:
    known = suffixes()
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    inside = [path for path in every if path.suffix.lower() in known or _is_idx(path)]
    if not inside:
        raise UserError(f"input={folder}: holds no picture or IDX file; name another folder")
    if others := Counter(path.suffix.lower() or "no ending" for path in set(every) - set(inside)):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        note(folder, f"{others.total()} files are no pictures ({kinds}) and are left out")
    return inside


def suffixes() -> set[str]:
    """How the names of picture files end, in lower case."""
    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def read(
    paths: Iterable[Path], form: Form, refuse: Note, note: Note = lambda path, text: None
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (C, H, W) uint8 images, one after another; an IDX file gives `FILE[0]`, `FILE[1]`, ….

    Args:
        refuse: called with each file that cannot be read, and why.
        note: called with each file of which something is left out, and what.
    """
    for path in paths:
        try:
            with warnings.catch_warnings(), _opened(path) as file:
                warnings.simplefilter("ignore")  # Pillow's of broken metadata; what cannot be read is refused
                if not (start := file.read(2**12)):
                    raise ValueError("is empty (0 bytes)")
                file.seek(0)
                if _is_idx_start(start):
                    arrays = enumerate(idx.parse(idx.unpacked(file.read(idx.MAX_BYTES))))
                    found = [(f"{path}[{n}]", _prepared(Image.fromarray(array), form)) for n, array in arrays]
                else:
                    found = [(str(path), decoded(file, form, functools.partial(_count_frames, path, note)))]
        except Exception as error:  # noqa: BLE001  Pillow's readers raise anything; the other files do not suffer
            refuse(path, reason(error, ", nor an IDX file"))
        else:
            yield from found


def _opened(path: Path) -> BinaryIO:
    """A file from which can be read twice, also where it is a pipe."""
    if str(path) == STDIN:
        return io.BytesIO(sys.stdin.buffer.read(idx.MAX_BYTES))
    if path.is_file():
        return open(path, "rb")
    with open(path, "rb") as pipe:
        return io.BytesIO(pipe.read(idx.MAX_BYTES))


def decoded(file: BinaryIO, form: Form, look: Callable[[Image.Image], None] = lambda picture: None) -> np.ndarray:
    """The (C, H, W) uint8 image in an opened picture file; `look` sees the picture before its pixels are read.

    Raises:
        Exception: of any kind, as Pillow's readers do; `reason` says what is wrong with the file.
    """
    with Image.open(file, formats=FORMATS) as picture:
        look(picture)
        return _prepared(picture, form)


def reason(error: Exception, others: str = "") -> str:
    """Why a file cannot be read, in one line; `others` completes "is not a picture that Pillow reads"."""
    if isinstance(error, UnidentifiedImageError):
        return f"is not a picture that Pillow reads{others}"
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _prepared(picture: Image.Image, form: Form) -> np.ndarray:
    depths = [str(tile[3]) for tile in getattr(picture, "tile", ())]
    picture.load()
    with contextlib.suppress(Exception):  # broken EXIF data say nothing of the picture
        ImageOps.exif_transpose(picture, in_place=True)
    clear = _transparent(picture, depths)
    if picture.mode.startswith("I"):  # 16 bits a pixel
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    elif picture.mode == "F" and (values := np.asarray(picture)).max() <= 1:
        picture = Image.fromarray(values * 255)
    if clear is not None:
        picture = picture.convert("L")
        picture.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    if picture.has_transparency_data:
        background = Image.new("RGBA", picture.size, "white" if form.invert else "black")
        picture = Image.alpha_composite(background, picture.convert("RGBA"))
    picture = picture.convert("RGB") if picture.mode == "LAB" else picture
    picture = picture.convert("L" if form.channels == 1 else "RGB")
    if form.invert:
        picture = ImageOps.invert(picture)
    if form.size is not None:
        picture = _square(picture, form.size, form.fit)
    pixels = np.asarray(picture)
    return pixels[None] if form.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _square(picture: Image.Image, size: int, fit: Fit) -> Image.Image:
    (width, height), bilinear = picture.size, Image.Resampling.BILINEAR
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    elif fit == "pad":
        side = max(width, height)
        if side**2 > LARGEST_SQUARE:
            width, height = (max(1, pixels * size // side) for pixels in picture.size)
            picture, side = picture.resize((width, height), bilinear), size
        picture = ImageOps.pad(picture, (side, side))
    return picture.resize((size, size), bilinear)


def _count_frames(path: Path, note: Note, picture: Image.Image) -> None:
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        note(path, f"has {frames} frames, of which the first is used")


def _transparent(picture: Image.Image, depths: list[str]) -> np.ndarray | None:
    """Where a gray PNG has its transparent color, (H, W) bool, of whatever depth; None for others."""
    value, mode = picture.info.get("transparency"), picture.mode
    if picture.format != "PNG" or not isinstance(value, int) or not (mode in ("1", "L") or mode.startswith("I")):
        return None
    bits = next((int(raw[2:]) for raw in depths if raw in ("L;2", "L;4")), 8)
    shown = value * 255 // (2**bits - 1) if bits < 8 else value  # Pillow stretches the pixels to 8 bits, not this
    found: np.ndarray = np.asarray(picture) == (bool(value) if mode == "1" else shown)
    return found


def looks_inverted(image: np.ndarray) -> bool:
    """Whether a (C, H, W) image has a light border, as things on white paper have."""
    border = np.concatenate([image[:, 0], image[:, -1], image[:, 1:-1, 0], image[:, 1:-1, -1]], axis=1)
    return bool(border.mean() > LIGHT)


def _is_idx(path: Path) -> bool:
    """Whether the content begins as an IDX file of images does; such files have no fixed name."""
    try:
        with open(path, "rb") as file:
            return _is_idx_start(file.read(2**12))
    except OSError:
        return False  # reading it will give the reason


def _is_idx_start(start: bytes) -> bool:
    try:
        if start[:2] == b"\x1f\x8b":
            start = zlib.decompressobj(wbits=31).decompress(start, 4)
    except zlib.error:
        return False
    return start[:4] == b"\0\0\x08\x03"
