"""The terminal: streams that can be written to whatever they are, one console, one style of tables."""

import codecs
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vggexp.errors import UserError
from vggexp.system.paths import WINDOWS
from vggexp.system.text import clean, label, message

BAR = "VGGEXP_BAR"  # the environment variable that wants a progress bar in plain text, also outside a terminal
STREAMS = {"stdout": 1, "stderr": 2}
WIDTH = 140  # columns of a table that goes into a file or a pipe

PLAIN = {"→": "->", "±": "+-", "×": "x", "–": "-", "…": "...", "·": "-", "─": "-", "²": "2", "ü": "ue"}
"""What a terminal of few characters shows instead; of others their number."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error("plain", _plain)


class _Steady(io.FileIO):
    """A standard stream whose reader may leave, or whose terminal may be closed: what follows is lost, nothing else."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            if (written := super().write(data)) is not None:  # else the stream does not wait until there is room
                return written
        mute(self.fileno())
        return len(data)


def mute(number: int) -> None:
    """Sends what is written to a standard stream nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def steady(number: int, encoding: str, line_buffering: bool = False) -> io.TextIOWrapper:
    """A stream that writes to a file descriptor as long as that is possible, and in as many characters."""
    if WINDOWS and os.isatty(number):  # a console there takes characters, not bytes
        buffering = 1 if line_buffering else -1
        return open(number, "w", buffering, encoding="utf-8", errors="plain", closefd=number > 2)
    raw = io.BufferedWriter(_Steady(number, "w", closefd=number > 2))
    return io.TextIOWrapper(raw, encoding=encoding, errors="plain", line_buffering=line_buffering)


def prepare() -> None:
    """Makes the standard streams usable: also closed ones, and those that lack characters."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number
    for name, number in STREAMS.items():
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, steady(number, "utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def outlive_readers() -> None:
    """Lets this process go on when nobody reads what it prints any more."""
    for name, number in STREAMS.items():
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and stream.fileno() == number:
            stream.flush()
            by_line = number == 2 or stream.line_buffering or stream.write_through
            setattr(sys, name, steady(number, stream.encoding, by_line))


def make_redirectable() -> None:
    """Lets `os.dup2` redirect the standard streams on Windows, too, where those of a console are not files."""
    for name, number in STREAMS.items() if WINDOWS else ():
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "plain", line_buffering=True))


class _Console(Console):
    """Shows texts as they are, whatever control characters they hold."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(clean(text), **options)


def console(stderr: bool = False, **options: Any) -> Console:
    """The terminal; a file or a pipe gets lines wide enough for every table."""
    terminal = _Console(highlight=False, markup=False, emoji=False, stderr=stderr, **options)
    if not terminal.is_terminal:
        terminal.width = max(terminal.width, WIDTH)
    return terminal


def say(text: str, stderr: bool = False) -> None:
    """Prints a line; the terminal wraps it where it is too long."""
    console(stderr).print(text, soft_wrap=True)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> Table:
    """A table whose first `left` columns are aligned to the left, the others, which hold numbers, to the right."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for n, name in enumerate(header):
        made.add_column(name, justify="left" if n < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows, on a terminal, how much of `total` is done, and yields a function that takes how much more has been."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stderr = console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def pairs(rows: Mapping[str, str]) -> Table:
    """Names and values, the first in bold."""
    made = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for n, (name, value) in enumerate(rows.items()):
        made.add_row(name, value, style="" if n else "bold")
    return made


def short(path: Path) -> str:
    """A path as the user would write it from the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def argument(path: Path, key: str = "") -> str:
    """A path, or KEY=PATH, to be copied into a command."""
    return quoted(f"{key}={short(path)}" if key else short(path))


def quoted(*words: str) -> str:
    """Words to be copied into a command."""
    return subprocess.list2cmdline(words) if WINDOWS else shlex.join(words)


def split(text: str) -> list[str]:
    """A text's words, as a shell takes them apart; on Windows, a backslash is one of a path."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    lexer.escape = "" if WINDOWS else lexer.escape
    return list(lexer)


def fail(error: UserError) -> int:
    """Prints a user's mistake in one line; returns the exit code."""
    text = str(error).removesuffix(error.command)
    print(f"vggexp: {message(text)}{label(error.command)}", file=sys.stderr)
    return error.exit_code
