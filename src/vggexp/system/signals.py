"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1: the first asks a run to save and stop, a second of its kind ends it at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
GRACE = 3.0
"""Seconds that a program which is still starting has to notice a signal: a rendezvous of processes never does."""

REPEAT = 0.3
"""Seconds within which the same signal counts as one: timeout(1), for example, sends it to a process and its group."""


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
    raises Interrupted where the program stands. Python runs handlers between two instructions only, so a thread
    watches, too, to end a program that is deep in something long.

    Args:
        told: called when the first signal arrives, and again before the process is ended at once.
    """

    def __init__(self, told: Callable[[int], None] = lambda signum: None) -> None:
        self.told = told
        self.received = 0
        self.armed = False
        self._noticed = threading.Event()

    def __enter__(self) -> Self:
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._incoming, self._outgoing = os.pipe()
        os.set_blocking(self._outgoing, False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._outgoing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._incoming,), name="signals", daemon=True).start()
        self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            _set(signum, handler)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        os.close(self._outgoing)  # ends the watch

    def install(self) -> None:
        """Again, because Lightning puts a handler of its own in place whenever it starts."""
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup, for example, ignores some
                _set(signum, self._handle)

    def _handle(self, signum: int, _: Any) -> None:
        self._noticed.set()
        if self.received:
            return
        self.received = signum
        self.told(signum)
        if not self.armed:
            raise Interrupted(signum)

    def check(self) -> None:
        """
        Raises:
            Interrupted: a signal has come.
        """
        if self.received:
            raise Interrupted(self.received)

    def _watch(self, incoming: int) -> None:
        first: dict[int, float] = {}
        while byte := os.read(incoming, 1):
            signum = byte[0]
            if signum not in SIGNALS:
                continue
            again = signum in first and time.monotonic() - first[signum] > REPEAT
            first.setdefault(signum, time.monotonic())
            if again or not (self.armed or self._noticed.wait(GRACE)):
                self.told(signum)
                os._exit(128 + signum)
        os.close(incoming)


@contextmanager
def held_back() -> Iterator[None]:
    """Delays the signals; a process that is forked meanwhile never gets any of them, and ends when its parent does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set(signum: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler)
