"""A sweep on a Ray cluster of two hosts: a node dies, or the sweep's own process; each job counts once, to the bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import compare
import pytest
from test_hosts import Hosts, finished, until
from test_studies import running
from trials import Tally

from conftest import QUICK, vggexp
from hosts import Host
from test_sweep import results
from vggexp.runs import layout

pytestmark = [pytest.mark.slow, pytest.mark.linux]
JOBS = 12
SWEEP = (
    *("train", "-m", *QUICK, "trainer.max_epochs=8", "checkpoint.every_n_seconds=0.3"),
    *(f"seed=range({JOBS})", "hydra.sweep.dir=outputs/sweep"),
)
FOLDER = Path("outputs", "sweep")
PORT = 6379


@pytest.fixture(scope="module")
def sequential(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of each job, one after another on one host."""
    if not request.config.getoption("--full"):
        pytest.skip("a trial of make faults")
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed; make setup EXTRAS=ray")
    cwd = tmp_path_factory.mktemp("sequential")
    done = vggexp(*SWEEP, "hydra.launcher.start_method=fork", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return {str(n): compare.outcome(cwd / FOLDER / str(n)) for n in range(JOBS)}


class Cluster:
    """Ray on two hosts, with a core each."""

    def __init__(self, hosts: list[Host], folder: Path) -> None:
        self.hosts, self.folder = hosts, folder

    def join(self, host: Host) -> None:
        """Makes a host a node; the first one is the head."""
        if host is self.hosts[0]:
            role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        else:
            role = [f"--address=a:{PORT}"]
        place = self.folder / f"{host.name}{len(host.logs)}"  # the names of Ray's sockets allow no long path
        place.mkdir()
        options = [f"--node-ip-address={host.address}", "--num-cpus=1", "--object-store-memory=80000000"]
        options += [f"--temp-dir={place}", f"--plasma-directory={place}", "--disable-usage-stats", "--block"]
        host.start(sys.executable, "-m", "ray.scripts.scripts", "start", *role, *options, **ENV)
        until(lambda: "Ray runtime started" in host.logs[-1].read_text(), [host], 120)

    def sweep(self) -> subprocess.Popen[bytes]:
        ray = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address=a:{PORT}"]
        return self.hosts[0].start(sys.executable, "-m", "vggexp", *SWEEP, *ray, **ENV)


ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}


@contextmanager
def cluster(hosts: list[Host]) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    made = Cluster(hosts, folder)
    try:
        for host in hosts:
            made.join(host)
        yield made
    finally:
        for host in hosts:
            host.signal()
        shutil.rmtree(folder)


def begun(folder: Path) -> bool:
    """Whether each host is some epochs into a job, and has one behind it."""
    now = running(folder)
    hosts = {host for name, host in now.items() if layout.checkpoint(folder / name, layout.LAST).exists()}
    return hosts == {"a", "b"} and len(results(folder)) > 3


@pytest.mark.parametrize("kind", ["node b", "node b, which returns", "cable of b", "the sweep itself", "a job"])
def test_a_sweep_on_ray_outlives(
    kind: str,
    tally: Callable[[str], Tally],
    hosts: Hosts,
    tmp_path: Path,
    sequential: dict[str, Any],
    count: Callable[[int, int], int],
) -> None:
    trials, draw = tally(f"Ray: {kind}"), random.Random(5)
    for number in range(count(2, 1)):
        with trials.trial(f"{kind} {number}"):
            disk = tmp_path / f"{number}"
            disk.mkdir()
            pair = hosts(folder=disk)
            b = pair[1]
            folder = disk / FOLDER
            with cluster(pair) as made:
                process = made.sweep()
                until(partial(begun, folder), pair, 240)
                time.sleep(draw.uniform(0, 1))
                cut_off = {name for name, host in running(folder).items() if host == "b" or kind == "the sweep itself"}
                match kind:
                    case (
                        "cable of b"
                    ):  # its job completes, and the one that Ray then starts in its place has nothing to do
                        b.cut()
                        cut_off = set()
                    case "the sweep itself":
                        process.kill()
                        process.wait()
                        process = made.sweep()
                    case "a job":
                        for name in cut_off:
                            os.kill(results(folder)[name]["pid"], signal.SIGKILL)
                    case _:
                        b.signal()
                        if kind.endswith("returns"):
                            made.join(b)
                finished([process], pair)
                found = results(folder)
                assert sorted(found, key=int) == sorted(sequential, key=int)
                assert {name for name, run in found.items() if "segments" in run} == cut_off
                for name, expected in sequential.items():
                    differences = compare.differences(expected, compare.outcome(folder / name))
                    assert not differences, (name, differences[:5])
                if kind == "node b":
                    (name,) = cut_off
                    assert (found[name]["segments"][0]["host"], found[name]["host"]) == ("b", "a")
    trials.check()
