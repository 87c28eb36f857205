"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1: the first asks a run to save and stop, a second of its kind ends it at once."""

import signal
import threading
from collections.abc import Callable
from typing import Any, Self

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal has ended the run; what it had done is saved, unless it was still starting."""

    def __init__(self, signum: int) -> None:
        super().__init__(reason(signum))
        self.signum, self.exit_code = signum, 128 + signum


def reason(signum: int) -> str:
    """For people."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


class Signals:
    """Takes the signals over while it is entered.

    While `armed`, a signal is only remembered, for the run to see at the next place where it can stop; otherwise it
    raises Interrupted where the program stands.

    Args:
        told: called once, when the first signal arrives.
    """

    def __init__(self, told: Callable[[int], None] = lambda signum: None) -> None:
        self.told = told
        self.received = 0
        self.armed = False

    def __enter__(self) -> Self:
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            _set(signum, handler)

    def install(self) -> None:
        """Again, because Lightning puts a handler of its own in place whenever it starts."""
        for signum in SIGNALS:
            if signum != self.received and signal.getsignal(signum) is not signal.SIG_IGN:  # nohup ignores some
                _set(signum, self._handle)

    def _handle(self, signum: int, _: Any) -> None:
        if not self.received:
            self.received = signum
            _set(signum, signal.SIG_DFL)
            self.told(signum)
        if not self.armed:
            raise Interrupted(self.received)


def _set(signum: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler)
