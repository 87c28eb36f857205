"""Counts trials, prints a table of those that passed, and provides the processes in which trials run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import compare
import pytest

from conftest import TESTS, TINY
from vggexp.runs import layout

FAULTS = Path(__file__).parent
ARGS = (
    *TINY,
    *("model.init=kaiming", "optimizer.lr=0.005", "scheduler=onecycle", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=3", "trainer.log_every_n_steps=2", "checkpoint.every_n_seconds=0.1"),
)
"""Arguments for a run of 15 steps with dropout that saves often."""
START = [*ARGS, "hydra.run.dir=outputs/run"]
RESUME = ["resume=outputs/run", "allowed_packages=[synthetic]"]


@dataclass
class Tally:
    """The trials of one class of faults."""

    tried: int = 0
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def trial(self, name: str) -> Iterator[None]:
        """Counts the block as a trial. An exception means that it failed, which `check` reports after all trials."""
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failed.append(f"{name}: {type(error).__name__}: {error}")

    def check(self) -> None:
        assert self.tried
        if self.failed:
            pytest.fail(f"{len(self.failed)} of {self.tried} failed:\n" + "\n\n".join(self.failed), pytrace=False)


TALLIES: dict[str, Tally] = {}


@pytest.fixture
def tally() -> Callable[[str], Tally]:
    """Returns the tally of a class of faults by its name."""
    return lambda name: TALLIES.setdefault(name, Tally())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TALLIES:
        terminalreporter.section("faults")
        terminalreporter.line(f"{'class':34}{'trials':>8}{'passed':>10}")
        for name, tally in TALLIES.items():
            terminalreporter.line(f"{name:34}{tally.tried:8,}{tally.tried - len(tally.failed):10,}")


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Returns the first of two numbers with --full (make faults), and the second otherwise."""
    return lambda full, short: full if request.config.getoption("--full") else short


class Process:
    """A running trial."""

    def __init__(self, server: "Server", pid: int) -> None:
        self.server, self.pid = server, pid

    def wait(self) -> int:
        """Waits for the trial; returns its exit code, which is negative if a signal killed it."""
        return int(self.server.ask("wait"))


class Server:
    """A process that forks trials, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, FAULTS / "server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )

    def ask(self, text: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        return self.process.stdout.readline()

    def start(self, argv: Sequence[str], cwd: Path, sabotage: Sequence[tuple[str, int]] = (), **env: str) -> Process:
        """Starts `python -m vggexp.train ARGV` in `cwd` and appends its output to `cwd/log`."""
        order = {"argv": list(argv), "cwd": str(cwd), "log": str(cwd / "log"), "sabotage": list(sabotage), "env": env}
        return Process(self, int(self.ask(json.dumps(order))))

    def run(self, argv: Sequence[str], cwd: Path, sabotage: Sequence[tuple[str, int]] = (), **env: str) -> int:
        return self.start(argv, cwd, sabotage, **env).wait()


T = TypeVar("T")


class Farm:
    """Two servers, so that both cores are used."""

    def __init__(self) -> None:
        self.free: SimpleQueue[Server] = SimpleQueue()
        self.servers = [Server() for _ in range(2)]
        for server in self.servers:
            self.free.put(server)

    def map(self, trial: Callable[[Server, T], None], inputs: Sequence[T]) -> None:
        """Runs all trials, two at a time."""

        def call(value: T) -> None:
            server = self.free.get()
            try:
                trial(server, value)
            finally:
                self.free.put(server)

        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(call, inputs))


@pytest.fixture(scope="session")
def farm(_folders: None) -> Iterator[Farm]:
    farm = Farm()
    yield farm
    for server in farm.servers:
        server.process.kill()
        server.process.wait()


def finish(server: Server, cwd: Path, expected: dict[str, Any]) -> None:
    """Resumes the run, or starts it if there is none yet, and compares its outcome."""
    begun = (cwd / "outputs" / "run" / layout.RESULT).exists()
    code = server.run(RESUME if begun else START, cwd)
    log = (cwd / "log").read_text()
    assert code == 0, log
    assert "Traceback" not in log, log
    found = compare.differences(expected, compare.outcome(cwd / "outputs" / "run"))
    assert not found, found[:5]


@pytest.fixture(scope="session")
def uninterrupted(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a run that is not disturbed."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    assert farm.servers[0].run(START, cwd) == 0, (cwd / "log").read_text()
    return compare.outcome(cwd / "outputs" / "run")
