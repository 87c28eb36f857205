"""The terminal: one console, one style of tables."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vggexp.errors import UserError

WIDTH = 140  # columns of a table that goes into a file or a pipe


def console(stderr: bool = False) -> Console:
    """The terminal; a file or a pipe gets lines wide enough for every table."""
    terminal = Console(highlight=False, markup=False, stderr=stderr)
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


def pairs(rows: Mapping[str, str]) -> Table:
    """Names and values, the first in bold."""
    made = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for n, (name, value) in enumerate(rows.items()):
        made.add_row(name, value, style="" if n else "bold")
    return made


def short(path: Path) -> str:
    """A path as the user would write it from the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def fail(error: UserError) -> int:
    """Prints a user's mistake in one line; returns the exit code."""
    print(f"vggexp: {error}", file=sys.stderr)
    return error.exit_code
