"""Weights files: ours are written with a checksum, and any is read without running or unpacking what it holds."""

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
"""The 64 hexadecimal digits of the checksum follow it; together they are the last bytes of our files."""

TRAILER = len(MARK) + 64
LARGEST_PICKLE = 2**26
LARGEST_TREE = 10**6


def write(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint and its checksum; an OSError says that the disk refused it or returns other bytes."""
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
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that `damage` reads the disk's bytes
    if (problem := damage(path)) is not None:
        raise OSError(None, f"what was written could not be read again: {problem}")


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


def damage(path: Path, needs_checksum: bool = True) -> str | None:
    """What is wrong with a file; None if it is intact."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return "is empty (0 bytes)"
        file.seek(max(0, size - TRAILER))
        trailer = file.read()
        if not trailer.startswith(MARK):
            return "is cut short or not a checkpoint of vggexp" if needs_checksum else None
        file.seek(0)
        sha256, left = hashlib.sha256(), size - TRAILER
        while left and (chunk := file.read(min(2**24, left))):
            sha256.update(chunk)
            left -= len(chunk)
    return None if sha256.hexdigest().encode() == trailer[len(MARK) :] else "has been altered: its checksum differs"


def read(path: Path, key: str) -> dict[str, Any]:
    """The content of a checkpoint, a state dict or a safetensors file, on the CPU; `key` of the config named it."""
    label = f"{key}={path}"
    if "://" in str(path) or str(path).startswith(("http:/", "https:/", "s3:/", "gs:/")):
        raise UserError(f"{label}: is a URL; download the file first and use its path")
    if not path.is_file():
        raise UserError(f"{label}: no such file")
    try:
        if (problem := damage(path, needs_checksum=False)) is not None:
            raise UserError(f"{label}: {problem}; use an intact file")
        if path.suffix == ".safetensors":
            return _read_safetensors(path, label)
        _refuse_tricks(path, label)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise UserError(f"{label}: holds a {type(content).__name__} instead of a state dict; use a weights file")
        _refuse_blown_up(content, path.stat().st_size, label)
        return content
    except pickle.UnpicklingError as error:
        reason = "holds more than weights and plain values" if "Weights only" in str(error) else "is not a weights file"
        raise UserError(f"{label}: {reason}; use a file that torch.load(weights_only=True) can read") from error
    except OSError as error:
        raise UserError(f"{label}: {error.strerror or 'is damaged'}; use an intact file") from error
    except _FAULTS as error:
        raise UserError(f"{label}: is damaged or not a weights file; use an intact one") from error


_FAULTS = (
    *(EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ImportError),
    *(struct.error, zipfile.BadZipFile),
)
"""What torch.load raises on bytes that are not a weights file."""


def _refuse_tricks(path: Path, label: str) -> None:
    """Refuses a zip archive that claims more than it holds, before anything is unpacked."""
    if not zipfile.is_zipfile(path):  # torch's older format, whose storages cannot be larger than the file
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        pickles = [entry.file_size for entry in entries if entry.filename.endswith(".pkl")]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(f"{label}: holds compressed data, which a weights file never does; use another file")
        if sum(entry.file_size for entry in entries) > path.stat().st_size or max(pickles, default=0) > LARGEST_PICKLE:
            raise UserError(f"{label}: claims to hold more than its size allows; use another file")
        # torch checks no sums, and may be told to write none
        if any(entry.CRC for entry in entries) and (broken := archive.testzip()) is not None:
            raise UserError(f"{label}: has been altered: the checksum of {broken} differs; use an intact file")


def _refuse_blown_up(content: Any, size: int, label: str) -> None:
    """Refuses a small file that stands for a huge tree or huge tensors by repeating the same part."""
    for number, leaf in enumerate(_leaves(content)):
        if isinstance(leaf, torch.Tensor):
            size -= leaf.numel() * leaf.element_size()
        if number > LARGEST_TREE or size < 0:
            raise UserError(f"{label}: stands for more than its size allows; use another file")


def _leaves(tree: Any, depth: int = 0) -> Iterator[Any]:
    """Every part of nested dicts, lists and tuples, counted each time it appears."""
    yield tree
    if isinstance(tree, dict | list | tuple | set):
        if depth > 50:
            raise RecursionError("nested too deeply")
        for part in [*tree, *tree.values()] if isinstance(tree, dict) else tree:
            yield from _leaves(part, depth + 1)


def _read_safetensors(path: Path, label: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{label}: needs the package safetensors: pip install 'vggexp[export]'", 1) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{label}: is damaged or not a safetensors file; use an intact one") from error


WRAPPERS = ("state_dict", "model", "model_state_dict", "params", "ema", "model_ema")
PREFIXES = ("net.", "module.", "_orig_mod.", "model.", "network.")
"""Under what, and behind what, training loops save a network's weights; averaging adds the number of its steps."""


def state_dicts(content: dict[str, Any], label: str) -> dict[str, dict[str, torch.Tensor]]:
    """What may be a network's weights by name, each under a description of where it was found; empty for plain ones."""
    found = {}
    for key, inner in {"": content, **{key: content.get(key) for key in WRAPPERS}}.items():
        inner = inner if isinstance(inner, dict) else {}
        weights = {str(name): value for name, value in inner.items() if name != "n_averaged"}
        if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
            continue
        prefix: str | None = ""
        stripped = ""
        while prefix is not None:  # each form may be the right one: a network's own names may begin like a prefix
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
            stripped += prefix
            where = [f"its {key}"] * bool(key) + [f"without the prefix {stripped}"] * bool(stripped)
            found[", ".join(where)] = weights
            prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None)
    if not found:
        raise UserError(f"{label}: holds no state dict; use a weights file")
    return found
