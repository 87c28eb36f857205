"""The Python API: the same checks, folders and numbers as the command line, from wherever it is called."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggexp
from conftest import QUICK, TINY, Run, refusal
from processes import TESTS
from vggexp import api
from vggexp.report.figures import Figure

SHORT = (*TINY, "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VGGEXP_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(TESTS), *sys.path])
    return tmp_path


def test_importing_loads_nothing_heavy_and_functions_stay_functions() -> None:
    code = (
        "import sys, vggexp; print([name for name in ('torch', 'hydra', 'pydantic', 'numpy') if name in sys.modules]); "
        "import vggexp.runs.read as read, vggexp.train; "
        "print(read.__name__, vggexp.runs.__module__, vggexp.train.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "vggexp.runs.read vggexp.api vggexp.api"]
    assert all(getattr(vggexp, name) is not None for name in vggexp.__all__)


@pytest.mark.slow
def test_a_run_is_that_of_the_command_line(outputs: Path, capsys: pytest.CaptureFixture[str], trained: Run) -> None:
    run = vggexp.train(*QUICK, f"hydra.run.dir={outputs}/run")
    assert run.folder == outputs / "run"
    assert run.status == "completed"
    assert run.result["test/acc"] == trained.result["test/acc"]
    assert run.result["val/loss"] == trained.result["val/loss"]
    assert "run folder" in capsys.readouterr().out
    assert list(run.metrics["epoch"]) == [1, 2]
    assert run.metrics["val/acc"].max() == run.result["val/acc"]
    assert isinstance(run.plot(), Figure)
    again = vggexp.train(f"resume={run.folder}", "allowed_packages=[synthetic]")
    assert again.folder == run.folder, "there was nothing left to do"
    assert [found.folder for found in vggexp.runs(where="status=completed")] == [run.folder]


@pytest.mark.slow
def test_mistakes_raise_the_commands_text(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(lambda: vggexp.train("model.ration=4"))
    assert text.startswith("model.ration=4: unknown key; model has ")
    assert "model.ration" not in capsys.readouterr().err, "it would be said twice"
    assert "use vggexp.sweep" in refusal(lambda: vggexp.train("-m", "seed=0,1"))
    assert "data.resize=5" in refusal(lambda: vggexp.sweep(*SHORT, "data.resize=32,5"))
    assert not list(outputs.iterdir())
    assert "nowhere" in refusal(lambda: vggexp.train(*SHORT, "model.weights=nowhere"))
    assert "trained nothing" in refusal(lambda: vggexp.train("--cfg", "job"))
    assert "no such folder" in refusal(lambda: vggexp.runs(outputs / "none"))


@pytest.mark.slow
def test_a_sweep_is_compared(outputs: Path) -> None:
    runs = vggexp.sweep(*SHORT, "data.resize=32,40", "seed=0,1")
    assert [run.status for run in runs] == ["completed"] * 4
    frame = runs.to_frame()
    assert frame["data.resize"].tolist() == [32, 32, 40, 40]
    assert frame["test/acc"].notna().all()
    found = vggexp.compare(runs, by="data.resize")
    (table,) = found.tables
    assert sorted(table["data.resize"]) == [32, 40]
    assert table["seeds"].tolist() == [2, 2]
    mean = frame.groupby("data.resize")["test/acc"].mean()
    assert table.set_index("data.resize")["test/acc"].sort_index().to_numpy() == pytest.approx(mean.to_numpy())
    assert "curves" in found.figures
    assert "<table>" in found._repr_html_()
    assert found.write(outputs / "report").read_text(encoding="utf-8").startswith("<!")
    assert "by=data.resizes" in refusal(lambda: vggexp.compare(runs, by="data.resizes"))


@pytest.mark.slow
def test_a_thread_and_a_running_event_loop_may_train_at_the_same_time(outputs: Path) -> None:
    async def inside() -> api.Run:
        return vggexp.train(*SHORT, "seed=1")

    with ThreadPoolExecutor() as pool:  # which has a thread without a loop; one may run in this thread
        started = [pool.submit(vggexp.train, *SHORT, "seed=0"), pool.submit(asyncio.run, inside())]
        first, second = (run.result() for run in started)
    assert {first.config["seed"], second.config["seed"]} == {0, 1}
    assert first.folder != second.folder


@pytest.mark.slow
def test_ctrl_c_saves_the_run_and_returns_it(outputs: Path) -> None:
    def press() -> None:
        while not any("train/loss" in path.read_text("utf-8") for path in outputs.glob("*/metrics.csv")):
            stop.wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    stop = threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        run = vggexp.train(*TINY, "trainer.accelerator=cpu", "trainer.max_epochs=10000")
    finally:
        stop.set()
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert run.status == "interrupted"
    assert run.reason == "Ctrl-C"
    assert (run.folder / "checkpoints" / "last.ckpt").exists()


def test_a_network_names_arrays_and_files(trained: Run, tmp_path: Path) -> None:
    network = vggexp.load(trained.folder, "allowed_packages=[synthetic]")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    for n, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    found = network.predict(pixels)
    assert found.probabilities.shape == (3, 10)
    assert found.classes == [network.classes[n] for n in found.probabilities.argmax(1).tolist()]
    for images in (torch.from_numpy(pixels).unsqueeze(1), [tmp_path / f"{n}.png" for n in range(3)], tmp_path):
        again = network.predict(images)
        assert torch.equal(again.probabilities, found.probabilities)
    assert type(network.module).__module__.startswith("vggexp.models")
    assert network.config["model"]["ratio"] == 16
    with torch.inference_mode():
        logits = network.module(network.preparation(torch.from_numpy(pixels).unsqueeze(1)))
    assert torch.equal(logits.softmax(1), found.probabilities)
    assert torch.equal(network.predict(pixels[::-1]).probabilities.flip(0), found.probabilities)
    assert "images: are a int" in refusal(lambda: network.predict(3))  # type: ignore[arg-type]
    assert "seed=5: belongs to what was trained" in refusal(lambda: vggexp.load(trained.folder, "seed=5"))
    assert "are (3, 28, 28) float64" in refusal(lambda: network.predict(pixels / 255))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in refusal(lambda: network.predict(tmp_path / "broken.png"))


def test_frames_fall_back_to_polars_and_else_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"epoch": 1.0, "val/acc": 0.5}]
    assert api.frame(rows)["val/acc"].tolist() == [0.5]
    monkeypatch.setattr(api, "find_spec", lambda name: None)
    assert "make setup EXTRAS=notebook" in refusal(lambda: api.frame(rows))
