"""A sweep on SLURM with two nodes that are really apart survives the death of each of its parts; so does one run."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import compare
import pytest
from test_hosts import LONG, Agent, Hosts, completed, same, undisturbed, until  # noqa: F401  (a fixture)
from test_hosts import START as RUN
from trials import ARGS, Tally

from conftest import vggexp
from hosts import Host
from processes import PATIENCE
from test_launchers import SLURM
from test_sweep import FORK, results, wait_for
from vggexp.runs import layout

pytestmark = [pytest.mark.slow, pytest.mark.linux]

JOBS = 12
SWEEP = ("-m", *ARGS, "trainer.max_epochs=10", f"seed=range({JOBS})", "hydra.sweep.dir=outputs/sweep")
FOLDER = Path("outputs", "sweep")
NOTHING_REQUEUED = "~hydra.launcher.additional_parameters.requeue"
# each node has its own `node` folder; the system requeues nothing by itself, and a job may start again after 5 seconds
CONF = """ClusterName=test
SlurmctldHost=a
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={disk}/node/munge.socket,cred_expire=5
StateSaveLocation={disk}/state
SlurmdSpoolDir={disk}/node/spool
SlurmctldPidFile={disk}/node/ctld.pid
SlurmdPidFile={disk}/node/d.pid
SlurmctldLogFile={disk}/ctld.log
SlurmdLogFile={disk}/node/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_res
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
ReturnToService=2
KillWait=10
JobRequeue=0
NodeName=a,b CPUs=1 State=UNKNOWN
PartitionName=all Nodes=a,b Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller on host `a`, and a node on each host."""

    def __init__(self, hosts: list[Host], disk: Path) -> None:
        self.hosts, self.disk = hosts, disk
        (disk / "slurm.conf").write_text(CONF.format(disk=disk))
        (disk / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # the one that asks for nothing before it is used
        (disk / "munge.key").write_bytes(os.urandom(1024))
        (disk / "munge.key").chmod(0o400)
        for name in ("state", "node"):
            (disk / name).mkdir()
        for host in hosts:
            host.own[disk / "node"] = disk / f"node-{host.name}"
            host.own[disk / "node"].mkdir()
            self.join(host)
        self.controller = self.control()
        until(lambda: self.ask("sinfo", "-h", "-o", "%D %t").strip() == "2 idle", hosts, 60)

    def start(self, host: Host, *command: str) -> Agent:
        path = f"{os.environ['PATH']}:/usr/sbin"
        return host.start(*command, SLURM_CONF=str(self.disk / "slurm.conf"), PATH=path)

    def join(self, host: Host) -> None:
        """Starts what a node runs."""
        node = self.disk / "node"
        place = {"socket": "munge.socket", "log-file": "munge.log", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        files = [f"--{name}={node / file}" for name, file in place.items()]
        self.start(host, "munged", "--foreground", "--force", f"--key-file={self.disk / 'munge.key'}", *files)
        until((host.own[node] / "munge.socket").exists, self.hosts, 30)
        self.start(host, "slurmd", "-D")

    def control(self) -> Agent:
        return self.start(self.hosts[0], "slurmctld", "-D")

    def ask(self, *command: str) -> str:
        """What a command prints on host `a`."""
        self.start(self.hosts[0], *command).wait(PATIENCE)
        return self.hosts[0].logs.pop().read_text()

    def sweep(self, *args: str) -> Agent:
        slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", *args]
        return self.start(self.hosts[0], sys.executable, "-m", "vggexp.train", *SWEEP, *slurm)

    def ends(self, command: Agent, code: int = 0) -> None:
        until(lambda: command.poll() is not None, self.hosts)
        assert command.returncode == code, self.hosts[0].log


@pytest.fixture
def slurm(hosts: Hosts, request: pytest.FixtureRequest) -> Callable[[Path], Slurm]:
    """Makes a SLURM whose nodes share a folder. It is required in CI; elsewhere, tests that need it are skipped."""
    if not request.config.getoption("--full"):
        pytest.skip("a trial of make faults")
    missing = [name for name in SLURM if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"SLURM is not installed: {', '.join(missing)}; on Debian: apt-get install slurm-wlm munge")

    def make(disk: Path) -> Slurm:
        disk.mkdir()
        return Slurm(hosts(folder=disk), disk)

    return make


@pytest.fixture(scope="module")
def sequential(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _folders: None
) -> dict[str, Any]:
    """The outcome of each job, by config hash, in a sweep that is not disturbed and runs one job after another."""
    if not request.config.getoption("--full"):
        pytest.skip("a trial of make faults")
    cwd = tmp_path_factory.mktemp("sequential")
    done = vggexp("train", *SWEEP, FORK, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return {r["config_hash"]: compare.outcome(cwd / FOLDER / name) for name, r in results(cwd / FOLDER).items()}


def finished(folder: Path) -> dict[str, Any]:
    return {name: result for name, result in results(folder).items() if result["status"] == "completed"}


def once(folder: Path, expected: dict[str, Any], before: dict[str, Any]) -> None:
    """Each job was trained to its end once, with the numbers of the sequential sweep; what was done was not touched."""
    after = finished(folder)
    assert {name: after[name] for name in before} == before
    assert {result["config_hash"] for result in after.values()} == expected.keys()
    assert len(results(folder)) == JOBS
    for name, result in after.items():
        found = compare.differences(expected[result["config_hash"]], compare.outcome(folder / name))
        assert not found, (name, found[:5])
        log = (folder / name / layout.OUTPUT).read_text()
        assert log.count("test accuracy") == 1, log
        assert "Traceback" not in log, log


def trains_on(host: str, folder: Path) -> bool:
    return any(run.result["host"] == host for run in wait_for(folder, "running"))


KINDS = ("node", "node, no requeue", "node that returns", "controller", "array requeued", "time limit", "command")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_outlives(
    kind: str,
    tally: Callable[[str], Tally],
    slurm: Callable[[Path], Slurm],
    tmp_path: Path,
    sequential: dict[str, Any],
    count: Callable[[int, int], int],
) -> None:
    trials, draw = tally(f"slurm: {kind}"), random.Random(4)
    for number in range(count(1, 1)):
        with trials.trial(f"{kind} {number}"):
            cluster = slurm(tmp_path / str(number))
            (_, b), folder = cluster.hosts, cluster.disk / FOLDER
            limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=29"] * (kind == "time limit")
            limit += ["hydra.launcher.array_parallelism=1"] * (kind == "command")  # then two arrays meet at each job
            command = cluster.sweep(*limit, *[NOTHING_REQUEUED] * (kind == "node, no requeue"))
            wait_for(folder, "completed", number=2)
            if kind != "command":
                until(partial(trains_on, "b", folder), cluster.hosts)
            time.sleep(draw.uniform(0, 2))
            before = finished(folder)
            match kind:
                case "node" | "node that returns" | "node, no requeue":
                    b.signal()
                    cluster.ask("scontrol", "update", "nodename=b", "state=down", "reason=dead")
                    if kind == "node that returns":
                        cluster.join(b)
                    if kind == "node, no requeue":  # without accounting, SLURM does not tell what became of a job
                        until(lambda jobs=cluster: not jobs.ask("squeue", "-h"), cluster.hosts)
                        command.send_signal(signal.SIGINT)
                        cluster.ends(command, 130)
                        assert len(finished(folder)) < JOBS
                        command = cluster.sweep()
                case "controller":
                    cluster.controller.kill()
                    time.sleep(draw.uniform(1, 10))
                    cluster.control()
                case "array requeued":
                    (array,) = set(cluster.ask("squeue", "-h", "-o", "%F").split())
                    cluster.ask("scontrol", "requeue", array)
                case "command":
                    command.kill()
                    command = cluster.sweep(*limit)
            cluster.ends(command)
            once(folder, sequential, before)
            if kind == "time limit":
                logs = [(folder / name / layout.OUTPUT).read_text() for name in results(folder)]
                assert any("vggexp: stopped by SIGUSR2" in log for log in logs)
    trials.check()


def test_a_run_on_two_nodes_that_slurm_requeues_continues(
    tally: Callable[[str], Tally],
    slurm: Callable[[Path], Slurm],
    tmp_path: Path,
    count: Callable[[int, int], int],
    request: pytest.FixtureRequest,
) -> None:
    expected = request.getfixturevalue("undisturbed")  # not before it is known that the trial is not skipped
    trials, draw = tally("slurm: a run on two nodes requeued"), random.Random(5)
    for number in range(count(1, 1)):
        with trials.trial(f"requeued {number}"):
            cluster = slurm(tmp_path / str(number))
            train = [sys.executable, "-m", "vggexp.train", *RUN, "trainer.devices=1", "trainer.num_nodes=2"]
            srun = " ".join(f"'{word}'" for word in ["srun", "--nodes=2", "--ntasks-per-node=1", *train])
            said = cluster.ask("sbatch", "--requeue", "--nodes=2", "--ntasks-per-node=1", f"--wrap={srun}")
            job = said.split()[-1]
            folder = cluster.disk / "outputs" / f"slurm_{job}"
            until(layout.checkpoint(folder, layout.LAST).exists, cluster.hosts)
            time.sleep(draw.uniform(0, 1))
            cluster.ask("scontrol", "requeue", job)
            until(partial(completed, folder), cluster.hosts)
            same(folder, expected)
            log = (cluster.disk / f"slurm-{job}.out").read_text()
            assert f"epoch {LONG}/{LONG}" in log
    trials.check()
