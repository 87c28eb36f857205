"""Runs on several processes give the same numbers as one process, and stop and resume as one."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from trials import ARGS, Tally

from conftest import started, vggexp
from synthetic import TEST
from vggexp.runs import manifest

pytestmark = pytest.mark.slow

OPTIONS = (
    *(*ARGS, "model.dropout=0.0", "data.batch_size=100", "optimizer.lr=0.002", "checkpoint.every_n_seconds=1000"),
    "optimizer.eps=0.001",  # else Adam makes of a gradient's rounding about zero a whole step
)
"""3 does not divide a batch of 100, and neither 3 nor 4 divides the 130 test images."""


def options(world: int) -> list[str]:
    return [*OPTIONS, *([] if world == 1 else ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={world}"])]


def run(world: int, cwd: Path, *more: str) -> dict[str, Any]:
    cwd.mkdir()
    done = vggexp("train", *options(world), *more, "hydra.run.dir=outputs/run", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return manifest.load(cwd / "outputs" / "run", "")


def stop(world: int, cwd: Path, signum: int, everybody: bool) -> None:
    """Starts a run and, in its second epoch, signals its first process or, as a terminal does, all of them."""
    cwd.mkdir()
    with started(cwd, *options(world), "hydra.run.dir=outputs/run") as process:
        process.wait_for_output("epoch 1/")
        try:
            if everybody:
                os.killpg(process.pid, signum)
            else:
                process.send_signal(signum)
            assert process.wait() == 128 + signum, process.output + process.errors
            assert "Traceback" not in process.output + process.errors
            assert manifest.load(cwd / "outputs" / "run", "")["status"] == "interrupted"
            assert _gone(process.pid), "a process still runs"
        finally:
            if not _gone(process.pid, 0):
                os.killpg(process.pid, signal.SIGKILL)


def _gone(group: int, seconds: float = 10) -> bool:
    """Whether all processes of a group have ended."""
    end = time.monotonic() + seconds
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)


def test_several_processes(tally: Callable[[str], Tally], tmp_path: Path, count: Callable[[int, int], int]) -> None:
    worlds = tally("processes (DDP)")
    one = run(1, tmp_path / "one")
    alone = compare.outcome(tmp_path / "one" / "outputs" / "run")["last.ckpt"]["state_dict"]
    for world in range(count(1, 2), count(4, 2) + 1):
        with worlds.trial(f"{world} processes"):
            whole = run(world, tmp_path / f"whole {world}")
            for name in ("train/acc", "val/acc", "test/acc"):
                assert whole[name] == one[name], name
            for name in ("train/loss", "val/loss", "test/loss"):
                assert whole[name] == pytest.approx(one[name], rel=1e-4), name
            assert whole["test/acc"] * TEST == pytest.approx(round(whole["test/acc"] * TEST), abs=1e-4)
            expected = compare.outcome(tmp_path / f"whole {world}" / "outputs" / "run")
            for name, weight in expected["last.ckpt"]["state_dict"].items():
                torch.testing.assert_close(weight, alone[name], rtol=1e-3, atol=1e-3)  # half of one step's `lr`

            cwd = tmp_path / f"stopped {world}"
            stop(world, cwd, signal.SIGINT if world % 2 else signal.SIGTERM, everybody=world % 2 == 1)
            resumed = vggexp("train", "resume=last", "allowed_packages=[synthetic]", cwd=cwd)
            assert resumed.returncode == 0, resumed.stderr
            found = compare.differences(expected, compare.outcome(cwd / "outputs" / "run"))
            assert not found, found[:5]
    worlds.check()


@pytest.mark.parametrize("late", [False, True], ids=["at once", "when Lightning has seen it"])
def test_the_death_of_a_process_is_told_in_a_line(late: bool, tmp_path: Path) -> None:
    with started(tmp_path, *options(2), "trainer.max_epochs=500", "hydra.run.dir=outputs/run") as process:
        process.wait_for_output("epoch 2/")
        (other,) = [pid for pid in _members(process.pid) if pid != process.pid]
        if late:
            os.kill(process.pid, signal.SIGSTOP)
        os.kill(other, signal.SIGKILL)
        if late:
            time.sleep(6)
            os.kill(process.pid, signal.SIGCONT)
        assert process.wait() == 1
        assert "Traceback" not in process.output + process.errors
        assert process.errors.endswith(
            "vggexp: trainer.strategy=ddp: process 1 of 2 (rank 1) has ended by SIGKILL; "
            "to continue: vggexp train resume=outputs/run\n"
        )
    assert manifest.load(tmp_path / "outputs" / "run", "")["status"] == "failed"


def _members(group: int) -> list[int]:
    """The processes of a group that are no threads, zombies or helpers of multiprocessing."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if os.getpgid(int(folder.name)) == group and b"resource_tracker" not in command and command:
                found.append(int(folder.name))
    return found
