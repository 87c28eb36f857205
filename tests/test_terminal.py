"""Terminals as people have them: few characters, closed streams, readers that leave, narrow, gone."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import QUICK, TESTS, Run, started, vggexp
from processes import PATIENCE, environment, server
from vggexp import commands
from vggexp.system import paths, terminal

EVERY = {
    "runs": ["runs", "{run}"],
    "runs as json": ["runs", "{run}", "json=true"],
    "report": ["report", "{run}", "output={out}"],
    "summary": ["summary", "model=vgg11", "model.ratio=16", "data.resize=32"],
    "evaluate": ["evaluate", "run={run}", "output={out}", "allowed_packages=[synthetic]"],
    "predict": ["predict", "run={run}", "input={out}/some.idx", "format=csv", "allowed_packages=[synthetic]"],
    "export": ["export", "run={run}", "output={out}", "formats=torch", "allowed_packages=[synthetic]"],
    "data": ["data", *QUICK[:3]],
    "help": ["--help"],
    "help of train": ["train", "--help"],
    "info of train": ["train", "--info"],
    "config of train": ["train", "--cfg=job"],
}


def prepared(name: str, run: Run, folder: Path) -> list[str]:
    import synthetic

    (folder / "some.idx").write_bytes(next(iter(synthetic.FILES.values())))
    return [part.format(run=run.folder, out=folder) for part in EVERY[name]]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_command_whose_reader_leaves_ends_quietly(name: str, trained: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []

    def leave_early() -> None:
        with open(tmp_path / "pipe") as pipe:
            read.append(pipe.readline())

    reader = threading.Thread(target=leave_early)
    reader.start()
    process = server().start(*prepared(name, trained, tmp_path), cwd=tmp_path, env=environment(), log=tmp_path / "pipe")
    reader.join(60)
    assert process.wait() in (0, 1, 141)
    assert "Traceback" not in read[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_command_on_a_poor_terminal(name: str, trained: Run, tmp_path: Path) -> None:
    words = prepared(name, trained, tmp_path)
    poor: dict[str, str | None] = {"PYTHONIOENCODING": "ascii", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "40"}
    done = vggexp(*words, cwd=tmp_path, HOME=None, XDG_CACHE_HOME=None, TMPDIR="/nowhere", **poor)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runs", "report", "help of train"])
def test_a_disk_that_is_full_is_told_in_a_line(name: str, trained: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vggexp", *prepared(name, trained, tmp_path)]
    shell = ["bash", "-c", '"$@" > /dev/full', "bash", *command]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (1, "vggexp: standard output: No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_command_without_any_stream(name: str, trained: Run, tmp_path: Path) -> None:
    words = prepared(name, trained, tmp_path)
    log, closed = tmp_path / "log", [("closed_streams", 0)]
    process = server().start(*words, cwd=tmp_path, env=environment(), log=log, sabotage=closed)
    assert process.wait() == 0
    assert log.read_text() == ""


@pytest.mark.slow
def test_a_run_without_any_stream(tmp_path: Path) -> None:
    """In an interpreter of its own, as Python makes the streams when it starts."""
    env = os.environ | {"PYTHONPATH": str(TESTS)}
    words = ["train", *QUICK, "trainer.max_epochs=1", "hydra.run.dir=outputs/run"]
    shell = ["bash", "-c", '"$@" >&- 2>&- <&-', "bash", sys.executable, "-m", "vggexp", *words]
    assert subprocess.run(shell, cwd=tmp_path, env=env, check=False, timeout=PATIENCE).returncode == 0
    assert json.loads((tmp_path / "outputs" / "run" / "result.json").read_text())["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EVERY, "train"])
def test_a_command_without_a_temporary_folder(name: str, trained: Run, tmp_path: Path) -> None:
    """It works, or says in a line what it needs."""
    run = ["train", *QUICK, "trainer.max_epochs=1", "hydra.run.dir=outputs/run"]
    words = run if name == "train" else prepared(name, trained, tmp_path)
    log, absent = tmp_path / "log", [("no_temporary_folder", 0)]
    process = server().start(*words, cwd=tmp_path, env=environment(), log=log, sabotage=absent)
    code, text = process.wait(), log.read_text()
    assert "Traceback" not in text
    assert code == 0 or (code == 1 and text.splitlines()[-1].startswith("vggexp: TMPDIR: ")), text
    if name == "train":
        assert (tmp_path / "outputs" / "run" / "result.json").exists() == (code == 0), text


@pytest.mark.slow
def test_a_run_in_ascii(tmp_path: Path) -> None:
    done = vggexp("train", "-m", *QUICK, "trainer.max_epochs=1", "seed=0", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii()
    (log,) = tmp_path.rglob("output.log")
    assert "seed 0 -> outputs" in log.read_text()


@pytest.mark.slow
def test_a_run_whose_reader_leaves_trains_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    options = [*QUICK, "hydra.run.dir=outputs/run"]

    def leave_early() -> None:
        with open(tmp_path / "pipe") as pipe:
            pipe.read(1)

    reader = threading.Thread(target=leave_early)
    reader.start()
    process = server().start("train", *options, cwd=tmp_path, env=environment(), log=tmp_path / "pipe")
    reader.join(60)
    assert process.wait() == 0
    assert json.loads((tmp_path / "outputs" / "run" / "result.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    options = [*QUICK, "trainer.max_epochs=500", "hydra.run.dir='outputs/my run [/a]'"]
    with started(tmp_path, *options) as process:
        process.wait_for_output("epoch 2/")
        process.send_signal(signal.SIGHUP)
        assert process.wait() == 129
        again = "vggexp: stopped by SIGHUP; to continue: vggexp train 'resume=outputs/my run [/a]'\n"
        assert process.errors == again
    result = json.loads((tmp_path / "outputs" / "my run [/a]" / "result.json").read_text())
    assert (result["status"], result["reason"]) == ("interrupted", "SIGHUP")
    assert (tmp_path / "outputs" / "my run [/a]" / "checkpoints" / "last.ckpt").exists()


def test_characters_that_a_terminal_lacks_are_written_in_others() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252", errors="plain")
    stream.write("a → b ± c … 猫 \udce9")
    stream.flush()
    assert raw.getvalue() == b"a -> b \xb1 c \x85 \\u732b \\udce9"


def test_a_stream_goes_on_when_its_reader_has_left() -> None:
    reader, writer = os.pipe()
    with terminal.steady(writer, "utf-8") as stream:
        os.close(reader)
        for _ in range(3):
            stream.write("x" * 10**6)
            stream.flush()


def test_a_home_or_a_temporary_folder_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VGGEXP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert paths.cache() == Path("outputs", ".cache")

    def none(_: list[str]) -> int:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("vggexp.commands.runs.main", none)
    assert commands.main(["runs"]) == 1
    text = "vggexp: TMPDIR: No usable temporary directory found in ['/tmp']; set it to a folder that can be written\n"
    assert capsys.readouterr().err == text
