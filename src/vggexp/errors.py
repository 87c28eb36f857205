"""Mistakes that a user can mend."""

NON_FINITE = 3
"""Exit code: a loss or a weight was infinite or not a number."""


class UserError(Exception):
    """Told in one line, without a traceback: the message names the key, the value and the remedy.

    Args:
        exit_code: 2 where the command or the config is wrong, 1 where the world is (no data, a full disk).
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Pruned(Exception):
    """A search has given up a run; the message says why."""
