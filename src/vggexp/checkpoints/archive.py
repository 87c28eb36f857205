"""Reads what `torch.save` writes, in its zip format and the older one, so that a file can do nothing but be read.

`torch.load(weights_only=True)` runs no code either, but believes what a file says of itself: it allocates what is asked
for, and reads beyond an entry that is shorter than its storage.

Source: `torch.serialization` of PyTorch 2.15; `pickletools` of Python for the opcodes.
"""

import io
import os
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

DTYPES = {
    **{"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}
"""What weights are kept in; complex, quantized and 8-bit floating-point numbers are not among it."""

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
PARTS = 10**6  # opcodes of a pickle; a network of a thousand layers with its optimizer takes some 10^5
DEPTH, DIMENSIONS = 50, 16
REPEATED = 4  # times that a file may stand for its own size: an average may share what it has not changed
CHUNK = 2**20  # bytes that are read at once
TOO_MUCH = "stands for more than its size allows; use another file"
LARGER = "holds a tensor that is larger than its data; use an intact file"
NOT_PLAIN = "holds more than weights and plain values; use a file of tensors alone"
OTHER_ORDER = "was written by a machine of another byte order; save it again on one like this"


class Refused(ValueError):
    """The file is not what it should be; the message completes "FILE: "."""


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Stands for `_rebuild_tensor_v2`, which makes a tensor over a storage."""
    fits = isinstance(storage, Tensor) and isinstance(size, tuple) and isinstance(stride, tuple)
    numbers = [offset, *size, *stride] if fits and len(size) == len(stride) <= DIMENSIONS else [None]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise Refused("holds a tensor that is not in the form of torch.save; save it again")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.untyped_storage().nbytes() // storage.itemsize:
        raise Refused(LARGER)
    return storage.as_strided(size, stride, offset)  # type: ignore[no-any-return]


def _size(numbers: Any) -> tuple[Any, ...]:
    """Stands for torch.Size."""
    if not isinstance(numbers, tuple | list) or len(numbers) > DIMENSIONS:
        raise Refused("holds a size that is none; save it again")
    return tuple(numbers)


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    """Stands for OrderedDict; Python 2 gave it its pairs, today they follow."""
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    """A key of a dict: a text or a number, for anything else may take forever to hash or to compare."""
    if not isinstance(key, str | int):
        raise Refused("holds keys that are neither texts nor numbers; use another file")
    return key


KNOWN: dict[str, Any] = {
    "collections OrderedDict": _mapping,
    "torch Size": _size,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch {name}": dtype for name, dtype in DTYPES.items()},
}
"""All that a pickle may name."""


class _Pickle:
    """What a pickle holds, and the storages that it names, not yet filled; only what stands here can happen."""

    def __init__(self, file: Any, size: int) -> None:
        self.storages: dict[str, Tensor] = {}
        self._room, self._parts = size, PARTS  # the bytes and the elements that may still come
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        for count, (opcode, value, _) in enumerate(pickletools.genops(file)):
            if count > PARTS:
                raise Refused(TOO_MUCH)
            self._take(opcode.name, value)
        (self.content,) = self._stack

    def _take(self, opcode: str, value: Any) -> None:
        stack, memo = self._stack, self._memo
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if value is None else value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(value)
            case "BINBYTES" | "SHORT_BINBYTES":
                stack.append(value)
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2
                stack.append(value.encode("latin-1").decode())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode]())
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._last(opcode[5:])))
            case "APPEND" | "APPENDS":
                items = self._last("1" if opcode == "APPEND" else "")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._last("2" if opcode == "SETITEM" else "")
                stack[-1].update(_mapping(zip(items[::2], items[1::2], strict=True)))
            case "GLOBAL" | "STACK_GLOBAL":
                name = value or " ".join(self._last("2"))
                if name not in KNOWN:
                    raise Refused(NOT_PLAIN)
                stack.append(KNOWN[name])
            case "REDUCE":
                function, arguments = self._last("2")
                self._parts -= sum(len(each) for each in arguments if isinstance(each, list | tuple | dict))
                if self._parts < 0:
                    raise Refused(TOO_MUCH)
                stack.append(function(*arguments))
            case "BUILD":
                stack.pop()  # the state: of an OrderedDict its `_metadata`, which nothing here needs
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise Refused(NOT_PLAIN)

    def _last(self, count: str) -> list[Any]:
        """Takes so many values from the stack; those since the last mark, if there is no number."""
        start = len(self._stack) - int(count) if count else self._marks.pop()
        if start < 0:
            raise ValueError("the stack is too short")
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def _storage(self, identity: Any) -> Tensor:
        """The numbers, (N,), that a persistent id stands for; all together no more than the file can hold."""
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(numel), *view) if view in ([], [None]):
                if key not in self.storages:
                    self._room -= numel * dtype.itemsize
                    if numel < 0 or self._room < 0:
                        raise Refused(LARGER)
                    self.storages[key] = torch.empty(numel, dtype=dtype)
                return self.storages[key]
        raise Refused("holds tensors that are not in the form of torch.save; save them again")


def read(path: Path, trailer: int = 0) -> dict[Any, Any]:
    """The dict that a file holds, its tensors on the CPU; apart from them there are only plain values.

    Args:
        trailer: how many of the file's last bytes are not part of it.

    Raises:
        Refused: the file is something else, or is damaged.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - trailer
        file.seek(0)
        zipped = file.read(2) == b"PK"
        file.seek(0)
        try:
            content = _read_zip(file, size) if zipped else _read_old(file, size)
            if not isinstance(content, dict):
                raise Refused(f"holds a {type(content).__name__} instead of a state dict; use a weights file")
            _check(content, [PARTS, REPEATED * size])
        except Refused:
            raise
        except OSError as error:
            raise Refused(f"{error.strerror or 'is damaged'}; use an intact file") from error
        except Exception as error:  # what is not a weights file raises anything
            raise Refused("is damaged or not a weights file; use an intact one") from error
    return content


def _read_zip(file: BinaryIO, size: int) -> Any:
    if (end := zipfile._EndRecData(file)) and end[4] > PARTS // 10:  # type: ignore[attr-defined]
        raise Refused(TOO_MUCH)
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    stored = (entry.compress_size == entry.file_size and not entry.compress_type for entry in entries.values())
    if not all(stored):
        raise Refused("holds compressed data, which a weights file never does; use another file")
    if sum(entry.file_size for entry in entries.values()) > size:
        raise Refused("claims to hold more than its size allows; use another file")
    if not any(entry.CRC for entry in entries.values()):  # torch may be told to write no sums
        for entry in entries.values():
            del entry.CRC
    (root,) = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    folder = root.removesuffix("data.pkl")
    if (order := f"{folder}byteorder") in entries and archive.read(order) != b"little":
        raise Refused(OTHER_ORDER)
    pickled = _Pickle(io.BytesIO(archive.read(root)), size)
    for key, storage in pickled.storages.items():
        entry = entries[f"{folder}data/{key}"]
        try:
            with archive.open(entry) as data:
                _fill(storage, data, entry.file_size)
        except zipfile.BadZipFile as error:
            reason = f"has been altered: the checksum of {entry.filename} differs"
            raise Refused(f"{reason}; use an intact file") from error
    return pickled.content


def _read_old(file: BinaryIO, size: int) -> Any:
    """The format before PyTorch 1.6: five pickles, then each storage behind the number of its elements."""
    if _Pickle(file, size).content != MAGIC:
        raise Refused("is not a weights file; use one that torch.save has written")
    _, system, pickled, keys = (_Pickle(file, size) for _ in range(4))
    if not system.content["little_endian"]:
        raise Refused(OTHER_ORDER)
    for key in keys.content:
        storage = pickled.storages.pop(key)
        (numel,) = struct.unpack("<q", file.read(8))
        _fill(storage, file, numel * storage.itemsize)
    if pickled.storages or file.tell() > size:  # what follows is not part of it
        raise Refused(LARGER)
    return pickled.content


def _fill(storage: Tensor, file: Any, size: int) -> None:
    """Reads the numbers of a storage from a file that has `size` bytes for them."""
    view = memoryview(storage.view(torch.uint8).numpy())  # type: ignore[arg-type]
    if size != len(view):
        raise Refused("holds a tensor that is larger or smaller than its data; use an intact file")
    if sum(file.readinto(view[start : start + CHUNK]) for start in range(0, size, CHUNK)) != size:
        raise Refused(LARGER)


def _check(part: Any, left: list[int], depth: int = 0) -> None:
    """Refuses what is neither a tensor nor plain, nested too deeply, or larger than a few such files.

    `left` are the parts and the bytes of tensors that may still come.
    """
    left[0] -= 1
    if isinstance(part, Tensor):
        left[1] -= part.numel() * part.itemsize
    elif not (part is None or isinstance(part, bool | int | float | str | bytes | dict | list | tuple)):
        raise Refused(NOT_PLAIN)
    if min(left) < 0:
        raise Refused(TOO_MUCH)
    if depth > DEPTH:
        raise Refused("is nested too deeply; use another file")
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ():
        _check(inner, left, depth + 1)
