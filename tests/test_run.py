"""A run writes the right numbers everywhere, and the same ones each time."""

import csv
import json
import platform
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import synthetic
from conftest import QUICK, Run, configure, refusal, started, vggexp
from synthetic import TEST
from vggexp.config.instantiate import network
from vggexp.errors import UserError
from vggexp.inference.load import load
from vggexp.runs import manifest, read
from vggexp.system.signals import Interrupted, Signals
from vggexp.training.classifier import Classifier
from vggexp.training.run import run

SCORES = {"train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"}


def logged(folder: Path) -> dict[str, list[float]]:
    """All values of each column of metrics.csv, in order."""
    columns: dict[str, list[float]] = {}
    with open(folder / "metrics.csv") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    columns.setdefault(name, []).append(float(value))
    return columns


def test_a_run_learns_and_reports_it(trained: Run) -> None:
    result = trained.result
    assert result.keys() >= SCORES | {
        *("epochs", "best_epoch", "seconds", "images_per_second", "peak_memory_bytes", "parameters", "device"),
    }
    assert result["test/acc"] > 0.3
    assert result["epochs"] == 2
    assert 0 < result["seconds"] < 300
    net = network(trained.cfg.model.spec(), {"image_size": 32, "in_channels": 1, "num_classes": 10})
    assert result["parameters"] == sum(p.numel() for p in net.parameters())
    assert 2**27 < result["peak_memory_bytes"] < 2**34


def test_metrics_csv_agrees_with_the_result(trained: Run) -> None:
    columns = logged(trained.folder)
    assert columns.keys() >= SCORES | {"lr", "images_per_second", "train_seconds", "epoch", "step"}
    best = trained.result["best_epoch"] - 1
    for name in SCORES:
        values = columns[name]
        assert len(values) == (1 if name.startswith("test/") else 2)
        assert values[best if name.startswith("val/") else -1] == trained.result[name]
    assert set(columns["lr"]) == {0.002}
    (first, both), speeds = columns["train_seconds"], columns["images_per_second"]
    assert (both - first) * speeds[1] == pytest.approx(first * speeds[0], rel=1e-3)  # both epochs have as many images


@pytest.mark.parametrize("every", [1, 2])
def test_rows_within_an_epoch_tell_the_loss_since_the_row_before(train: Callable[..., Run], every: int) -> None:
    """An epoch has 300 images in 5 batches, the last of 44; its rows together give its loss."""
    done = train(f"trainer.log_every_n_steps={every}")
    rows = [row for row in read.rows(done.folder / "metrics.csv") if "train/loss_step" in row]
    steps = list(range(5)) if every == 1 else [0, 2, 4]
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(n, 5 * n + s) for n in (0, 1) for s in steps]
    assert all(row.keys() == {"epoch", "step", "lr", "train/loss_step"} for row in rows)
    images = [64] * 4 + [44] if every == 1 else [64, 128, 108]
    epochs = read.epochs(done.folder)
    assert [epoch.keys() & {"lr", "train/loss_step"} for epoch in epochs] == [set(), set()]
    for n, epoch in enumerate(epochs):
        losses = [float(row["train/loss_step"]) for row in rows[n * len(steps) : (n + 1) * len(steps)]]
        assert len(set(losses)) == len(losses)
        mean = sum(loss * count for loss, count in zip(losses, images, strict=True)) / 300
        assert mean == pytest.approx(epoch["train/loss"], rel=1e-6)


def test_rows_within_an_epoch_count_steps_not_batches(train: Callable[..., Run]) -> None:
    """Five batches are two steps of two, and one of one at the epoch's end."""
    done = train("trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=2")
    rows = [row for row in read.rows(done.folder / "metrics.csv") if "train/loss_step" in row]
    assert [int(row["step"]) for row in rows] == list(range(6))


def test_a_long_epoch_can_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been logged within the epoch is in the file when the next batch is drawn."""
    seen: list[int] = []
    original = Classifier.training_step

    def look(module: Classifier, *args: Any) -> dict[str, torch.Tensor]:
        seen.append(len(list(read.rows(tmp_path / "metrics.csv"))))
        return original(module, *args)

    monkeypatch.setattr(Classifier, "training_step", look)
    run(configure(*QUICK, "trainer.max_epochs=1", "trainer.log_every_n_steps=2"), tmp_path)
    assert seen == [0, 1, 1, 2, 2]


def test_tensorboard_shows_the_same_values_and_a_row_of_hparams(trained: Run) -> None:
    events = EventAccumulator(str(trained.folder)).Reload()
    columns = logged(trained.folder)
    for name in (*SCORES, "lr", "images_per_second"):
        assert [s.value for s in events.Scalars(name)] == pytest.approx(columns[name], rel=1e-6)
    assert "hp_metric" not in events.Tags()["scalars"]
    assert b"model.ratio" in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content


def score(checkpoint: Path, done: Run) -> tuple[float, float]:
    """Test accuracy and loss of a checkpoint, computed without Lightning."""
    module = load(str(checkpoint), {"allowed_packages": ["synthetic"]}).module
    data = synthetic.module(root=done.cfg.data.root, resize=32, batch_size=TEST, val_size=100)
    data.setup()
    images, labels = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    with torch.no_grad():
        logits = module(images)
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(logits, labels).item()


def test_checkpoints_load_safely_and_the_best_gives_the_stored_test_scores(trained: Run) -> None:
    assert {p.name for p in (trained.folder / "checkpoints").iterdir()} == {
        "best.ckpt", "last.ckpt", "previous.ckpt"
    }  # fmt: skip
    best = trained.folder / "checkpoints" / "best.ckpt"
    torch.load(best, weights_only=True)
    assert score(best, trained) == pytest.approx((trained.result["test/acc"], trained.result["test/loss"]), rel=1e-5)


def test_the_same_config_gives_the_same_bits(trained: Run, train: Callable[..., Run]) -> None:
    again, other = train(), train("seed=1")
    assert {name: again.result[name] for name in SCORES} == {name: trained.result[name] for name in SCORES}
    assert other.result["test/loss"] != trained.result["test/loss"]


def test_training_steps_do_not_leak_memory(train: Callable[..., Run]) -> None:
    """`torch.manual_seed` would record each call, with its stack, until a GPU is used."""
    before = len(torch.cuda._queued_calls)
    train()  # 10 steps
    assert len(torch.cuda._queued_calls) - before < 5


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [("none", "muon"), ("cosine", "adam"), ("onecycle", "muon"), ("triangular", "muon")],
)
def test_the_rates_that_are_logged_are_those_that_each_step_used(
    schedule: str, optimizer: str, train: Callable[..., Run]
) -> None:
    used: list[list[float]] = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: used.append([group["lr"] for group in o.param_groups]))
    options = [f"scheduler={schedule}", f"optimizer={optimizer}", "trainer.log_every_n_steps=1"]
    try:
        run = train(*options, "trainer.accumulate_grad_batches=2", "trainer.max_epochs=4", "optimizer.lr=0.02")
    finally:
        hook.remove()
    columns = logged(run.folder)
    names = ["lr", *(f"lr_{n}" for n in range(1, len(used[0])))]
    assert run.result["steps"] == len(used) > 6
    assert [list(rates) for rates in zip(*(columns[name] for name in names), strict=True)] == used
    ends = {"none": (1, 1), "cosine": (None, 0), "onecycle": (0.04, 1e-4), "triangular": (0.1, None)}[schedule]
    for rate, share in zip((columns["lr"][0], columns["lr"][-1]), ends, strict=True):
        assert share is None or rate == pytest.approx(0.02 * share, abs=1e-12)


def test_the_test_runs_on_the_best_epoch(train: Callable[..., Run]) -> None:
    """Once val/acc is 1, no later epoch is better, though its weights differ: the best epoch is not the last."""
    done = train("optimizer.lr=0.005", "trainer.max_epochs=7")
    values = logged(done.folder)["val/acc"]
    assert done.result["best_epoch"] == 1 + values.index(max(values)) < 7
    assert done.result["val/acc"] == max(values)
    best, last = (score(done.folder / "checkpoints" / name, done) for name in ("best.ckpt", "last.ckpt"))
    assert (done.result["test/acc"], done.result["test/loss"]) == pytest.approx(best, rel=1e-5)
    assert best != pytest.approx(last, rel=1e-3)
    saved = [torch.load(done.folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")]
    assert [checkpoint["global_step"] for checkpoint in saved] == [5 * done.result["best_epoch"], 35]


def test_the_book_scores_the_test_set_after_each_epoch(train: Callable[..., Run]) -> None:
    done = train("data.val_size=0", "data.test_each_epoch=true")
    columns = logged(done.folder)
    assert len(columns["test/acc"]) == 2
    assert columns["test/acc"][-1] == done.result["test/acc"]
    assert "val/acc" not in columns
    assert {p.name for p in (done.folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_without_validation_the_last_weights_are_tested_once(train: Callable[..., Run]) -> None:
    done = train("data.val_size=0")
    assert len(logged(done.folder)["test/acc"]) == 1
    assert done.result["best_epoch"] == 2


@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        (["trainer.max_epochs=0"], 0, 0),
        (["trainer.max_steps=3"], 1, 3),
        (["trainer.limit_train_batches=2", "trainer.limit_val_batches=1"], 2, 4),
        (["trainer.limit_train_batches=0.5"], 2, 4),
        (["trainer.accumulate_grad_batches=5"], 2, 2),
        (["data.train_size=70"], 2, 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_lengths_of_training(train: Callable[..., Run], options: list[str], epochs: int, steps: int) -> None:
    done = train(*options)
    assert (done.result["epochs"], done.result["steps"]) == (epochs, steps)
    assert 0 <= done.result["test/acc"] <= 1
    assert ("val/acc" in done.result) == (steps > 0)
    assert (done.folder / "checkpoints" / "last.ckpt").exists() == (steps > 0)


def test_a_terminal_shows_a_progress_bar_and_a_line_for_each_epoch_above_it(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich believe that this is a terminal
    done = train()
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().out)
    assert re.search(r"Epoch 1/1 .*5/5", out)
    assert f"epoch 2/2  train/loss {done.result['train/loss']:.4f}" in out
    monkeypatch.undo()
    train("trainer.enable_progress_bar=false")
    assert "Epoch" not in capfd.readouterr().out


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_bounds_the_gradients_of_a_fused_optimizer(algorithm: str, train: Callable[..., Run]) -> None:
    seen: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = torch.cat([weight.grad.flatten() for weight in optimizer.param_groups[0]["params"]])
        seen.append(float(gradients.norm() if algorithm == "norm" else gradients.abs().max()))

    hook = register_optimizer_step_post_hook(look)  # Lightning computes the gradients within the step
    clip = ["trainer.gradient_clip_val=0.01", f"trainer.gradient_clip_algorithm={algorithm}"]
    try:
        train(*clip, "trainer.precision=bf16-mixed", "optimizer.fused=true", "trainer.max_epochs=1")
    finally:
        hook.remove()
    assert max(seen) == pytest.approx(0.01, rel=1e-3)


def test_early_stopping_stops(train: Callable[..., Run]) -> None:
    done = train("optimizer.lr=1e-9", "trainer.max_epochs=20", "trainer.early_stopping.patience=2")
    assert done.result["epochs"] < 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["trainer.precision=bf16-mixed"],
        ["trainer.gradient_clip_val=0.5", "scheduler=onecycle"],
        ["trainer.gradient_clip_val=0.5", "trainer.precision=bf16-mixed", "optimizer=sgd", "optimizer.fused=true"],
        ["trainer.detect_anomaly=true", "model.batch_norm=true", "inspect=default"],
        ["optimizer=adamw", "scheduler=cosine"],
        ["optimizer=sgd", "data.num_workers=1"],
        ["model=vgg19", "data.resize=33", "trainer.deterministic=true"],
    ],
    ids=" ".join,
)
def test_options_train_to_finite_scores(train: Callable[..., Run], options: list[str]) -> None:
    done = train(*options, "trainer.max_epochs=1")
    assert all(0 <= done.result[name] < 20 for name in SCORES)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.precision=16-mixed", "16-mixed.*bf16-mixed"),
        ("data.val_size=400", "val_size=400.*400 images"),
        ("data.root=/nowhere", "data.root=/nowhere"),
    ],
)
def test_what_the_machine_or_the_data_cannot_do_is_one_line(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        run(configure(*QUICK, override), tmp_path)


@pytest.mark.parametrize("stage", ["train", "val", "test"])
def test_a_share_of_batches_that_is_none_is_refused_before_training(stage: str, tmp_path: Path) -> None:
    text = refusal(lambda: run(configure(*QUICK, f"trainer.limit_{stage}_batches=0.01"), tmp_path))
    assert f"trainer.limit_{stage}_batches=0.01: is none of" in text
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_folder_that_is_removed_while_it_is_trained_is_named(tmp_path: Path) -> None:
    with started(tmp_path, *QUICK, "trainer.max_epochs=500", "hydra.run.dir=outputs/run") as process:
        process.wait_for_output("epoch 2/")
        (tmp_path / "outputs" / "run").rename(tmp_path / "away")
        assert process.wait() == 1
        assert "vggexp: outputs/run: was removed while it was trained; start a new run" in process.errors
        assert "Traceback" not in process.errors


def test_a_claimed_folder_is_refused_to_a_second_run(tmp_path: Path) -> None:
    manifest.claim(tmp_path / "a", {}, "hydra.run.dir")
    with pytest.raises(UserError, match=r"hydra\.run\.dir=.*holds a run already"):
        manifest.claim(tmp_path / "a", {}, "hydra.run.dir")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can be written"):
        manifest.claim(tmp_path / "file", {}, "hydra.run.dir")


def test_of_many_that_claim_a_folder_at_once_one_succeeds(tmp_path: Path) -> None:
    def claim(_: int) -> bool:
        try:
            manifest.claim(tmp_path / "a", {}, "hydra.run.dir")
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(claim, range(64))) == 1


def only(paths: list[Path]) -> Path:
    (path,) = paths
    return path


@pytest.mark.slow
def test_the_command_leaves_a_whole_run_folder(tmp_path: Path) -> None:
    done = vggexp("train", *QUICK, cwd=tmp_path, ONEDNN_MAX_CPU_ISA="AVX2")
    assert done.returncode == 0, done.stderr
    folder = only(list((tmp_path / "outputs").iterdir()))
    assert {p.name for p in folder.iterdir()} >= {".hydra", "checkpoints", "metrics.csv", "result.json"}
    assert list(folder.glob("events.out.tfevents.*"))
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "completed"
    assert (result["seed"], result["config_hash"]) == (0, configure(*QUICK).hash())
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert done.stderr == ""  # Lightning's remarks on deliberate choices are silenced
    assert result.keys() >= SCORES | {"config", "code", "versions", "hardware", "started", "command"}
    assert f"{result['test/acc']:.4f}" in done.stdout
    assert "onednn" not in done.stdout
    if platform.machine() == "x86_64":
        assert (result["onednn_isa"], result["hardware"]["environment"]["ONEDNN_MAX_CPU_ISA"]) == ("Intel AVX2", "AVX2")
    assert f"vggexp tensorboard outputs/{folder.name}" in done.stdout

    again = vggexp("train", *QUICK, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
    assert json.loads((folder / "result.json").read_text()) == result


@pytest.mark.slow
def test_ctrl_c_is_recorded_and_exits_130(tmp_path: Path) -> None:
    with started(tmp_path, *QUICK, "trainer.max_epochs=5000", "hydra.run.dir=outputs/run") as process:
        process.wait_for_output("epoch 2/")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert json.loads((tmp_path / "outputs" / "run" / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.real
def test_the_real_set_is_learned_in_150_steps(real_cache: str, tmp_path: Path) -> None:
    options = ["model.ratio=8", "model.init=kaiming", "data.resize=32", f"data.cache_dir={real_cache}"]
    limits = ["trainer.max_epochs=1", "trainer.limit_train_batches=150", "trainer.accelerator=cpu"]
    limits += ["trainer.limit_test_batches=20", "data.val_size=0", "inspect=off"]
    result = run(configure(*options, *limits), tmp_path)
    assert result["test/acc"] > 0.7


def test_an_error_that_follows_from_a_signal_does_not_hide_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lightning, stopped while it starts, raises an error of its own as it takes itself down."""
    signals = Signals()

    def stopped(*_: object, **__: object) -> None:
        signals.received = signal.SIGTERM
        raise RuntimeError("Please call `iter(combined_loader)` first.")

    monkeypatch.setattr(L.Trainer, "fit", stopped)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run(configure(*QUICK), tmp_path, signals=signals)
    monkeypatch.setattr(signals, "check", lambda: None)  # as where none has arrived
    with pytest.raises(RuntimeError, match="combined_loader"):
        run(configure(*QUICK), tmp_path, signals=signals)


@pytest.mark.slow
def test_a_mistake_that_training_finds_is_one_line(tmp_path: Path) -> None:
    done = vggexp("train", *QUICK, "data.val_size=401", "hydra.run.dir=outputs/run", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("vggexp: data.val_size=401")
    assert manifest.load(tmp_path / "outputs" / "run", "")["status"] == "failed"
