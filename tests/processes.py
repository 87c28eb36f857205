"""Runs `vggexp` as a user would, in processes that a warm server forks: see `server.py`."""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PATIENCE = 600
"""Seconds after which what a test waits for counts as hung: no test measures how fast this machine is."""
THREADS = {"OMP_NUM_THREADS": "1"}
"""Tests run on one thread each, several beside each other; all that they compare is then summed in the same order."""


class Process:
    """A child of the server, with the methods of subprocess.Popen that tests need."""

    def __init__(self, server: "Server", pid: int, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.server, self.pid, self.folder = server, pid, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with self.server.changed:
            self.returncode = self.server.codes.get(self.pid)
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        with self.server.changed:
            if not self.server.changed.wait_for(lambda: self.pid in self.server.codes, timeout):
                raise subprocess.TimeoutExpired(f"vggexp, process {self.pid}", timeout)
        self.returncode = self.server.codes[self.pid]
        return self.returncode

    @property
    def output(self) -> str:
        """What it has written to standard output so far."""
        return Path(self.folder.name, "1").read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        """What it has written to standard error so far."""
        return Path(self.folder.name, "2").read_text(encoding="utf-8")

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        self.wait(timeout)
        return self.output, self.errors

    def wait_for_output(self, text: str) -> None:
        end = time.monotonic() + PATIENCE
        while text not in self.output:
            assert time.monotonic() < end, f"no {text!r} in {self.output}{self.errors}"
            assert self.poll() is None, self.output + self.errors
            time.sleep(0.02)

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """A process that forks others, as many at once as it is asked for."""

    def __init__(self) -> None:
        paths = os.pathsep.join(map(str, (TESTS, TESTS / "faults")))
        env = os.environ | THREADS | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, TESTS / "server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.codes: dict[int, int] = {}
        self.started: list[int] = []
        self.changed = threading.Condition()
        self.orders = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        atexit.register(self.process.kill)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            news = json.loads(line)
            with self.changed:
                if "started" in news:
                    self.codes.pop(news["started"], None)  # of an earlier process with the same id
                    self.started.append(news["started"])
                else:
                    self.codes[news["ended"]] = news["code"]
                self.changed.notify_all()

    def start(
        self,
        *args: str,
        cwd: Path | None,
        env: dict[str, str],
        sabotage: Sequence[tuple[str, int]] = (),
        log: Path | None = None,
    ) -> Process:
        """Starts `python -m vggexp ARGS`, whose output goes into a file where one is named."""
        folder: Any = tempfile.TemporaryDirectory(prefix="vggexp-test-")
        outputs = [log or Path(folder.name, name) for name in "12"]
        for path in outputs:
            path.touch()
        files = [os.devnull, *map(str, outputs)]
        order = {"argv": args, "cwd": str(cwd or Path.cwd()), "env": env, "files": files, "sabotage": list(sabotage)}
        assert self.process.stdin is not None
        with self.orders:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            with self.changed:
                assert self.changed.wait_for(lambda: self.started, PATIENCE), "the server has not answered"
                return Process(self, self.started.pop(), folder)


_servers: list[Server] = []


def server() -> Server:
    """The server of this process, started when it is first needed."""
    if not _servers:
        _servers.append(Server())
    return _servers[0]


def environment(**more: str | None) -> dict[str, str]:
    """The environment of a command: this process's, with the tests' modules on the path, and one thread."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [more.pop("PYTHONPATH", "")])])
    return {name: value for name, value in (os.environ | {"PYTHONPATH": paths} | more).items() if value is not None}


def vggexp(*args: str, cwd: Path | None = None, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Runs `vggexp ARGS` as a user would."""
    process = server().start(*args, cwd=cwd, env=environment(**env))
    try:
        output, errors = process.communicate()
    finally:
        process.kill()
    return subprocess.CompletedProcess(args, process.wait(), output, errors)


def imports(*args: str, cwd: Path, **env: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Runs `python -m vggexp.train ARGS` in an interpreter of its own; also returns the modules that it has loaded."""
    command = [sys.executable, "-X", "importtime", "-m", "vggexp.train", *args]
    done = subprocess.run(command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=PATIENCE)
    return done, {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}


@contextmanager
def started(cwd: Path, *args: str, command: str = "train", **env: str | None) -> Iterator[Process]:
    """Runs `vggexp train ARGS` for as long as the block runs."""
    process = server().start(command, *args, cwd=cwd, env=environment(**env))
    try:
        yield process
    finally:
        process.kill()
        process.wait()
