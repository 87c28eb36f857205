"""User-facing errors."""

NON_FINITE = 3  # exit code: a loss or a weight was infinite or not a number


class UserError(Exception):
    """Printed in one line, without a traceback: the message names the key, the value and what to do.

    Args:
        exit_code: 2 for a wrong command or config, 1 for a problem of the machine (no data, a full disk).
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Pruned(Exception):
    """A search has stopped a run early; the message says why."""
