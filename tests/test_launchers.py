"""A sweep gives the same numbers on this machine, on a real SLURM and on a real Ray cluster of two nodes."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import QUICK, TESTS, configure, refusal, started, vggexp
from processes import PATIENCE
from test_sweep import SCORES, SMALL, results, scores, wait_for
from vggexp.config import compose
from vggexp.jobs import launcher
from vggexp.runs import manifest

GRID = ("-m", *SMALL, "data.resize=32,33")
ONE = ("-m", *SMALL, "data.resize=33")
SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The scores of the default launcher, by config hash."""
    folder = tmp_path_factory.mktemp("default")
    done = vggexp("train", *GRID, "hydra.sweep.dir=outputs/default", cwd=folder)
    assert done.returncode == 0, done.stderr
    return scores(folder / "outputs" / "default")


def assert_same(folder: Path, expected: dict[str, list[float]]) -> None:
    """The one job in a folder has the scores of the same config by the default launcher."""
    (found,) = scores(folder).items()
    assert found in expected.items()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launcher_changes_no_number(launcher: str, expected: dict[str, list[float]], tmp_path: Path) -> None:
    args = [f"hydra/launcher={launcher}", "hydra.sweep.dir=outputs/here"]
    done = vggexp("train", *ONE, *args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(tmp_path / "outputs" / "here", expected)
    assert "epoch 1/1" not in done.stdout  # that is in the jobs' output.log
    assert "epoch 1/1" in (tmp_path / "outputs" / "here" / "0" / "output.log").read_text()


@pytest.mark.slow
def test_ctrl_c_reaches_the_jobs_of_another_launcher(tmp_path: Path) -> None:
    args = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=outputs/here"]
    command = ["-m", *QUICK, "trainer.max_epochs=3000", "seed=0,1,2", *args]
    folder = tmp_path / "outputs" / "here"
    with started(tmp_path, *command) as process:
        while not all((folder / name / "checkpoints" / "best.ckpt").exists() for name in ("0", "1")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate()
    assert process.returncode == 130, out + error
    found = results(folder)
    assert sorted(found) == ["0", "1"]  # the third job did not begin
    assert {r["status"] for r in found.values()} == {"interrupted"}
    assert (folder / "0" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_a_job_whose_time_is_nearly_up_saves_and_is_queued_again(tmp_path: Path) -> None:
    """Submitit says so by SIGUSR2; without SLURM, it starts the job again itself."""
    args = ["hydra/launcher=submitit_local", "hydra.sweep.dir=outputs/here"]
    folder = tmp_path / "outputs" / "here"
    with started(tmp_path, "-m", *QUICK, "trainer.max_epochs=10", *args) as process:
        while not (folder / "0" / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.output + process.errors
            time.sleep(0.1)
        os.kill(results(folder)["0"]["pid"], signal.SIGUSR2)
        out, error = process.communicate()
    assert process.returncode == 0, out + error
    assert len(results(folder)["0"]["segments"]) == 1
    log = (folder / "0" / "output.log").read_text()
    assert "vggexp: stopped by SIGUSR2" in log
    assert log.count("epoch 10/10") == 1


@pytest.mark.slow
def test_ray_trains_on_every_node(
    expected: dict[str, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # Ray's workers inherit the environment of its nodes
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={cluster.address}"]
        done = vggexp("train", *ONE, *ray, "hydra.sweep.dir=outputs/ray", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same(tmp_path / "outputs" / "ray", expected)
        long = ["-m", *QUICK, "trainer.max_epochs=3000", "seed=0,1", "hydra.sweep.dir=outputs/both"]
        with started(tmp_path, *long, *ray) as process:
            wait_for(tmp_path / "outputs" / "both", "running", number=2)  # each takes the only core of a node
            assert process.poll() is None
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM of one node with two cores. It is required in CI; elsewhere, tests that need it are skipped."""
    missing = [name for name in SLURM if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"SLURM is not installed: {', '.join(missing)}; on Debian: apt-get install slurm-wlm munge")
    assert not missing
    folder, host, user = tmp_path_factory.mktemp("slurm"), socket.gethostname(), getpass.getuser()
    ports = [_free_port(), _free_port()]
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser={user}\nSlurmdUser={user}\n"
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.socket\nStateSaveLocation={folder}/state\n"
        f"SlurmdSpoolDir={folder}/spool\nSlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/d.pid\n"
        f"SlurmctldLogFile={folder}/ctld.log\nSlurmdLogFile={folder}/d.log\nSlurmctldPort={ports[0]}\n"
        f"SlurmdPort={ports[1]}\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSwitchType=switch/none\n"
        "MpiDefault=none\nSelectType=select/cons_res\nSelectTypeParameters=CR_Core\nReturnToService=2\nKillWait=10\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN\n"
        f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    )
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    for parent in [folder, *folder.parents][:3]:
        parent.chmod(0o755)  # the daemons must be able to enter it
    place = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munge.log"}
    place |= {"pid-file": "munge.pid", "seed-file": "munge.seed"}
    daemons = [
        ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in place.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        log = (folder / "daemons.log").open("wb")
        running = [subprocess.Popen(daemon, stdout=log, stderr=log) for daemon in daemons]
        try:
            for _ in range(60):
                state = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout.strip()
                if state == "idle":
                    break
                time.sleep(0.5)
            else:
                raise AssertionError((folder / "daemons.log").read_text())
            yield
        finally:
            subprocess.run(["scancel", "--user", user], capture_output=True)
            for _ in range(30):
                if not subprocess.run(["squeue", "-h"], capture_output=True).stdout:
                    break
                time.sleep(0.5)
            for process in reversed(running):
                process.terminate()
                process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_slurm_changes_no_number(expected: dict[str, list[float]], tmp_path: Path) -> None:
    args = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.sweep.dir=outputs/slurm"]
    done = vggexp("train", *ONE, *args, cwd=tmp_path)  # a job uses as many threads as it has cores
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(tmp_path / "outputs" / "slurm", expected)


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_job_that_slurm_requeues_continues(tmp_path: Path) -> None:
    args = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.sweep.dir=outputs/slurm"]
    folder = tmp_path / "outputs" / "slurm"
    with started(tmp_path, "-m", *QUICK, "trainer.max_epochs=30,1", *args) as process:
        wait_for(folder, "completed")
        wait_for(folder, "running")
        time.sleep(1)
        (job,) = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True).stdout.split()[:1]
        subprocess.run(["scontrol", "requeue", job], check=True)
        while process.poll() is None:  # otherwise, it would wait two minutes in the queue
            subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], capture_output=True)
            time.sleep(1)
        out, error = process.communicate()
    assert process.returncode == 0, out + error
    found = results(folder)
    assert {r["status"] for r in found.values()} == {"completed"}
    assert len(found["0"]["segments"]) == 1


def test_a_launcher_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hydra.core.plugins import Plugins

    monkeypatch.setattr(Plugins.instance(), "class_name_to_class", {})
    args = compose.parse([*GRID, "hydra/launcher=submitit_slurm"])
    with compose.session(args) as session:
        config = session.sweep_config(tmp_path)
        text = refusal(lambda: launcher.make(session, print, config))
    assert text.startswith("hydra/launcher=submitit_slurm: ")
    assert text.endswith("make setup EXTRAS=submitit")
    assert configure(*SMALL)  # no state of Hydra is left behind


DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The result of one run on two processes, started by Lightning."""
    folder = tmp_path_factory.mktemp("ddp")
    done = vggexp("train", *QUICK, *DDP, "hydra.run.dir=outputs/run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return manifest.load(folder / "outputs" / "run", "")


def same_as(expected: dict[str, object], cwd: Path, *start: str) -> None:
    """Checks that processes started from outside train as one run, with the same numbers, in one folder."""
    env = os.environ | {"PYTHONPATH": str(TESTS)}
    command = [*start, "-m", "vggexp.train", *QUICK, *DDP]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (cwd / "outputs").iterdir()
    result = manifest.load(folder, "")
    assert [result[name] for name in SCORES] == [expected[name] for name in SCORES]


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_slurm_trains_one_run_on_two_processes(two_processes: dict[str, object], tmp_path: Path) -> None:
    same_as(two_processes, tmp_path, "srun", "--ntasks=2", "--ntasks-per-node=2", sys.executable)


@pytest.mark.slow
def test_restarted_processes_resume(tmp_path: Path) -> None:
    args = [*QUICK, "hydra.run.dir=outputs/run", "trainer.max_epochs=3000"]
    with started(tmp_path, *args, SLURM_JOB_ID="7") as process:
        while not (tmp_path / "outputs" / "run" / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.1)
        process.kill()
    for other in ({}, {"SLURM_JOB_ID": "8"}):
        assert "holds a run already" in vggexp("train", *args, cwd=tmp_path, **other).stderr
    differs = vggexp("train", *args, "seed=1", cwd=tmp_path, SLURM_JOB_ID="7")
    assert "seed=1: the run has 0" in differs.stderr
    with started(tmp_path, *args, SLURM_JOB_ID="7") as process:
        while "segments" not in manifest.load(tmp_path / "outputs" / "run", ""):
            assert process.poll() is None, process.errors
            time.sleep(0.1)


def test_processes_without_a_common_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    compose.run_name.cache_clear()
    assert "--rdzv-id=NAME" in refusal(compose.run_name)
