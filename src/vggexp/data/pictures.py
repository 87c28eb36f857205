"""Turns pictures into what the networks have learned from: 28×28 gray bytes, light on black.

A picture is turned gray by its luma (0.299 R + 0.587 G + 0.114 B), inverted where asked, padded with black to a
square, and resized to 28×28 by PIL's bilinear filter. A 28×28 gray picture stays unchanged. Transparent pixels become
background.
"""

import glob
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vggexp.data import idx
from vggexp.errors import UserError

SIDE = 28
SUFFIXES = (".png", ".jpg", ".jpeg")


def files(inputs: str) -> list[Path]:
    """What `input=` names: paths and patterns between commas; a folder stands for its pictures and IDX files."""
    found: list[Path] = []
    for text in [inputs] if Path(inputs).exists() else inputs.split(","):
        path = Path(text).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and (p.suffix.lower() in SUFFIXES or _is_idx(p)))
            if not inside:
                raise UserError(f"input={path}: holds no {', '.join(SUFFIXES)} or IDX file; name another folder")
            found += inside
        elif path.exists():
            found.append(path)
        elif matches := sorted(glob.glob(str(path))):  # noqa: PTH207 (patterns may be absolute)
            found += map(Path, matches)
        else:
            raise UserError(f"input={text}: no such file or folder; check the path")
    return found


def read(paths: Iterable[Path], invert: bool, refuse: Callable[[Path, str], None]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (28, 28) uint8 images, one after another; an IDX file gives `FILE[0]`, `FILE[1]`, ….

    Args:
        invert: the pictures show dark things on a light background.
        refuse: called with each file that cannot be read, and why.
    """
    for path in paths:
        try:
            if _is_idx(path):
                with open(path, "rb") as file:
                    arrays = idx.parse(idx.unpacked(file.read(idx.MAX_BYTES)))
                for n, array in enumerate(arrays):
                    yield f"{path}[{n}]", _prepare(Image.fromarray(array), invert)
            else:
                if path.stat().st_size == 0:
                    raise ValueError("is empty (0 bytes)")
                with Image.open(path, formats=("PNG", "JPEG")) as picture:
                    yield str(path), _prepare(picture, invert)
        except UnidentifiedImageError:
            refuse(path, "is not a PNG, JPEG or IDX file")
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            refuse(path, str(error) or type(error).__name__)


def _prepare(picture: Image.Image, invert: bool) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        background = Image.new("RGBA", picture.size, "white" if invert else "black")
        picture = Image.alpha_composite(background, picture.convert("RGBA"))
    gray = picture.convert("L")
    if invert:
        gray = ImageOps.invert(gray)
    return np.asarray(ImageOps.pad(gray, (max(gray.size),) * 2).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _is_idx(path: Path) -> bool:
    """Whether the content begins as an IDX file of images does; such files have no fixed name."""
    try:
        with open(path, "rb") as file:
            start = file.read(2**12)
        if start[:2] == b"\x1f\x8b":
            start = zlib.decompressobj(wbits=31).decompress(start, 4)
    except (OSError, zlib.error):
        return False  # reading it will give the reason
    return start[:4] == b"\0\0\x08\x03"
