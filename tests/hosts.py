"""Hosts that are really apart: network namespaces, each with its own address, name and files, joined by a switch.

Nothing is made outside these namespaces but the entries of `ip netns`, whose names hold the id of the test's process.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from processes import PATIENCE, environment

PREFIX = "vggexp-test-"
_numbers = itertools.count()


def _ip(*args: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"ip {' '.join(args)}: {done.stderr}"
    return done.stdout


@dataclass
class Host:
    """One host. What runs on it sees only its own network, its own name, and `own` in place of `shared` folders."""

    name: str
    address: str
    namespace: str
    switch: str
    cwd: Path
    own: dict[Path, Path] = field(default_factory=dict)  # folders that this host sees elsewhere
    logs: list[Path] = field(default_factory=list)

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Starts a command in `cwd`; what it prints goes into a file of its own, see `log`."""
        mounts = [
            f"mount --bind {here} {there}" for there, here in {Path("/etc/hosts"): self._names, **self.own}.items()
        ]
        setup = " && ".join([*mounts, f"hostname {self.name}", f"cd {self.cwd}", 'exec "$@"'])
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", setup, "sh"]
        self.logs.append(self._names.with_name(f"{self.name}-{len(self.logs)}.log"))
        with open(self.logs[-1], "wb") as log:
            return subprocess.Popen([*enter, *command], stdout=log, stderr=log, env=environment(**env))

    @property
    def _names(self) -> Path:
        return self.cwd / ".hosts" if self.cwd not in self.own else self.own[self.cwd] / ".hosts"

    @property
    def log(self) -> str:
        """What the commands of this host have printed so far."""
        return "\n".join(f"--- {path.stem}\n{path.read_text(errors='replace')}" for path in self.logs)

    def pids(self, text: str = "") -> list[int]:
        """The processes of the host whose command line contains a text."""
        found = []
        for pid in map(int, _ip("netns", "pids", self.namespace, check=False).split()):
            with contextlib.suppress(OSError):
                if text in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                    found.append(pid)
        return found

    def signal(self, signum: int = signal.SIGKILL, text: str = "") -> None:
        """Signals the processes of the host, or those whose command line contains a text."""
        for pid in self.pids(text):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def cut(self, cut: bool = True) -> None:
        """Pulls the host's cable, or puts it in again: the host itself cannot tell it from a silent network."""
        _ip("-n", self.switch, "link", "set", f"to-{self.name}", "down" if cut else "up")


@contextmanager
def network(folder: Path, count: int = 2, disks: Path | None = None) -> Iterator[list[Host]]:
    """Makes hosts `a`, `b`, ... with a common disk; with `disks`, each has a disk of its own at that path."""
    for name in _ip("netns", "list").split():  # left by tests that were killed
        if name.startswith(PREFIX) and not Path("/proc", name.removeprefix(PREFIX).partition("-")[0]).exists():
            _remove(name)
    own = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    switch = f"{own}-switch"
    names = "".join(f"10.77.0.{n + 1} {'abcdefgh'[n]}\n" for n in range(count))
    with ExitStack() as stack:
        _ip("netns", "add", switch)
        stack.callback(_remove, switch)
        for command in ("link add switch type bridge", "link set switch up"):
            _ip("-n", switch, *command.split())
        hosts = []
        for n in range(count):
            name = "abcdefgh"[n]
            namespace = f"{own}-{name}"
            _ip("netns", "add", namespace)
            stack.callback(_remove, namespace)
            _ip("-n", switch, *f"link add to-{name} type veth peer name eth0 netns {namespace}".split())
            _ip("-n", switch, *f"link set to-{name} master switch up".split())
            for command in (f"addr add 10.77.0.{n + 1}/24 dev eth0", "link set eth0 up", "link set lo up"):
                _ip("-n", namespace, *command.split())
            host = Host(name, f"10.77.0.{n + 1}", namespace, switch, disks or folder)
            if disks is not None:
                disks.mkdir(exist_ok=True)
                host.own[disks] = folder / name
                host.own[disks].mkdir()
            host._names.write_text(f"127.0.0.1 localhost\n{names}")
            hosts.append(host)
        yield hosts


def _remove(namespace: str) -> None:
    """Kills all that runs in a namespace and removes it, with its cables."""
    end = time.monotonic() + PATIENCE
    while pids := _ip("netns", "pids", namespace, check=False).split():
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < end, f"{namespace}: processes {pids} cannot be killed"
        time.sleep(0.05)
    _ip("netns", "delete", namespace)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., list[Host]]]:
    """Makes hosts; needs Linux, root and `ip` (on Debian: apt-get install iproute2), else the test is skipped."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need Linux, root and iproute2")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this container does not allow network namespaces")
    with ExitStack() as stack:
        yield lambda folder=tmp_path, **options: stack.enter_context(network(folder, **options))
