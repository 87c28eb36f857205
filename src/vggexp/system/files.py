"""Writes files in one step, so that a reader never sees half of one and a crash never loses the old one."""

import contextlib
import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vggexp.errors import UserError

_count = itertools.count()  # a signal handler may write a file while the program writes the same one


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there replaces `path` when the block ends.

    If the block raises, the temporary file is removed and `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_count)}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


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
    """The message where nothing temporary can be written, as in a container that is read-only; None for other errors."""
    if not isinstance(error, FileNotFoundError) or "temporary directory" not in str(error):
        return None
    return UserError(f"TMPDIR: {error.strerror}; set it to a folder that can be written", 1)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, would survive a loss of power."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces a file by this text, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Replaces a file by a table."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
