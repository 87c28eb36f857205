"""A sweep completes every config exactly once, whatever happens, with the same numbers as a run alone."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from conftest import QUICK, TINY, refusal, started, vggexp
from processes import PATIENCE
from vggexp.commands import train
from vggexp.config import compose
from vggexp.jobs import job, overview, sweep
from vggexp.jobs.grid import Grid
from vggexp.jobs.grid import labels as labels_of
from vggexp.runs import layout, manifest
from vggexp.runs import read as runs

SCORES = ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc")
SMALL = (*QUICK, "trainer.max_epochs=1")
FORK = "hydra.launcher.start_method=fork"
"""Has the jobs of a sweep share what the tests' server has loaded."""


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{layout.RESULT}"))}


def scores(folder: Path) -> dict[str, list[float]]:
    return {r["config_hash"]: [r[name] for name in SCORES] for r in results(folder).values()}


def wait_for(folder: Path, *statuses: str, number: int = 1) -> list[runs.Run]:
    """Waits until `number` jobs have one of the statuses."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = [runs.read(path.parent) for path in folder.glob(f"*/{layout.RESULT}")]
        if len(found := [run for run in found if run.status in statuses]) >= number:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {number} of {statuses} in {folder}")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a finished sweep of four jobs, and its output."""
    folder = tmp_path_factory.mktemp("grid")
    args = ["data.resize=32,33", "optimizer.lr=0.002,1e-5", "hydra.sweep.dir=outputs/grid"]
    done = vggexp("train", "-m", FORK, *SMALL, *args, cwd=folder, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "grid", done


@pytest.mark.slow
def test_each_job_has_a_folder_a_line_and_a_row(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = grid
    found = results(folder)
    assert {(r["config"]["data"]["resize"], r["config"]["optimizer"]["lr"]) for r in found.values()} == {
        (32, 0.002), (32, 1e-5), (33, 0.002), (33, 1e-5)
    }  # fmt: skip
    assert sorted(found) == ["0", "1", "2", "3"]
    assert "[4/4]  3  completed  optimizer.lr=1e-05 data.resize=33  val/acc" in done.stdout
    table = done.stdout[done.stdout.index("4 runs in") :]
    shown = [float(line.split()[2]) for line in table.splitlines() if line.strip()[:2] in ("32", "33")]
    assert shown == sorted((round(r["val/acc"], 4) for r in found.values()), reverse=True)
    assert "epoch 1/1" in (folder / "0" / "output.log").read_text()


@pytest.mark.slow
def test_a_job_gives_the_same_numbers_as_a_run_alone(
    grid: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    args = ["data.resize=33", "optimizer.lr=0.002", "hydra.run.dir=outputs/alone"]
    alone = vggexp("train", *SMALL, *args, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    result = manifest.load(tmp_path / "outputs" / "alone", "")
    assert scores(grid[0])[result["config_hash"]] == [result[name] for name in SCORES]


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_twice(
    grid: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, _ = grid
    before = results(folder)
    again = [
        "-m",
        FORK,
        *SMALL,
        "optimizer.lr=1e-5,0.002",
        "data.resize=33,32",
    ]  # in another order and without naming the folder
    done = vggexp("train", *again, cwd=folder.parents[1])
    assert done.returncode == 0, done.stderr
    assert "4 done, 0 to do" in done.stdout
    assert results(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["grid"]


@pytest.mark.slow
def test_a_named_sweep_can_grow_and_keeps_its_runs(tmp_path: Path) -> None:
    args = ["-m", FORK, *SMALL, "hydra.sweep.dir=outputs/grown"]
    assert vggexp("train", *args, "seed=0,1", cwd=tmp_path).returncode == 0
    folder = tmp_path / "outputs" / "grown"
    before = results(folder)
    done = vggexp("train", *args, "seed=2,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = results(folder)
    assert {name: after[name]["seed"] for name in after} == {"0": 0, "1": 1, "2": 2}
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_failed_job_is_reported_at_once_and_tried_again(tmp_path: Path) -> None:
    args = ["-m", FORK, *SMALL, "data.val_size=400,100", "hydra.sweep.dir=outputs/failing"]
    done = vggexp("train", *args, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    folder = tmp_path / "outputs" / "failing"
    found = results(folder)
    assert [found[name]["status"] for name in ("0", "1")] == ["failed", "completed"]
    reason = found["0"]["reason"]
    assert "data.val_size=400" in reason
    assert f"[1/2]  0  failed  data.val_size=400  {reason}" in done.stdout
    assert done.stdout.index("0  failed") < done.stdout.index("1  completed")
    assert f"0: failed: {reason}" in done.stdout[done.stdout.index("2 runs in") :]

    again = vggexp("train", "sweep=last", *TINY[:1], "allowed_packages=[synthetic]", cwd=tmp_path)
    assert again.returncode == 1
    assert "1 done, 1 to do" in again.stdout
    assert results(folder)["1"] == found["1"]
    assert len(results(folder)["0"]["segments"]) == 1


@pytest.mark.slow
def test_a_sweep_killed_three_times_completes_every_config_once(tmp_path: Path) -> None:
    long = [*QUICK, "trainer.max_epochs=4", "data.resize=32,33", "optimizer.lr=0.002,0.001,0.0005"]
    whole, killed = (["-m", FORK, *long, f"hydra.sweep.dir=outputs/{name}"] for name in ("whole", "killed"))
    assert vggexp("train", *whole, cwd=tmp_path).returncode == 0
    folder = tmp_path / "outputs" / "killed"
    chance = random.Random(6)
    finished: dict[str, Any] = {}
    for done in (1, 2, 4):
        with started(tmp_path, *killed) as process:
            wait_for(folder, "completed", number=done)
            time.sleep(chance.uniform(0, 1.0))
            finished |= {name: r for name, r in results(folder).items() if r["status"] == "completed"}
            pids = [run.result["pid"] for run in wait_for(folder, "running", "completed") if run.status == "running"]
            process.send_signal(signal.SIGKILL)
            process.wait()
            for pid in pids if done != 2 else []:  # the second time, the job survives its sweep and can save
                os.kill(pid, signal.SIGKILL)
    last = vggexp("train", *killed, cwd=tmp_path)
    assert last.returncode == 0, last.stdout + last.stderr
    after = results(folder)
    assert {r["status"] for r in after.values()} == {"completed"}
    assert len(after) == 6
    assert {name: after[name] for name in finished} == finished
    assert scores(folder) == scores(tmp_path / "outputs" / "whole")


@pytest.mark.slow
def test_a_signal_ends_a_sweep_with_its_table(tmp_path: Path) -> None:
    args = ["-m", FORK, *QUICK, "trainer.max_epochs=1,3000", "seed=0,1", "hydra.sweep.dir=outputs/stopped"]
    folder = tmp_path / "outputs" / "stopped"
    with started(tmp_path, *args) as process:
        wait_for(folder, "completed", number=2)
        wait_for(folder, "running")
        time.sleep(1)
        process.send_signal(signal.SIGTERM)  # Ctrl-C: see the searches
        out, error = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in error
    found = results(folder)
    assert sorted(r["status"] for r in found.values()) == ["completed", "completed", "interrupted"]
    assert (folder / "2" / "checkpoints" / "last.ckpt").exists()
    assert "3 runs in" in out
    assert "to continue: the same command, or vggexp train sweep=outputs/stopped" in error


@pytest.mark.slow
def test_jobs_end_with_their_sweep_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "orphan"
    with started(
        tmp_path, "-m", FORK, *QUICK, "trainer.max_epochs=3000,2999", "hydra.sweep.dir=outputs/orphan"
    ) as process:
        while not (folder / "0" / "checkpoints" / "best.ckpt").exists():
            time.sleep(0.1)
        process.kill()
        process.wait()
        (run,) = wait_for(folder, "interrupted")
    assert run.reason == "SIGTERM"  # the job has saved
    assert sorted(results(folder)) == ["0"]


def test_a_job_of_a_stopped_sweep_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with compose.session(compose.parse(["-m", FORK, *SMALL, "hydra.sweep.dir=outputs/stopped"])) as session:
        folder = tmp_path / "outputs" / "stopped" / "0"
        folder.mkdir(parents=True)
        (folder.parent / layout.STOP).touch()
        OmegaConf.update(session.raw.hydra, "runtime.output_dir", str(folder))
        HydraConfig.instance().set_config(OmegaConf.create({"hydra": session.raw.hydra}))
        assert job.start_in_sweep(session.raw) == 130
    assert not (folder / layout.RESULT).exists()


@pytest.mark.slow
def test_a_killed_job_does_not_affect_the_others(tmp_path: Path) -> None:
    args = ["-m", FORK, *QUICK, "trainer.max_epochs=3000,1", "hydra.sweep.dir=outputs/lost"]
    folder = tmp_path / "outputs" / "lost"
    with started(tmp_path, *args) as process:
        (run,) = wait_for(folder, "running")
        os.kill(run.result["pid"], signal.SIGKILL)
        out, _ = process.communicate()
    assert process.returncode == 1
    assert results(folder)["1"]["status"] == "completed"
    assert f"0: interrupted: {runs.KILLED}" in out


@pytest.mark.slow
def test_a_sweep_cannot_be_started_twice_at_once(tmp_path: Path) -> None:
    args = ["-m", FORK, *QUICK, "trainer.max_epochs=3000,2999", "hydra.sweep.dir=outputs/twice"]
    with started(tmp_path, *args) as process:
        wait_for(tmp_path / "outputs" / "twice", "running")
        done = vggexp("train", *args, cwd=tmp_path)
        assert done.returncode == 2
        assert f"hydra.sweep.dir=outputs/twice: is running, as process {process.pid}" in done.stderr


def test_what_a_sweep_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no sweep under outputs/" in refusal(lambda: sweep.arguments("last", []))
    assert "holds no sweep.json" in refusal(lambda: sweep.arguments("outputs/none", []))
    assert "cannot be combined with sweep=" in refusal(lambda: sweep.arguments("last", ["seed=1"]))
    folder = tmp_path / "outputs" / "broken"
    folder.mkdir(parents=True)
    for text in ('{"jobs": [{', '{"jobs": [{"folder": "../../x", "config_hash": ""}], "arguments": []}'):
        (folder / "sweep.json").write_text(text)
        assert "its sweep.json cannot be read" in refusal(lambda: sweep.arguments("outputs/broken", []))
    assert "its sweep.json cannot be read" in refusal(lambda: sweep.arguments("last", []))
    assert "its sweep.json cannot be read" in refusal(
        lambda: train.main(["-m", FORK, *SMALL, "seed=0,1", "hydra.sweep.dir=outputs/broken"])
    )
    assert "search=optuna" in refusal(lambda: train.main(["-m", FORK, *SMALL, "optimizer.lr=interval(1,2)"]))
    wrong = ["hydra.launcher.start_method=thread", "hydra.sweep.dir=outputs/none"]
    assert "must be one of auto, fork" in refusal(lambda: train.main(["-m", *SMALL, "seed=0,1", *wrong]))
    assert not (tmp_path / "outputs" / "none").exists()
    assert "is the name of two jobs" in refusal(
        lambda: train.main(["-m", FORK, *SMALL, "seed=0,1", "hydra.sweep.dir=outputs/a", "hydra.sweep.subdir=a"])
    )
    manifest.claim(tmp_path / "outputs" / "run", {}, "")
    assert "holds a run already" in refusal(
        lambda: train.main(["-m", FORK, *SMALL, "seed=0,1", "hydra.sweep.dir=outputs/run"])
    )


def test_time_left_follows_the_work(tmp_path: Path) -> None:
    def job(resize: int, ratio: int = 16) -> overview.Entry:
        args = [*QUICK, f"data.resize={resize}", f"model.ratio={ratio}"]
        return overview.Entry(tmp_path / str(resize), args, compose.config(*args))

    assert overview.work(job(64).cfg) == pytest.approx(4 * overview.work(job(32).cfg))
    assert overview.work(job(32, 4).cfg) > overview.work(job(32).cfg)
    jobs = {tmp_path / str(resize): job(resize) for resize in (32, 64)}
    view = overview.Overview(jobs)
    assert view.seconds_left() is None
    view._begun -= 10
    view.seen[tmp_path / "32"] = runs.Run(tmp_path / "32", "completed", "", {}, {})
    assert view.seconds_left() == pytest.approx(40, rel=0.01)
    assert [overview.duration(s) for s in (0.2, 80, 600, 7200)] == ["1 s", "80 s", "10 min", "2.0 h"]


def labels(*overrides: Sequence[str]) -> list[str]:
    cfg: Any = None
    return labels_of([overview.Entry(Path("x"), list(each), cfg) for each in overrides])


def test_jobs_are_named_by_the_settings_that_differ() -> None:
    assert labels(["a=1", "b=1"], ["a=1", "b=2"]) == ["b=1", "b=2"]
    assert labels(["a=1"]) == ["a=1"]


@pytest.mark.parametrize(("count", "threads"), [(1, "4"), (2, "2"), (9, "1")])
def test_jobs_that_start_together_divide_the_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, threads: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    launched: list[list[list[str]]] = []
    fake = SimpleNamespace(launch=lambda jobs, initial_job_idx: launched.append(jobs))
    monkeypatch.setattr(sweep.launcher, "make", lambda *_: fake)
    with compose.session(compose.parse(["-m", *SMALL, "hydra/launcher=submitit_local"])) as session:
        entries = [overview.Entry(tmp_path / str(n), [f"seed={n}"], session.job().cfg) for n in range(count)]
        Grid(session).launch(tmp_path, entries)
    assert os.environ["OMP_NUM_THREADS"] == threads
    assert [job[0] for job in launched[0]] == [f"seed={n}" for n in range(count)]


def test_what_a_launcher_gets_more_or_less_reaches_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[list[str]] = []
    fake = SimpleNamespace(launch=lambda jobs, initial_job_idx: launched.extend(jobs))
    monkeypatch.setattr(sweep.launcher, "make", lambda *_: fake)
    options = "hydra.launcher.additional_parameters"
    args = ["-m", *SMALL, "seed=1,2", "hydra/launcher=submitit_slurm", f"+{options}.nice=9", f"~{options}.requeue"]
    with compose.session(compose.parse(args)) as session:
        entries = [overview.Entry(tmp_path / str(n), job.overrides, job.cfg) for n, job in enumerate(session.grid())]
        Grid(session).launch(tmp_path, entries)
        for number, overrides in enumerate(launched, start=1):
            config = session.loader.load_sweep_config(session.sweep_config(tmp_path), overrides)
            assert config.hydra.launcher.additional_parameters == {"nice": 9}
            assert config.seed == number


def test_a_job_that_another_process_has_just_done_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose.config(*SMALL)
    content = manifest.collect(cfg)
    done = content | {"status": "completed", "test/acc": 0.5}

    @contextmanager
    def lock(folder: Path, _: str) -> Iterator[None]:
        manifest.write(folder, done)  # the other process does, before it lets go of the lock
        yield

    monkeypatch.setattr(manifest, "lock", lock)
    assert job.train(cfg, tmp_path, content, content, in_sweep=True) == 0
    assert manifest.load(tmp_path, "") == done


@pytest.mark.slow
def test_a_sweep_whose_flag_came_last_is_continued(tmp_path: Path) -> None:
    done = vggexp("train", FORK, *SMALL, "hydra.sweep.dir=outputs/end", "-m", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    again = vggexp("train", "sweep=outputs/end", *TINY[:1], "allowed_packages=[synthetic]", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert "1 jobs in outputs/end: 1 done, 0 to do" in again.stdout


@pytest.mark.slow
def test_a_sweep_takes_no_run_of_another_config_as_its_own(tmp_path: Path) -> None:
    """Neither one that was started by hand in its folder, nor a search's; and none is started in its own folder."""
    base = ["-m", FORK, *SMALL, "hydra.sweep.dir=outputs/sw"]
    assert vggexp("train", *base, "seed=1", cwd=tmp_path).returncode == 0
    assert vggexp("train", *SMALL, "hydra.run.dir=outputs/sw/1", "seed=55", cwd=tmp_path).returncode == 0
    done = vggexp("train", *base, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "outputs" / "sw")
    assert {name: found[name]["seed"] for name in found} == {"0": 1, "1": 55, "2": 2}

    search = ["search=optuna", "search.n_trials=1", "optimizer.lr=interval(0.001,0.01)"]
    refused = vggexp("train", *base, *search, cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (
        2, "vggexp: hydra.sweep.dir=outputs/sw: holds a grid already; name another folder\n"
    )  # fmt: skip
    refused = vggexp("train", *SMALL, "hydra.run.dir=outputs/sw", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (
        2, "vggexp: hydra.run.dir=outputs/sw: holds a sweep; name another folder\n"
    )  # fmt: skip
    record = tmp_path / "outputs" / "sw" / "0" / "result.json"
    record.write_text(record.read_text().replace('"resize": 32', '"resize": 33'))
    other = vggexp("train", *base, "seed=1,2", cwd=tmp_path)
    assert other.returncode == 2
    assert "0 is another run: data.resize=33: the run has 32" in other.stderr
    assert results(tmp_path / "outputs" / "sw")["2"] == found["2"]


@pytest.mark.slow
def test_a_job_whose_folder_would_have_too_long_a_name(tmp_path: Path) -> None:
    name = f"hydra.sweep.subdir={'x' * 300}${{seed}}"
    done = vggexp("train", "-m", *SMALL, "seed=1,2", name, "hydra.sweep.dir=outputs/s", cwd=tmp_path)
    assert done.returncode == 2
    assert "is too long a name" in done.stderr
