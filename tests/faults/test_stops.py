"""A run that is killed or asked to stop at any moment resumes as if it had never stopped."""

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trials import RESUME, START, Server, Tally, finish

from vggexp.runs import layout, manifest

pytestmark = pytest.mark.slow


def kill_at(server: Server, cwd: Path, argv: list[str], share: float, signum: int, group: bool = False) -> int:
    """Signals a run after a share of the time that it would take; if it was faster, it has ended already."""
    process = server.start(argv, cwd)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(share * server.seconds)
    if process.poll() is None:
        (os.killpg if group else os.kill)(process.pid, signum)
    return process.wait()


def test_sigkill(
    tally: Callable[[str], Tally],
    farm: Server,
    tmp_path: Path,
    uninterrupted: dict[str, Any],
    count: Callable[[int, int], int],
) -> None:
    """Kills runs at random moments, some of them more than once, and while they write, rename or validate."""
    kills = tally("SIGKILL, resume, compare")
    draw = random.Random(5)
    places = {"kill_in_write": 400, "kill_in_rename": 30, "kill_in_record": 4, "kill_in_validation": 6}
    plans: list[list[tuple[str, float]]] = []
    for number in range(count(100, 5)):
        place = [*places, "at random"][number % 5]
        plans.append([(place, draw.randint(1, places[place]) if place in places else draw.uniform(0, 1))])
        if number % 7 == 0:
            plans[-1].append(("at random", draw.uniform(0.2, 1)))

    def trial(server: Server, plan: list[tuple[str, float]]) -> None:
        cwd = tmp_path / str(id(plan))
        cwd.mkdir()
        with kills.trial(str(plan)):
            for place, value in plan:
                argv = RESUME if (cwd / "outputs" / "run" / layout.RESULT).exists() else START
                if place == "at random":
                    kill_at(server, cwd, argv, value, signal.SIGKILL)
                else:
                    server.run(argv, cwd, [(place, int(value))])
            finish(server, cwd, uninterrupted)

    farm.map(trial, plans)
    kills.check()


def test_signals(
    tally: Callable[[str], Tally],
    farm: Server,
    tmp_path: Path,
    uninterrupted: dict[str, Any],
    count: Callable[[int, int], int],
) -> None:
    """Signals runs at random moments: exit code and result.json report it, and a last save makes resuming exact.

    Every other run has workers, and all its processes are signaled, as by a terminal or a cluster.
    """
    stops = tally("SIGTERM, SIGINT, SIGUSR1")
    draw = random.Random(6)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    plans = [(n, signals[n % 3], draw.uniform(0.3, 1)) for n in range(count(60, 3))]

    def trial(server: Server, plan: tuple[int, signal.Signals, float]) -> None:
        number, signum, share = plan
        cwd = tmp_path / str(number)
        cwd.mkdir()
        with stops.trial(f"{signum.name} after {share:.2f} of the run"):
            workers = 2 * (number % 2)
            code = kill_at(server, cwd, [*START, f"data.num_workers={workers}"], share, signum, group=workers > 0)
            if (cwd / "outputs" / "run" / layout.RESULT).exists() and code != -signum:
                result = manifest.load(cwd / "outputs" / "run", "")
                status = "interrupted" if code else "completed"
                assert (code, result["status"]) == (128 + signum if code else 0, status), (cwd / "log").read_text()
            finish(server, cwd, uninterrupted)

    farm.map(trial, plans)
    stops.check()


PLACES = 3 * (1 + 4 + 2) + 1 + 3
"""How often a run checks for signals: as epochs begin, after all batches but the last, in and after validation, in the
test."""


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resume_at_every_point(
    workers: int,
    tally: Callable[[str], Tally],
    farm: Server,
    tmp_path: Path,
    uninterrupted: dict[str, Any],
    count: Callable[[int, int], int],
) -> None:
    """Stops a run of three epochs with a one-cycle schedule once at each point at which a run can stop."""
    stops = tally("resume at every point")
    options = [*START, f"data.num_workers={workers}", "checkpoint.every_n_seconds=1000"]

    def trial(server: Server, place: int) -> None:
        with stops.trial(f"{workers} workers, place {place}"):
            cwd = tmp_path / str(place)
            cwd.mkdir()
            code = server.run(options, cwd, [("stop_at", place)])
            assert code == (128 + signal.SIGTERM if place <= PLACES else 0), (cwd / "log").read_text()
            finish(server, cwd, uninterrupted)

    places = range(1, PLACES + 2)
    farm.map(trial, random.Random(workers).sample(places, count(len(places), 3)))
    stops.check()
