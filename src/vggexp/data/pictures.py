"""Turns pictures into what the networks have learned from: 28×28 gray bytes, light on black.

A picture is turned gray by its luma (0.299 R + 0.587 G + 0.114 B), inverted where asked, padded with black to a
square, and resized to 28×28 by PIL's bilinear filter. A 28×28 gray picture stays unchanged. Transparent pixels become
background. Of several frames the first is taken.
"""

import glob
import io
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vggexp.data import idx
from vggexp.errors import UserError

SIDE = 28
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000")
LARGEST_SQUARE = 10**8  # pixels of a picture that is padded before it is resized
LIGHT = 170  # the mean of a border from which on a picture may need `invert`
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by its EXIF orientation."""

STDIN = "-"
Note = Callable[[Path, str], None]


def files(inputs: str, note: Note = lambda path, text: None) -> list[Path]:
    """What `input=` names: paths and patterns between commas; a folder stands for its pictures and IDX files.

    `note` is told of each folder what is in it beside these.
    """
    found: list[Path] = []
    parts = [inputs] if inputs and Path(inputs).exists() else inputs.split(",")
    if not all(map(str.strip, parts)):
        raise UserError(f"input={inputs}: has an empty part; name a file, a folder or a pattern")
    for text in parts:
        path = Path(text).expanduser()
        if path.is_dir():
            found += _inside(path, note)
        elif path.exists() or path.is_symlink() or text == STDIN:
            found.append(path)
        elif matches := [Path(m) for m in sorted(glob.glob(str(path), recursive=True)) if not Path(m).is_dir()]:  # noqa: PTH207
            found += matches
        else:
            raise UserError(f"input={text}: no such file or folder; check the path")
    return found


def _inside(folder: Path, note: Note) -> list[Path]:
    Image.init()
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS}
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    inside = [path for path in every if path.suffix.lower() in suffixes or _is_idx(path)]
    if not inside:
        raise UserError(f"input={folder}: holds no picture or IDX file; name another folder")
    if others := Counter(path.suffix.lower() or "no ending" for path in set(every) - set(inside)):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        note(folder, f"{others.total()} files are no pictures ({kinds}) and are left out")
    return inside


def read(
    paths: Iterable[Path], invert: bool, refuse: Note, note: Note = lambda path, text: None
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (28, 28) uint8 images, one after another; an IDX file gives `FILE[0]`, `FILE[1]`, ….

    Args:
        invert: the pictures show dark things on a light background.
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
                    found = [(f"{path}[{n}]", _prepare(Image.fromarray(array), invert)) for n, array in arrays]
                else:
                    with Image.open(file, formats=FORMATS) as picture:
                        if (frames := getattr(picture, "n_frames", 1)) > 1:
                            note(path, f"has {frames} frames, of which the first is used")
                        found = [(str(path), _prepare(picture, invert))]
        except UnidentifiedImageError:
            refuse(path, "is not a picture that Pillow reads, nor an IDX file")
        except Exception as error:  # noqa: BLE001  Pillow's readers raise anything; the other files do not suffer
            refuse(path, " ".join(str(error).split()) or type(error).__name__)
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


def _prepare(picture: Image.Image, invert: bool) -> np.ndarray:
    depths = [str(tile[3]) for tile in getattr(picture, "tile", ())]
    picture.load()  # which turns a TIFF upright
    turn, clear = _turn(picture), _transparent(picture, depths)
    if picture.mode.startswith("I"):  # 16 bits a pixel
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    elif picture.mode == "F" and (values := np.asarray(picture)).max() <= 1:
        picture = Image.fromarray(values * 255)
    if clear is not None:
        picture = picture.convert("L")
        picture.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    if picture.has_transparency_data:
        background = Image.new("RGBA", picture.size, "white" if invert else "black")
        picture = Image.alpha_composite(background, picture.convert("RGBA"))
    gray = picture.convert("L")
    if turn is not None:
        gray = gray.transpose(turn)
    if invert:
        gray = ImageOps.invert(gray)
    side = max(gray.size)
    if side**2 > LARGEST_SQUARE:
        width, height = (max(1, pixels * SIDE // side) for pixels in gray.size)
        gray, side = gray.resize((width, height), Image.Resampling.BILINEAR), SIDE
    return np.asarray(ImageOps.pad(gray, (side, side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  broken EXIF data say nothing of the picture
        return None


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
    """Whether a (28, 28) image has a light border, as things on white paper have."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
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
