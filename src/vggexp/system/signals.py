"""SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1: the first makes a run save and stop, a second ends it at once."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
GRACE = 3.0  # seconds that a starting program has to notice a signal; one that waits for other processes never does

REPEAT = 0.3
"""Seconds within which the same signal counts as one: timeout(1), for example, sends it to a process and its group."""


class Interrupted(BaseException):
    """A signal has ended the run; its work is saved, unless it was still starting."""

    def __init__(self, signum: int) -> None:
        super().__init__(reason(signum))
        self.signum, self.exit_code = signum, 128 + signum


def reason(signum: int) -> str:
    """The signal as a user knows it."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


class Signals:
    """Takes the signals over while it is entered.

    While `armed`, a signal is only noted, and the run checks for it where it can stop; otherwise it raises Interrupted
    at once. Python runs handlers only between two instructions, so a thread watches, too, and ends a program that is
    busy with one long call.
    """

    def __init__(self, on_signal: Callable[[int], None] = lambda signum: None) -> None:
        self.on_signal = on_signal
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
        """Sets the handlers; call it again after Lightning has started, which sets its own."""
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup, for example, ignores some
                _set(signum, self._handle)

    def _handle(self, signum: int, _: Any) -> None:
        self._noticed.set()
        if self.received:
            return
        self.received = signum
        self.on_signal(signum)
        if _blocks:
            _blocks[-1].append(self)
        elif not self.armed:
            raise Interrupted(signum)

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self.received:
            raise Interrupted(self.received)

    def _watch(self, incoming: int) -> None:
        arrived: dict[int, float] = {}
        while byte := os.read(incoming, 1):
            signum = byte[0]
            if signum not in SIGNALS:
                continue
            again = signum in arrived and time.monotonic() - arrived[signum] > REPEAT
            arrived.setdefault(signum, time.monotonic())
            if again or not (self.armed or self._noticed.wait(GRACE)):
                self.on_signal(signum)
                os._exit(128 + signum)
        os.close(incoming)


def reset() -> None:
    """Lets a process that was forked while the signals were `blocked` receive them, as a program that begins."""
    signal.set_wakeup_fd(-1)
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            _set(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def kill_children(others: Sequence[Any]) -> None:
    """Kills this process's children but `others`: nothing milder ends one whose signals are `blocked`."""
    if left := [child for child in multiprocessing.active_children() if child not in others]:
        handler = signal.getsignal(signal.SIGCHLD)
        _set(signal.SIGCHLD, signal.SIG_DFL)  # else torch would raise an error for each worker that dies
        for child in left:
            child.kill()
            child.join()
        _set(signal.SIGCHLD, handler)


_blocks: list[list[Signals]] = []
"""For each `blocked` that is entered: whose signals have arrived, by way of a thread that did not block them."""


@contextmanager
def blocked() -> Iterator[None]:
    """Delays the signals; a process that is forked meanwhile receives none of them until it calls `reset`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
    _blocks.append([])
    try:
        yield
    finally:
        late = _blocks.pop()
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for signals in late:
        if not signals.armed:
            signals.check()


def _set(signum: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler)
