"""Signals such as SIGINT (Ctrl-C) and SIGTERM: the first makes a run save and stop, a second ends it at once."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from vggexp.system.paths import WINDOWS

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")  # of which no system has all
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
CAN_BLOCK = hasattr(signal, "pthread_sigmask")
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
        incoming, self._outgoing = socket.socketpair()  # Windows takes no pipe
        self._outgoing.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._outgoing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(incoming,), name="signals", daemon=True).start()
        self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            _set(signum, handler)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        self._outgoing.close()  # ends the watch

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

    def _watch(self, incoming: socket.socket) -> None:
        arrived: dict[int, float] = {}
        while byte := incoming.recv(1):
            if (signum := byte[0]) not in SIGNALS:
                continue
            again = time.monotonic() - arrived.setdefault(signum, time.monotonic()) > REPEAT
            if again or not (self.armed or self._noticed.wait(GRACE)):
                self.on_signal(signum)
                os._exit(128 + signum)
        incoming.close()


def reset() -> None:
    """Lets a process that was forked while the signals were `blocked` receive them, as a program that begins."""
    signal.set_wakeup_fd(-1)
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            _set(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    if CAN_BLOCK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


INTERRUPT: int = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)
"""What makes a program save and stop; on Windows it reaches a group of processes, so the program must begin one."""


def ask_to_stop(pid: int) -> None:
    """Has another process save and stop; on Windows, where that would end it, its console has asked it already."""
    if not WINDOWS:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGTERM)


def stop() -> None:
    """Has this process save and stop."""
    signal.raise_signal(signal.SIGTERM) if WINDOWS else os.kill(os.getpid(), signal.SIGTERM)


def ignore(_: int) -> None:
    """Shields a process that loads batches where signals cannot be `blocked`: a console sends them to all processes."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def kill_children(others: Sequence[Any]) -> None:
    """Kills this process's children but `others`: nothing milder ends one whose signals are `blocked`."""
    if left := [child for child in multiprocessing.active_children() if child not in others]:
        ended = getattr(signal, "SIGCHLD", None)
        handler = _set(ended, signal.SIG_DFL)  # else torch would raise an error for each worker that dies
        for child in left:
            child.kill()
            child.join()
        _set(ended, handler)


_blocks: list[list[Signals]] = []
"""For each `blocked` that is entered: whose signals have arrived, by way of a thread that did not block them."""


@contextmanager
def blocked() -> Iterator[None]:
    """Delays the signals; a process that is forked meanwhile receives none of them until it calls `reset`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if CAN_BLOCK else None
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


def _set(signum: int | None, handler: Any) -> Any:
    """Sets a handler, which only the main thread may; returns the one before."""
    if signum is not None and threading.current_thread() is threading.main_thread():
        return signal.signal(signum, handler)
    return None
