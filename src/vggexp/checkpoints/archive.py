"""Reads what `torch.save` writes, in its zip format and the older one, so that a file can do nothing but be read.

`torch.load(weights_only=True)` runs no code either, but believes what a file says of itself: it allocates what is asked
for, and reads beyond an entry that is shorter than its storage.

Source: `torch.serialization` of PyTorch 2.15; `pickletools` of Python for the opcodes.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Sized
from pathlib import Path
from typing import Any, BinaryIO

import torch

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
TOO_MUCH = "stands for more than its size allows; use another file"
CHUNK = 2**20  # bytes that are read at once
OTHER_ORDER = "was written by a machine of another byte order; save it again on one like this"


class Refused(ValueError):
    """The file is not what it should be; the message completes "FILE: "."""


class _Storage:
    """The numbers that a persistent id stands for."""

    def __init__(self, identity: Any) -> None:
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(numel), *view) if view in ([], [None]):
                self.key, self.dtype, self.numel = key, dtype, numel
            case _:
                raise Refused("holds tensors that are not in the form of torch.save; save them again")

    def read(self, file: Any, size: int) -> torch.Tensor:
        """Its numbers, from a file that has `size` bytes for them."""
        if not 0 <= self.numel * self.dtype.itemsize == size:
            raise Refused("holds a tensor that is larger or smaller than its data; use an intact file")
        data = torch.empty(size, dtype=torch.uint8)
        view = memoryview(data.numpy())  # type: ignore[arg-type]
        if sum(file.readinto(view[start : start + CHUNK]) for start in range(0, size, CHUNK)) != size:
            raise Refused("holds a tensor that is larger than its data; use an intact file")
        return data.view(self.dtype)


class _Tensor:
    """Stands for `_rebuild_tensor_v2`, which makes a tensor over a storage."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        numbers = [offset, *size, *stride]
        fits = isinstance(storage, _Storage) and len(size) == len(stride) <= DIMENSIONS
        if not fits or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise Refused("holds a tensor that is not in the form of torch.save; save it again")
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    """Stands for OrderedDict; Python 2 gave it its pairs, today they follow."""
    return {_key(key): value for key, value in pairs}


def _size(numbers: Any) -> tuple[Any, ...]:
    """Stands for torch.Size."""
    if not isinstance(numbers, tuple | list) or len(numbers) > DIMENSIONS:
        raise Refused("holds a size that is none; save it again")
    return tuple(numbers)


def _key(key: Any) -> Any:
    """A key of a dict: a text or a number, for anything else may take forever to hash or to compare."""
    if not isinstance(key, str | int):
        raise Refused("holds keys that are neither texts nor numbers; use another file")
    return key


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}
OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE"),
    *("BUILD", "BINPERSID"),
)
"""What a pickle of weights takes."""


class _Unpickler(pickle._Unpickler):  # in Python, so that each step can be watched
    """Calls nothing but what stands in KNOWN, sets no attribute, and hashes no key but texts and numbers."""

    stack: Any
    pop_mark: Any

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}
        self.room = PARTS

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise Refused("holds more than weights and plain values; use a file of tensors alone")
        return KNOWN[module, name]

    def persistent_load(self, identity: Any) -> _Storage:
        storage = _Storage(identity)
        return self.storages.setdefault(storage.key, storage)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.room -= sum(len(each) for each in arguments if isinstance(each, Sized))
        if self.room < 0:
            raise Refused(TOO_MUCH)
        self.stack[-1] = self.stack[-1](*arguments)

    def _build(self) -> None:
        self.stack.pop()  # the state: of an OrderedDict its `_metadata`, which nothing here needs

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def _setitems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))


CHANGED: Any = {"REDUCE": _Unpickler._reduce, "BUILD": _Unpickler._build}
CHANGED |= {"SETITEM": _Unpickler._setitem, "SETITEMS": _Unpickler._setitems}
codes = {name: getattr(pickle, name)[0] for name in OPCODES}
_Unpickler.dispatch = {code: CHANGED.get(name, pickle._Unpickler.dispatch[code]) for name, code in codes.items()}


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
            if zipped and (end := zipfile._EndRecData(file)) and end[4] > PARTS // 10:  # type: ignore[attr-defined]
                raise Refused(TOO_MUCH)
            tree, data = _read_zip(zipfile.ZipFile(file), size) if zipped else _read_old(file, size)
            if not isinstance(tree, dict):
                raise Refused(f"holds a {type(tree).__name__} instead of a state dict; use a weights file")
            content: dict[Any, Any] = _Builder(data, size).build(tree)
        except Refused:
            raise
        except OSError as error:
            raise Refused(f"{error.strerror or 'is damaged'}; use an intact file") from error
        except Exception as error:  # unpickling raises anything on bytes that are not a weights file
            raise Refused("is damaged or not a weights file; use an intact one") from error
    return content


def _unpickle(file: Any) -> tuple[Any, dict[str, _Storage]]:
    """The content of the pickle that begins here; before, its opcodes are looked at."""
    start = file.tell()
    for count, (opcode, _, _) in enumerate(pickletools.genops(file)):
        if count > PARTS or opcode.name not in OPCODES:
            raise Refused(
                TOO_MUCH if count > PARTS else "holds more than weights and plain values; use a file of tensors"
            )
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _read_zip(archive: zipfile.ZipFile, size: int) -> tuple[Any, dict[str, torch.Tensor]]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(
        entry.compress_size != entry.file_size or entry.compress_type != zipfile.ZIP_STORED
        for entry in entries.values()
    ):
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
    tree, storages = _unpickle(io.BytesIO(archive.read(root)))
    data = {}
    for key, storage in storages.items():
        entry = entries[f"{folder}data/{key}"]
        try:
            with archive.open(entry) as file:
                data[key] = storage.read(file, entry.file_size)
        except zipfile.BadZipFile as error:
            reason = f"has been altered: the checksum of {entry.filename} differs"
            raise Refused(f"{reason}; use an intact file") from error
    return tree, data


def _read_old(file: BinaryIO, size: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """The format before PyTorch 1.6: five pickles, then each storage behind the number of its elements."""
    if _unpickle(file)[0] != MAGIC:
        raise Refused("is not a weights file; use one that torch.save has written")
    (_, _), (system, _), (tree, storages), (keys, _) = (_unpickle(file) for _ in range(4))
    if not system["little_endian"]:
        raise Refused(OTHER_ORDER)
    data = {}
    for key in keys:
        (numel,) = struct.unpack("<q", file.read(8))
        wanted = numel * storages[key].dtype.itemsize
        data[key] = storages[key].read(file, wanted if wanted <= size - file.tell() else -1)
    return tree, data


class _Builder:
    """Makes plain dicts, lists, tuples and tensors of what was unpickled; together no larger than a few such files."""

    def __init__(self, data: dict[str, torch.Tensor], size: int) -> None:
        self.data, self.room, self.parts = data, REPEATED * size, 0

    def build(self, part: Any, depth: int = 0) -> Any:
        self.parts += 1
        if isinstance(part, _Tensor):
            self.room -= math.prod(part.size) * part.storage.dtype.itemsize
        if self.parts > PARTS or self.room < 0:
            raise Refused(TOO_MUCH)
        if depth > DEPTH:
            raise Refused("is nested too deeply; use another file")
        if isinstance(part, _Tensor):
            last = part.offset + sum((n - 1) * step for n, step in zip(part.size, part.stride, strict=True))
            if 0 not in part.size and last >= part.storage.numel:
                raise Refused("holds a tensor that is larger than its data; use an intact file")
            return self.data[part.storage.key].as_strided(part.size, part.stride, part.offset)
        if isinstance(part, dict):
            return {key: self.build(value, depth + 1) for key, value in part.items()}
        if isinstance(part, list | tuple):
            built = [self.build(value, depth + 1) for value in part]
            return built if isinstance(part, list) else tuple(built)
        if part is None or isinstance(part, bool | int | float | str | bytes):
            return part
        raise Refused("holds more than weights and plain values; use a file of tensors alone")
