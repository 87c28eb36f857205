"""What the machine is, where the system says it and where it does not; how other processes are stopped."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from processes import PATIENCE
from vggexp.system import hardware, signals


@pytest.fixture
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has no /proc and no /sys."""

    def missing(self: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "glob", lambda *_: iter([]))


@pytest.mark.usefixtures("_no_files")
def test_a_system_that_does_not_say_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert hardware.cpu_name() == "riscv64"
    monkeypatch.setattr("platform.processor", lambda: "Some processor")
    assert hardware.cpu_name() == "Some processor"


@pytest.mark.linux
def test_what_the_system_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"cpuinfo": "processor\t: 0\nmodel name\t: A CPU @ 2 GHz: fast\nflags\t\t: fpu amx_tile\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, **_: texts[self.name])
    assert hardware.cpu_name() == "A CPU @ 2 GHz: fast"
    assert hardware.description()["isa"] == ["amx_tile"]


def test_memory_that_is_free_is_a_part_of_all() -> None:
    assert 2**20 < hardware.available_memory() < psutil.virtual_memory().total


def test_the_device_is_the_accelerator_where_there_is_one_and_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda available=available: available)
        assert hardware.device("auto").type == expected
        assert hardware.device("cpu").type == "cpu"


@pytest.mark.linux
def test_children_but_those_that_may_live_are_killed() -> None:
    fork = multiprocessing.get_context("fork")
    kept, *lost = children = [fork.Process(target=time.sleep, args=(60,)) for _ in range(3)]
    before = signal.getsignal(signal.SIGCHLD)
    try:
        for child in children:
            child.start()
        signals.kill_children([kept])
        assert [child.exitcode for child in lost] == [-signal.SIGKILL] * 2
        assert kept.is_alive()
        assert signal.getsignal(signal.SIGCHLD) == before
    finally:
        kept.kill()
        kept.join()


@pytest.mark.linux
def test_a_signal_that_a_thread_receives_waits_for_the_end_of_a_block() -> None:
    """A process's signal may reach any of its threads, and Python then runs its handler in the first."""
    done: list[object] = []

    def fork() -> None:
        with signals.Signals() as heeded, signals.blocked():
            os.kill(os.getpid(), signal.SIGTERM)  # the thread that watches takes it
            end = time.monotonic() + PATIENCE
            while not heeded.received and time.monotonic() < end:
                time.sleep(0.01)
            done.append(heeded.received)

    with pytest.raises(signals.Interrupted, match="SIGTERM"):
        fork()
    assert done == [signal.SIGTERM]
