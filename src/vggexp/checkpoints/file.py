"""Weights files: ours are written with a checksum, and any is read without running or unpacking what it holds."""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vggexp.checkpoints import archive
from vggexp.errors import NON_FINITE, UserError
from vggexp.system import files, paths

MARK = b"vggexp-sha256:"
"""The 64 hexadecimal digits of the checksum follow it; together they are the last bytes of our files."""

TRAILER = len(MARK) + 64
LARGEST_HEADER = 2**22  # bytes of what a safetensors file says of its tensors
OURS = {"config", "dimensions", "classes"}  # keys of a checkpoint that a run writes


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

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


UNSEALED = "is cut short or not a checkpoint of vggexp"


def damage(path: Path) -> str | None:
    """What is wrong with a file; None if it is intact. Of a file without our checksum it is UNSEALED."""
    with open(path, "rb", opener=files.unblocked) as file:
        files.check_regular(path, os.fstat(file.fileno()).st_mode)
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return "is empty (0 bytes)"
        file.seek(max(0, size - TRAILER))
        trailer = file.read()
        if not trailer.startswith(MARK):
            return UNSEALED
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
        if (problem := damage(path)) not in (None, UNSEALED):
            raise UserError(f"{label}: {problem}; use an intact file")
        safe = path.suffix == ".safetensors"
        content = _read_safetensors(path, label) if safe else archive.read(path, 0 if problem else TRAILER)
        if problem and content.keys() >= OURS:
            raise UserError(f"{label}: has lost the checksum at its end, so it was cut or altered; use an intact file")
        for name in [name for name, state in content.items() if isinstance(state, dict) and {*state} == {"position"}]:
            content["DataModule"] = content.pop(name)  # which each data set once had under a name of its own
    except archive.Refused as error:
        raise UserError(f"{label}: {error}") from error
    except OSError as error:
        raise UserError(f"{label}: {error.strerror or 'is damaged'}; use an intact file") from error
    return content


def check_finite(weights: dict[str, Any], label: str) -> None:
    """Refuses weights among which some are no numbers."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise UserError(f"{label}: holds values that are not finite, in {name}; use another file", NON_FINITE)


def _read_safetensors(path: Path, label: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{label}: needs the package safetensors; {paths.install('export')}", 1) from error
    try:
        with open(path, "rb") as file:
            if (length := int.from_bytes(file.read(8), "little")) > LARGEST_HEADER:
                raise ValueError(f"its header has {length:,} bytes")
            for entry in json.loads(file.read(length)).values():
                if len(shape := entry.get("shape", ())) > archive.DIMENSIONS or any(n >= 2**48 for n in shape):
                    raise ValueError("it has a tensor of impossible shape")
        content = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{label}: is damaged or not a safetensors file; use an intact one") from error
    if others := {str(weight.dtype) for weight in content.values()} - set(map(str, archive.DTYPES.values())):
        raise UserError(f"{label}: holds weights as {', '.join(others)}; use a file of usual floating-point numbers")
    return content


WRAPPERS = ("state_dict", "model", "model_state_dict", "params", "net", "weights", "ema", "model_ema")
"""Under what training loops save a network's weights; of several that fit, the first counts. Others may fit, too."""


def state_dicts(content: dict[str, Any], label: str) -> dict[str, dict[str, torch.Tensor]]:
    """What may be a network's weights by name, each under a description of where it was found; empty for plain ones."""
    places = {"": content, **{key: content.get(key) for key in (*WRAPPERS, *content)}}
    for outer, inner in list(places.items())[1:]:
        if isinstance(inner, dict):
            places |= {f"{outer}.{key}": value for key, value in inner.items()}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for place, inner in places.items():
        tree = inner if isinstance(inner, dict) else {}
        weights = {str(name): value for name, value in tree.items() if name != "n_averaged"}  # which averaging adds
        if weights and all(isinstance(value, torch.Tensor) for value in weights.values()):
            found |= {", ".join(filter(None, [place and f"its {place}", how])): part for how, part in _parts(weights)}
    if not found:
        raise UserError(f"{label}: holds no state dict; use a weights file")
    return found


def _parts(
    weights: dict[str, torch.Tensor], prefix: str = "", depth: int = 3
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Weights under their names, and those that have a prefix in common, without it.

    Each may be right: what wraps a network gives it a prefix, but a network's own names may begin with one, too.
    """
    yield f"without the prefix {prefix}" if prefix else "", weights
    heads = dict.fromkeys(name.partition(".")[0] for name in weights if "." in name)
    for head in list(heads)[:4] if depth else ():
        part = {name[len(head) + 1 :]: value for name, value in weights.items() if name.startswith(f"{head}.")}
        yield from _parts(part, f"{prefix}{head}.", depth - 1)
