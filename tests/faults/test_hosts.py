"""A run on two hosts survives the death of a process, of a host and of the network between them."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import compare
import pytest
from trials import ARGS, Tally

from conftest import vggexp
from hosts import Host
from processes import PATIENCE
from vggexp.runs import layout, manifest

pytestmark = [pytest.mark.slow, pytest.mark.linux]

RUN = Path("outputs", "torchrun_run")
LONG = 10  # epochs, so that there is time for a fault
TIMEOUT = 40  # seconds, for a machine that is busy with other tests, too
START = (*ARGS, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.max_epochs={LONG}", f"trainer.timeout={TIMEOUT}")
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else torchrun tells a host that returns no address
WAYS = ("static", "c10d")  # in which torchrun's agents find each other
AGENT = "torch.distributed.run"
DOCS = Path(__file__).parents[2] / "docs" / "machines.md"
Hosts = Callable[..., list[Host]]
Agent = subprocess.Popen[bytes]


def torchrun(host: Host, way: str, *more: str, nodes: str = "2", clock: str = "", **env: str) -> Agent:
    options = [f"--nnodes={nodes}", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-id=run"]
    if way == "static":
        options += [f"--node-rank={'ab'.index(host.name)}", "--master-addr=a", "--master-port=29400"]
    else:
        options += ["--rdzv-backend=c10d", "--rdzv-endpoint=a:29400", f"--local-addr={host.address}"]
        env = {**OWN_STORE, **env}
    before = []
    if clock:
        before = ["faketime", "--exclude-monotonic", "-f", clock]
        # faketime takes a point of the clock that it leaves alone for one of its own, in Python's time.sleep
        text = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
        (host.cwd / "clock").mkdir()
        (host.cwd / "clock" / "sitecustomize.py").write_text(text)
        env["PYTHONPATH"] = str(host.cwd / "clock")
    return host.start(*before, sys.executable, "-m", AGENT, *options, "-m", "vggexp.train", *START, *more, **env)


def worker(host: Host) -> int:
    (pid,) = set(host.pids("vggexp.train")) - set(host.pids(AGENT))
    return pid


def ended(host: Host) -> bool:
    return not host.pids("vggexp.train")


def more_epochs(host: Host, than: int) -> bool:
    return host.log.count("\nepoch ") > than


def completed(folder: Path) -> bool:
    return bool(manifest.load(folder, "")["status"] == "completed")


def until(done: Callable[[], Any], hosts: list[Host], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "\n".join(host.log for host in hosts)
        time.sleep(0.05)


def finished(agents: list[Agent], hosts: list[Host]) -> None:
    until(lambda: all(agent.poll() is not None for agent in agents), hosts)
    assert [agent.returncode for agent in agents] == [0] * len(agents), "\n".join(host.log for host in hosts)


def begin(hosts: list[Host], folder: Path, draw: random.Random, *args: str, **options: Any) -> list[Agent]:
    """Starts the run, and waits until it trains and has saved at least once."""
    agents = [torchrun(host, *args, **options) for host in hosts]
    trains(hosts, folder, draw)
    return agents


def trains(hosts: list[Host], folder: Path, draw: random.Random) -> None:
    until(layout.checkpoint(folder, layout.LAST).exists, hosts)
    epochs = draw.randrange(LONG // 2)
    until(partial(more_epochs, hosts[0], epochs - 1), hosts)
    time.sleep(draw.uniform(0, 0.1))


def again(hosts: list[Host], way: str) -> None:
    """What a user does where nothing starts the run again: the same command, on every host."""
    for host in hosts:
        host.signal()
    finished([torchrun(host, way) for host in hosts], hosts)


def lost(host: Host, other: Host, seconds: float = TIMEOUT + 20) -> None:
    """Waits for the one line in which a process says that another host is lost, and by which command to go on."""
    until(lambda: "vggexp: trainer" in host.log, [host, other], seconds)
    (line,) = [line for line in host.log.splitlines() if line.startswith("vggexp: trainer")]
    assert f"lost the process on host {other.name};" in line
    assert "here by: torchrun --nnodes=2" in line
    assert all(word in line for word in START)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, _folders: None) -> dict[str, Any]:
    """The outcome of the same run on two processes of one host."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = vggexp("train", *START, "trainer.devices=2", f"hydra.run.dir={RUN}", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return compare.outcome(cwd / RUN)


def same(folder: Path, expected: dict[str, Any], segments: int = 1) -> None:
    found = compare.differences(expected, compare.outcome(folder))
    assert not found, found[:5]
    assert len(manifest.load(folder, "").get("segments", [])) == segments


def test_a_dead_worker_costs_one_restart(
    tally: Callable[[str], Tally],
    hosts: Hosts,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    count: Callable[[int, int], int],
) -> None:
    """In some trials the survivor is stopped before, which makes sure that the hosts return one by one.

    In every third, each host has a disk of its own, and the second one receives the checkpoint from the first.
    """
    draw = random.Random(1)
    for number in range(count(20, 1)):
        way = WAYS[number // 4 % 2]  # static in the sample
        deaths = tally(f"hosts: worker killed, {way}")
        with deaths.trial(f"worker {number}"):
            own = number % 3 == 0
            disk = tmp_path / str(number)
            disk.mkdir()
            (tmp_path / f"{number}-hosts").mkdir()
            pair = hosts(folder=tmp_path / f"{number}-hosts" if own else disk, disks=disk if own else None)
            folder = (tmp_path / f"{number}-hosts" / "a" if own else disk) / RUN
            agents = begin(pair, folder, draw, way)
            killed, survivor = (worker(pair[(number + n + 1) % 2]) for n in range(2))
            if way == "c10d" and number % 4 < 2:  # where a host that was left tells the other one to start again
                os.kill(survivor, signal.SIGSTOP)
            os.kill(killed, signal.SIGKILL)
            finished(agents, pair)
            same(folder, undisturbed)
            assert ("received from host a, which keeps the run's folder" in pair[1].log) == own
            assert f"epoch {LONG}/{LONG}" in pair[0].log
    for way in WAYS[: count(2, 1)]:
        tally(f"hosts: worker killed, {way}").check()


def typed(host: Host, way: str) -> Agent:
    """Types a command of the documentation on a host, with the arguments of the tests."""
    texts = [text for text in DOCS.read_text().split("```") if text.startswith("sh\n") and "torchrun" in text]
    (text,) = [text.removeprefix("sh\n") for text in texts if ("c10d" in text) == (way == "c10d")]
    text = (
        text.replace("--max-restarts=3", "--max-restarts=1")
        .replace("--nnodes=1:2", "--nnodes=2")
        .replace("NAME", "run")
    )
    text = text.replace("trainer=ddp trainer.accelerator=cpu", shlex.join(START)).replace(
        "--node-rank=0", f"--node-rank={'ab'.index(host.name)}"
    )
    return host.start("sh", "-c", f'torchrun() {{ {sys.executable} -m {AGENT} "$@"; }}\n{text}')


BEGUN = ("cable", "clocks apart", "as typed")
OFTEN = ("host b", "host a", "cable for good", "cable")
KINDS = (*OFTEN, "agent of b", "agent of a", "notice", "clocks apart", "as typed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_run_outlives(
    way: str,
    kind: str,
    tally: Callable[[str], Tally],
    hosts: Hosts,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    count: Callable[[int, int], int],
    request: pytest.FixtureRequest,
) -> None:
    if not request.config.getoption("--full"):
        pytest.skip("a trial of make faults")
    if kind == "clocks apart" and way == "c10d":
        pytest.skip("torchrun compares clocks there")
    if kind == "clocks apart" and shutil.which("faketime") is None:
        pytest.skip("clocks that differ need faketime (on Debian: apt-get install faketime)")
    trials, draw = tally(f"hosts: {kind}, {way}"), random.Random(2)
    times = 1 if kind not in OFTEN else 3 if way == "static" else 2
    for number in range(count(times, 1)):
        with trials.trial(f"{kind} {number}"):
            disk = tmp_path / str(number)
            disk.mkdir()
            folder, pair = disk / RUN, hosts(folder=disk)
            a, b = pair
            agents = begin(pair, folder, draw, way) if kind not in BEGUN else []
            segments = 1
            match kind:
                case "agent of b":  # its worker goes on to the end
                    b.signal(text=AGENT)
                    until(partial(completed, folder), pair)
                    a.signal()  # else torchrun would wait five minutes for the other
                    segments = 0
                case "agent of a" if way == "static":  # no agent asks the other one anything before the end
                    a.signal(text=AGENT)
                    finished(agents[1:], pair)
                    until(partial(ended, a), pair)
                    segments = 0
                case "agent of a":  # which holds torchrun's store: the other agent stops its worker, and all save
                    a.signal(text=AGENT)
                    agents[1].wait(PATIENCE)
                    until(partial(ended, a), pair)
                    again(pair, way)
                case "host b":
                    b.signal()
                    lost(a, b)
                    finished([agents[0], torchrun(b, way)], pair)
                case "host a":
                    a.signal()
                    lost(b, a)
                    again(pair, way)
                case "notice":  # of a cloud that takes its machine back
                    agents[1].send_signal(signal.SIGTERM)
                    agents[1].wait(PATIENCE)
                    finished([agents[0], torchrun(b, way)], pair)
                case "cable for good":
                    b.cut()
                    lost(a, b)
                    lost(b, a)
                    b.cut(False)
                    finished(agents, pair) if way == "static" else again(pair, way)
                case "cable":  # shorter than trainer.timeout: nothing ends
                    agents = begin(pair, folder, draw, way, "trainer.timeout=60")
                    b.cut()
                    time.sleep(30)
                    b.cut(False)
                    finished(agents, pair)
                    segments = 0
                case "clocks apart":
                    agents = [torchrun(host, way, clock=clock) for host, clock in zip(pair, ("", "+5h"), strict=True)]
                    trains(pair, folder, draw)
                    os.kill(worker(b), signal.SIGKILL)
                    finished(agents, pair)
                case "as typed":
                    agents = [typed(host, way) for host in pair]
                    trains(pair, folder, draw)
                    os.kill(worker(b), signal.SIGKILL)
                    finished(agents, pair)
            same(folder, undisturbed, segments)
    trials.check()


def test_fewer_hosts_go_on_and_one_that_returns_joins(
    tally: Callable[[str], Tally],
    hosts: Hosts,
    tmp_path: Path,
    count: Callable[[int, int], int],
    request: pytest.FixtureRequest,
) -> None:
    """Without dropout, the numbers are those of two processes up to rounding.

    Training enlarges a rounding, at this rate to less than one part in 10,000 in 60 epochs; a step that is lost or
    taken twice moves the last losses by a hundred.
    """
    if not request.config.getoption("--full"):
        pytest.skip("a trial of make faults")
    args = ["model.dropout=0", "optimizer=sgd", "optimizer.lr=0.0002", "scheduler=none", "trainer.max_epochs=60"]
    done = vggexp("train", *START, *args, "trainer.devices=2", f"hydra.run.dir={RUN}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = compare.outcome(tmp_path / RUN)
    trials, draw = tally("hosts: elastic"), random.Random(3)
    for number in range(count(5, 1)):
        with trials.trial(f"elastic {number}"):
            disk = tmp_path / str(number)
            disk.mkdir()
            folder, (a, b) = disk / RUN, hosts(folder=disk)
            agents = begin([a, b], folder, draw, "c10d", *args, nodes="1:2")
            b.signal()
            lines = a.log.count("\nepoch ")
            until(partial(more_epochs, a, lines + 2), [a, b])
            finished([agents[0], torchrun(b, "c10d", *args, nodes="1:2")], [a, b])
            assert len(manifest.load(folder, "")["segments"]) == 2  # with fewer, and with more
            found = compare.outcome(folder)
            assert found["result.json"]["steps"] == expected["result.json"]["steps"]
            for key in ("train/loss", "val/loss"):
                losses = [[float(row[key]) for row in r["metrics.csv"] if key in row] for r in (found, expected)]
                assert losses[0] == pytest.approx(losses[1], rel=5e-4)
    trials.check()
