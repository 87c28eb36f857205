"""Writes files in one step, so that a reader never sees half of one and a crash never loses the old one.

Nothing is written through a link, and nothing is read through one that stands for a file of a run.
"""

import contextlib
import csv
import errno
import itertools
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vggexp.errors import UserError
from vggexp.system.paths import WINDOWS
from vggexp.system.text import cell

REMOVE = "remove it"
LARGEST_RECORD = 2**23  # bytes of a file that describes a run
T = TypeVar("T")


def _patiently(action: Callable[[], T]) -> T:
    """What an action returns: Windows refuses it for the moment in which another process reads or replaces a file."""
    for _ in range(40 if WINDOWS else 0):
        with contextlib.suppress(PermissionError):
            return action()
        time.sleep(0.05)
    return action()


def replace(source: Path, target: Path) -> None:
    """Gives a file the name of another, which it replaces."""
    _patiently(lambda: os.replace(source, target))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what was written there replaces `path` when the block ends, unless it raises.

    Raises:
        OSError: if `path` is a device, such as /dev/null, or a pipe: it would be gone; or if it is a folder.
    """
    if path.exists() and not path.is_dir():
        check_regular(path, path.stat().st_mode)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # a guessed name could be somebody's link
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666))
    try:
        yield temporary
        sync(temporary)
        replace(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""How a file is opened that may be a link, or a pipe that nobody writes into."""


def no_link(path: str, flags: int) -> int:
    """Opens a file for Python's `open`, unless it is a link."""
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):  # noqa: PTH114  not Path: it is text
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return os.open(path, flags | NO_LINK, 0o666)


def unblocked(path: str, flags: int) -> int:
    """Opens a file for Python's `open`, and does not wait where it is a pipe; it may be a link."""
    return os.open(path, flags | (NO_LINK & ~getattr(os, "O_NOFOLLOW", 0)))


def content(path: Path, most: int = LARGEST_RECORD) -> bytes:
    """The bytes of a file; an OSError where it is a link, a pipe, a device, or larger than `most`."""
    with _patiently(lambda: open(path, "rb", opener=no_link)) as file:
        check_regular(path, os.fstat(file.fileno()).st_mode)
        read = file.read(most + 1)
    if len(read) > most:
        raise OSError(errno.EFBIG, f"is larger than {most:,} bytes", str(path))
    return read


def check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise OSError(errno.EINVAL, f"is {kind}, not a file", str(path))


def check_folder(folder: Path, place: str, depth: int = 4) -> None:
    """Refuses a folder in which something is no file and no folder: what is written or read there could be elsewhere.

    `place` is the KEY=VALUE that named the folder. W&B makes links of its own, below `wandb`.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if depth and entry.name != "wandb":
                    check_folder(Path(entry.path), place, depth - 1)
            elif not entry.is_file(follow_symlinks=False):
                kind = "a link" if entry.is_symlink() else "a pipe or a device"
                raise UserError(f"{place}: {entry.path} is {kind}, which a run's folder never holds; {REMOVE}")


@contextmanager
def writing(folder: Path, place: str) -> Iterator[None]:
    """Makes a folder to write into; if the system refuses, a UserError names the `place`, KEY=VALUE, that chose it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        known = no_temporary_folder(error)
        raise known or UserError(f"{place}: {error.strerror or error}; name a folder that can be written", 1) from error


def no_temporary_folder(error: BaseException) -> UserError | None:
    """The message where nothing temporary can be written, as in a read-only container; None for other errors."""
    if not isinstance(error, FileNotFoundError) or "temporary directory" not in str(error):
        return None
    return UserError(f"TMPDIR: {error.strerror}; set it to a folder that can be written", 1)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, would survive a loss of power."""
    if path.is_dir() and WINDOWS:
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces a file by this text, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Replaces a file by a table."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([*map(cell, row)] for row in itertools.chain([header], rows))
