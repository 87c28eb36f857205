"""What can a user put right? Any function may raise a UserError, so docstrings do not list it; commands print it."""

NON_FINITE = 3  # exit code: a loss or a weight was infinite or not a number


class UserError(Exception):
    """Printed in one line, without a traceback: the message names the key, the value and what to do.

    Args:
        exit_code: 2 for a wrong command or config, 1 for a problem of the machine (no data, a full disk).
        command: ends the message, and is printed whole however long it is, to be copied.
    """

    def __init__(self, message: str, exit_code: int = 2, command: str = "") -> None:
        super().__init__(message + command)
        self.exit_code, self.command = exit_code, command


class Pruned(Exception):
    """A search has stopped a run early; the message says why."""


def described(error: BaseException) -> str:
    """Another library's error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
