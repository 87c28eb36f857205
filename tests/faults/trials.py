"""Counts trials, prints a table of those that passed, and provides the processes in which trials run."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import compare
import pytest

from conftest import TINY
from processes import Process, environment, server
from vggexp.runs import layout

T = TypeVar("T")
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


class Server:
    """Starts trials."""

    seconds = 2.0  # that an undisturbed run takes here, once `uninterrupted` has measured it

    def start(self, argv: Sequence[str], cwd: Path, sabotage: Sequence[tuple[str, int]] = (), **env: str) -> Process:
        """Starts `vggexp train ARGV` in `cwd` and appends its output to `cwd/log`."""
        env = environment(**env)
        return server().start("train", *argv, cwd=cwd, env=env, sabotage=sabotage, log=cwd / "log")

    def run(self, argv: Sequence[str], cwd: Path, sabotage: Sequence[tuple[str, int]] = (), **env: str) -> int:
        """Returns the exit code, which is negative if a signal killed the trial."""
        process = self.start(argv, cwd, sabotage, **env)
        try:
            return process.wait()
        finally:
            process.kill()

    def map(self, trial: Callable[["Server", T], None], inputs: Sequence[T]) -> None:
        """Runs all trials, two at a time, because many of them wait."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda value: trial(self, value), inputs))


@pytest.fixture(scope="session")
def farm(_folders: None) -> Server:
    return Server()


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
def uninterrupted(farm: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a run that is not disturbed."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    start = time.monotonic()
    assert farm.run(START, cwd) == 0, (cwd / "log").read_text()
    farm.seconds = time.monotonic() - start
    return compare.outcome(cwd / "outputs" / "run")
