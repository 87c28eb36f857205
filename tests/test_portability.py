"""vggexp on other systems than Linux: without what these lack, and with paths as Windows writes them."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from compare import differences, outcome
from hypothesis import given
from hypothesis import strategies as st

from conftest import QUICK, TESTS, Run, configure
from processes import PATIENCE, environment
from vggexp.commands import runs
from vggexp.config import compose, messages
from vggexp.data import datamodule
from vggexp.jobs import launcher
from vggexp.report import names, page
from vggexp.runs import manifest, read
from vggexp.system import files, memory, signals, terminal

Command = subprocess.Popen[str]


def begin(*args: str, cwd: Path, **env: str) -> Command:
    """Starts `vggexp ARGS` without what Windows lacks."""
    command, env = [sys.executable, "-m", "vggexp", *args], environment(PYTHONPATH=str(TESTS / "elsewhere"), **env)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=cwd, env=env, **pipes)


def end(command: Command, code: int = 0) -> str:
    """What it has printed when it ends."""
    out, _ = command.communicate(timeout=PATIENCE)
    assert command.returncode == code, out
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep of two jobs has been trained, and a run like the first of them has been stopped and resumed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    often = ["checkpoint.every_n_seconds=0.001", "hydra.run.dir=outputs/stopped"]
    run = begin("train", *QUICK, *often, cwd=folder, ELSEWHERE_STOP="3")
    sweep = begin("train", "-m", *QUICK, "seed=0,1", "hydra.sweep.dir=outputs/sweep", cwd=folder)
    assert "stopped by Ctrl-C; to continue: vggexp train resume=outputs" in end(run, code=130)
    assert read.read(folder / "outputs" / "stopped").status == "interrupted"
    run = begin("train", "resume=outputs/stopped", "allowed_packages=[synthetic]", cwd=folder)
    assert "2 jobs in outputs" in end(sweep)
    end(run)
    return folder


@pytest.mark.linux
@pytest.mark.slow
def test_each_job_of_a_sweep_writes_into_its_folder(folder: Path) -> None:
    for run in read.find([folder / "outputs" / "sweep"]):
        assert run.status == "completed"
        assert run.result["peak_memory_bytes"] > 2**26
        assert run.result["hardware"]["isa"] == []
        assert "epoch 2/2" in (run.folder / "output.log").read_text(encoding="utf-8")


@pytest.mark.linux
@pytest.mark.slow
def test_a_run_that_ctrl_c_has_stopped_ends_as_one_that_was_not_stopped(folder: Path) -> None:
    run = folder / "outputs" / "stopped"
    assert read.read(run).result["begins"]["batch"] > 0
    assert differences(outcome(run), outcome(folder / "outputs" / "sweep" / "0")) == []


@pytest.mark.linux
@pytest.mark.slow
def test_a_report_and_tensorboard_show_the_runs(folder: Path) -> None:
    report = begin("report", "outputs/sweep", cwd=folder)
    board = begin("tensorboard", "outputs/sweep", "port=0", cwd=folder)
    try:
        assert board.stdout is not None
        link = next(line.split()[1] for line in board.stdout if line.startswith("TensorBoard: "))
        until, shown = time.monotonic() + PATIENCE, set[str]()
        while not shown >= {"seed=0", "seed=1"} and time.monotonic() < until:
            time.sleep(0.2)
            with urllib.request.urlopen(link.replace("#custom_scalars", "data/runs")) as answer:
                shown = set(json.load(answer))
        assert shown >= {"seed=0", "seed=1"}  # and the columns of the table
        board.send_signal(signal.SIGINT)
        end(board, code=130)
    finally:
        board.kill()
    end(report)
    assert "report/report.html" in str([*(folder / "outputs" / "sweep").glob("report/*")])


WINDOWS_PATHS = (
    r"C:\runs\a", r"C:\new\test run", "C:\\runs\\", r"\\server\share\runs", r"D:\it's\x", r"C:\a,b\c=d", r"C:\ü{x}"
)  # fmt: skip


@pytest.mark.parametrize("path", WINDOWS_PATHS)
def test_a_windows_path_is_understood_as_it_is_printed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for written in (messages.quote("data.root", path), messages.argument("data.root", path)):
        assert compose.values([written]) == {"data": {"root": path}}
    assert compose.config(messages.quote("data.root", path)).data.root == path
    monkeypatch.setattr(terminal, "WINDOWS", True)
    assert terminal.quoted("resume=" + path) == (f'"resume={path}"' if " " in path else f"resume={path}")


def test_a_drive_and_backslashes_need_no_quotes_of_their_own() -> None:
    assert compose.config(r"data.root=C:\data\new", r"data.cache_dir=D:\cache").data.root == r"C:\data\new"
    with compose.session(compose.parse(["-m", r"hydra.sweep.dir=C:\runs\a", r"data.root=C:\a,D:\b"])) as session:
        assert session.raw.hydra.sweep.dir == r"C:\runs\a"
        assert [job.cfg.data.root for job in session.grid()] == [r"C:\a", r"D:\b"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$"), min_size=1))
def test_any_text_is_quoted_so_that_it_is_understood(text: str) -> None:
    assert compose.values([messages.quote("key", text)]) == {"key": text}


@pytest.mark.linux
def test_a_condition_may_name_a_windows_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.split(r"a=C:\new b='c d'") == ["a=C:new", "b=c d"]
    monkeypatch.setattr(terminal, "WINDOWS", True)
    assert terminal.split(r"a=C:\new b='c d'") == [r"a=C:\new", "b=c d"]


@pytest.mark.linux
def test_on_windows_a_process_stops_itself_and_leaves_others_to_their_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "WINDOWS", True)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("that would end a process at once"))
    signals.ask_to_stop(os.getpid())
    with signals.Signals() as heeded:
        heeded.armed = True
        threading.Thread(target=signals.stop).start()
        until = time.monotonic() + PATIENCE
        while not heeded.received and time.monotonic() < until:
            time.sleep(0.01)
    assert heeded.received == signal.SIGTERM


@pytest.mark.linux
def test_a_console_does_not_stop_workers_where_signals_cannot_be_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "worker_init_fn" not in datamodule._context()
    monkeypatch.setattr(datamodule, "CAN_BLOCK", False)
    before = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    try:
        datamodule._context()["worker_init_fn"](0)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.linux
def test_jobs_are_forked_on_linux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = []
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        methods.append(launcher.Processes("auto").method)
    assert methods == ["forkserver", "spawn", "spawn"]


@pytest.mark.linux
def test_the_peak_of_memory_where_linux_does_not_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(self)

    here = memory.peak()
    monkeypatch.setattr(Path, "read_text", missing)
    assert memory.peak() == pytest.approx(here, rel=0.5)
    used = type("Used", (), {"peak_wset": 7})
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: used)
    monkeypatch.setattr(sys, "platform", "win32")
    assert memory.peak() == 7


@pytest.mark.linux
def test_a_file_that_another_process_reads_is_replaced_a_little_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = []

    def replace(source: Path, target: Path, real: Any = os.replace) -> None:
        if len(refused) < 3:
            refused.append(source)
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):  # on Linux that is the folder's, and does not pass
        files.write_text(tmp_path / "a", "1")
    monkeypatch.setattr(files, "WINDOWS", True)
    files.write_text(tmp_path / "a", "1\n")
    assert (tmp_path / "a").read_bytes() == b"1\n"
    assert len(refused) == 3


@pytest.mark.linux
def test_nothing_is_read_through_a_link_where_the_system_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "link").symlink_to("a")
    monkeypatch.delattr(os, "O_NOFOLLOW")
    assert files.content(tmp_path / "a") == b"1"
    with pytest.raises(OSError, match="link"):
        files.content(tmp_path / "link")


@pytest.mark.linux
def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")  # where a mistake harms no machine
    for name in ("pipe", "null"):
        with pytest.raises(OSError, match="a pipe or a device, not a file"):
            files.write_text(tmp_path / name, "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]
    assert (tmp_path / "null").is_char_device()


@pytest.mark.linux
def test_a_console_of_windows_takes_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "WINDOWS", True)
    master, slave = os.openpty()
    stream = terminal.steady(slave, "ascii", line_buffering=True)
    print("→", file=stream)
    assert os.read(master, 9).decode().strip() == "→"
    assert type(stream.buffer.raw) is io.FileIO  # as `open` makes it, which takes another class for a console there
    stream.close()
    os.close(master)


def test_where_no_links_can_be_made_tensorboard_gets_copies_that_grow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Run
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    run, shown = tmp_path / "outputs" / "run", tmp_path / "shown"
    shutil.copytree(trained.folder, run)
    monkeypatch.setattr(os, "symlink", refuse)
    names.link([run], shown)
    events = max(run.glob("*tfevents*"))
    with open(events, "ab") as file:
        file.write(b"more")
    (run / "metrics.csv").write_text("shorter")
    names.link([run], shown)
    names.link([run], shown)
    assert (shown / "run" / events.name).read_bytes() == events.read_bytes()
    assert (shown / "run" / "metrics.csv").read_text() == "shorter"
    assert not (shown / "run" / "checkpoints").exists()


@pytest.mark.linux
def test_a_page_finds_runs_on_another_drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    assert page._link(tmp_path / "a", tmp_path / "b") == "../a"
    monkeypatch.setattr(os.path, "relpath", refuse)
    assert page._link(tmp_path / "a b", tmp_path / "b") == f"file://{tmp_path}/a%20b"


def test_a_run_is_removed_where_its_lock_cannot_be_while_it_is_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = []

    def rmtree(folder: Path, ignore_errors: bool = False, real: Any = shutil.rmtree) -> None:
        if manifest.is_locked(folder):
            held.append(folder)
            assert ignore_errors
            (folder / "result.json").unlink()
        else:
            real(folder)

    monkeypatch.setenv("VGGEXP_OUTPUTS", str(tmp_path))
    monkeypatch.setattr("vggexp.system.paths.WINDOWS", True)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    (tmp_path / "a").mkdir()
    manifest.write(tmp_path / "a", manifest.collect(configure()) | {"status": "failed"})
    assert runs.main(["remove", "where=status=failed", "confirm=true"]) == 0
    assert held
    assert not (tmp_path / "a").exists()
