"""The files of weights: ours are written with a checksum; any is read without running or unpacking what it holds."""

import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vggexp.errors import UserError

MARK = b"vggexp-sha256:"
"""Behind it stand the 64 hexadecimal digits of the checksum; together they are the last bytes of a file of ours."""

TRAILER = len(MARK) + 64
LARGEST_PICKLE = 2**26
LARGEST_TREE = 10**6
CHUNK = 2**24


def write(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint with its checksum onto the disk and reads it again.

    Raises:
        OSError: it could not be written, or what can be read is not what was written.
    """
    with open(path, "wb") as file:
        sink = _Sink(file)
        try:
            torch.save(content, sink)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise sink.error or error from None  # torch hides why a write failed
        file.write(MARK + sink.sha256.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what is read below is what the disk has
    if (found := damage(path)) is not None:
        raise OSError(None, f"what was written could not be read again: {found}")


class _Sink(io.RawIOBase):
    """Passes a file's bytes on, and remembers their checksum and the error that stopped them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def damage(path: Path, demand: bool = True) -> str | None:
    """What is wrong with a file; None if it is whole.

    Args:
        demand: whether it must carry a checksum, as all of ours do.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return "is empty (0 bytes)"
        file.seek(max(0, size - TRAILER))
        trailer = file.read()
        if not trailer.startswith(MARK):
            return "is cut short, or no checkpoint of this project" if demand else None
        file.seek(0)
        sha256, left = hashlib.sha256(), size - TRAILER
        while left and (chunk := file.read(min(CHUNK, left))):
            sha256.update(chunk)
            left -= len(chunk)
    return None if sha256.hexdigest().encode() == trailer[len(MARK) :] else "has been altered: its checksum differs"


def read(path: Path, key: str) -> dict[str, Any]:
    """The content of a checkpoint (.ckpt), a state dict (.pth, .pt) or a safetensors file, on the CPU.

    Args:
        key: the config key that named the file, for the message.

    Raises:
        UserError: there is no such file, or it is none of these, or it is damaged.
    """
    place = f"{key}={path}"
    if "://" in str(path) or str(path).startswith(("http:/", "https:/", "s3:/", "gs:/")):
        raise UserError(f"{place}: is a URL; download the file first and name it")
    if not path.is_file():
        raise UserError(f"{place}: no such file")
    try:
        if (found := damage(path, demand=False)) is not None:
            raise UserError(f"{place}: {found}; name an intact file")
        if path.suffix == ".safetensors":
            return _read_safetensors(path, place)
        _refuse_tricks(path, place)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise UserError(f"{place}: holds no state dict but a {type(content).__name__}")
        _refuse_blown_up(content, path.stat().st_size, place)
    except pickle.UnpicklingError as error:
        reason = "holds more than weights and plain values" if "Weights only" in str(error) else "is no file of weights"
        raise UserError(f"{place}: {reason}; only files that torch.load(weights_only=True) reads are let in") from error
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or 'is damaged'}; name an intact file") from error
    except _FAULTS as error:
        raise UserError(f"{place}: is damaged or no file of weights; name an intact one") from error
    return content


_FAULTS = (
    *(EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ImportError),
    *(struct.error, zipfile.BadZipFile),
)
"""What torch.load raises on bytes that are no file of weights."""


def _refuse_tricks(path: Path, place: str) -> None:
    """A zip archive that claims more than it holds is refused before anything of it is unpacked."""
    if not zipfile.is_zipfile(path):
        return  # torch's older format, whose storages cannot be larger than the file
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    pickles = [entry.file_size for entry in entries if entry.filename.endswith(".pkl")]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{place}: holds packed data, which no file of weights does; name another")
    if sum(entry.file_size for entry in entries) > path.stat().st_size or max(pickles, default=0) > LARGEST_PICKLE:
        raise UserError(f"{place}: claims to hold more than its size allows; name another file")


def _refuse_blown_up(content: Any, size: int, place: str) -> None:
    """A small file may stand for a huge tree or huge tensors by naming the same part again and again."""
    for number, leaf in enumerate(_leaves(content)):
        if isinstance(leaf, torch.Tensor):
            size -= leaf.numel() * leaf.element_size()
        if number > LARGEST_TREE or size < 0:
            raise UserError(f"{place}: stands for more than its size allows; name another file")


def _leaves(tree: Any, depth: int = 0) -> Iterator[Any]:
    """Every part of nested dicts, lists and tuples, counted as often as it is named."""
    yield tree
    if isinstance(tree, dict | list | tuple | set):
        if depth > 50:
            raise RecursionError("nested too deeply")
        for part in [*tree, *tree.values()] if isinstance(tree, dict) else tree:
            yield from _leaves(part, depth + 1)


def _read_safetensors(path: Path, place: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{place}: needs the package safetensors: pip install 'vggexp[export]'", 1) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{place}: is damaged or no safetensors file; name an intact one") from error


def state_dict(content: dict[str, Any], place: str) -> dict[str, torch.Tensor]:
    """A network's weights by name: those of a checkpoint of ours, or the content itself.

    Raises:
        UserError: something in it is not a tensor.
    """
    found = content.get("state_dict", content)
    if not isinstance(found, dict) or not found or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise UserError(f"{place}: holds no state dict")
    return {str(name).removeprefix("net."): tensor for name, tensor in found.items()}
