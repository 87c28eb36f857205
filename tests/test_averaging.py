"""`step.ema`: averaged weights are validated, tested and kept; training goes on from those that are not averaged."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from compare import differences, outcome

from conftest import QUICK, Run, configure, refusal, started, vggexp
from test_run import logged, score
from vggexp.checkpoints import file as checkpoint
from vggexp.checkpoints.io import CheckpointFiles
from vggexp.inference.load import load
from vggexp.runs import read
from vggexp.system.signals import Interrupted, Signals
from vggexp.training.run import run

EMA = (*QUICK, "step.ema=0.7", "trainer.log_every_n_steps=2")
State = dict[str, torch.Tensor]


class Recorder(L.Callback):
    """Keeps the weights in training: the initial ones, and those after each step."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.states.append({name: weight.clone() for name, weight in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.states):
            self.on_train_start(trainer, pl_module)


class Stop(L.Callback):
    """Sends a signal in the n-th batch of training or validation, counted over all epochs."""

    def __init__(self, signals: Signals, stage: str, n: int) -> None:
        self.signals, self.stage, self.left = signals, stage, n

    def on_train_batch_end(self, *_: Any) -> None:
        self._count("train")

    def on_validation_batch_start(self, *_: Any) -> None:
        self._count("validation")

    def on_test_batch_start(self, *_: Any) -> None:
        self._count("test")

    def _count(self, stage: str) -> None:
        self.left -= stage == self.stage
        if self.left == 0:
            self.signals.received = signal.SIGTERM


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["model.batch_norm=true", "optimizer=sgd", "trainer.accumulate_grad_batches=2"],
        ["trainer.precision=bf16-mixed", "scheduler=onecycle"],
        ["model.freeze=features", "model.batch_norm=true"],
    ],
    ids=" ".join,
)
def test_the_average_is_that_of_all_steps(options: list[str], tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(configure(*EMA, *options), tmp_path, callbacks=[recorder])
    initial, *steps = recorder.states
    assert len(steps) == result["steps"]
    average = {name: weight.double() for name, weight in initial.items()}
    for n, state in enumerate(steps, start=1):
        decay = min(0.7, (1 + n) / (10 + n))
        for name, weight in state.items():
            average[name] = decay * average[name] + (1 - decay) * weight if weight.is_floating_point() else weight
    content = last(tmp_path)
    assert not differences(dict(content["current_model_state"]), steps[-1])
    for name, weight in content["state_dict"].items():
        torch.testing.assert_close(weight, average[name].to(weight.dtype), rtol=1e-4, atol=1e-6)
        moved = not torch.equal(weight, steps[-1][name])
        fixed = name.endswith("num_batches_tracked") or ("freeze" in "".join(options) and ".features." in name)
        assert moved != fixed, name


def test_the_averaged_weights_are_validated_tested_and_loaded(train: Callable[..., Run]) -> None:
    done = train("step.ema=0.7", "optimizer.lr=0.005")
    best, final = done.folder / "checkpoints" / "best.ckpt", done.folder / "checkpoints" / "last.ckpt"
    tested = (done.result["test/acc"], done.result["test/loss"])
    assert score(best, done) == pytest.approx(tested, rel=1e-5)
    content = checkpoint.read(best, "run")
    assert "current_model_state" not in content
    if done.result["best_epoch"] == 2:
        assert not differences(dict(content["state_dict"]), dict(last(done.folder)["state_dict"]))
    module = load(str(final), {"allowed_packages": ["synthetic"]}).classifier
    assert not differences(dict(module.state_dict()), dict(last(done.folder)["state_dict"]))
    content = last(done.folder)
    content["state_dict"] = content.pop("current_model_state")
    CheckpointFiles({}).save_checkpoint(content, done.folder / "checkpoints" / "training.ckpt")
    assert score(done.folder / "checkpoints" / "training.ckpt", done)[1] != pytest.approx(tested[1], rel=1e-3)


def test_the_test_set_is_scored_with_the_average_after_each_epoch(train: Callable[..., Run]) -> None:
    done = train("step.ema=0.7", "data.val_size=0", "data.test_each_epoch=true")
    scores = (logged(done.folder)["test/acc"][-1], logged(done.folder)["test/loss"][-1])
    assert score(done.folder / "checkpoints" / "last.ckpt", done) == pytest.approx(scores, rel=1e-5)


def test_without_validation_the_average_is_tested(train: Callable[..., Run]) -> None:
    done = train("step.ema=0.7", "data.val_size=0", "trainer.max_epochs=1")
    tested = (done.result["test/acc"], done.result["test/loss"])
    assert score(done.folder / "checkpoints" / "last.ckpt", done) == pytest.approx(tested, rel=1e-5)


WHOLE = (*EMA, "model.batch_norm=true", "scheduler=onecycle")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two epochs, with 5 batches of training and 2 of validation."""
    folder = tmp_path_factory.mktemp("whole")
    run(configure(*WHOLE), folder)
    return folder


def same(one: Path, other: Path) -> list[str]:
    """What differs between two runs: both sets of weights, the optimizer, the best weights, and each logged number."""
    found: list[dict[str, Any]] = []
    for folder in (one, other):
        best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        rows = [
            {name: value for name, value in row.items() if name not in ("images_per_second", "train_seconds")}
            for row in read.rows(folder / "metrics.csv")
        ]
        content = {name: value for name, value in last(folder).items() if name != "config"}
        found.append({"last": content, "best": best, "rows": rows})
    return differences(*found)


@pytest.mark.parametrize(
    ("stage", "n", "point"), [("train", 3, "batch"), ("train", 5, "validation"), ("validation", 3, "validation")]
)
def test_a_stopped_run_goes_on_with_both_sets_of_weights(
    stage: str, n: int, point: str, whole: Path, tmp_path: Path
) -> None:
    signals = Signals()
    with pytest.raises(Interrupted):
        run(configure(*WHOLE), tmp_path, signals=signals, callbacks=[Stop(signals, stage, n)])
    assert last(tmp_path)["callbacks"]["Saver"]["point"] == point
    run(configure(*WHOLE), tmp_path, resume=True)
    assert not same(whole, tmp_path)


def test_a_run_that_is_stopped_in_its_test_tests_the_average(tmp_path: Path) -> None:
    options, signals = (*EMA, "data.val_size=0", "trainer.max_epochs=1"), Signals()
    whole = run(configure(*options), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(configure(*options), tmp_path / "stopped", signals=signals, callbacks=[Stop(signals, "test", 1)])
    resumed = run(configure(*options), tmp_path / "stopped", resume=True)
    assert (resumed["test/acc"], resumed["test/loss"]) == (whole["test/acc"], whole["test/loss"])


def test_a_finished_run_is_trained_further_from_the_weights_in_training(tmp_path: Path) -> None:
    for folder, epochs in (("longer", 1), ("whole", 2)):
        run(configure(*EMA, f"trainer.max_epochs={epochs}"), tmp_path / folder)
    run(configure(*EMA), tmp_path / "longer", resume=True)
    assert not same(tmp_path / "whole", tmp_path / "longer")


def test_a_checkpoint_without_the_weights_in_training_is_refused(tmp_path: Path) -> None:
    run(configure(*EMA, "trainer.max_epochs=1"), tmp_path)
    content = last(tmp_path)
    del content["current_model_state"]
    CheckpointFiles({}).save_checkpoint(content, tmp_path / "checkpoints" / "last.ckpt")
    message = refusal(lambda: run(configure(*EMA), tmp_path, resume=True))
    assert "last.ckpt: is not what this run writes" in message


def test_weights_in_training_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    content = {"state_dict": {}, "current_model_state": {"net.weight": torch.tensor(float("inf"))}}
    message = refusal(lambda: CheckpointFiles({}).save_checkpoint(content, tmp_path / "last.ckpt"))
    assert message.startswith("net.weight: holds values that are not finite")


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "often"])
def test_a_decay_that_is_none_is_refused(value: str) -> None:
    assert f"step.ema={value}" in refusal(lambda: configure(f"step.ema={value}"))


@pytest.mark.slow
def test_a_compiled_network_is_averaged_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # its code need not be fast
    for folder, options in (("plain", []), ("compiled", ["trainer.compile=default"])):
        # without eps, Adam makes of a gradient's rounding about zero a whole step
        run(configure(*EMA, "model.dropout=0", "optimizer.eps=0.001", *options), tmp_path / folder)
    plain, compiled = last(tmp_path / "plain"), last(tmp_path / "compiled")
    for key in ("state_dict", "current_model_state"):
        for name, weight in plain[key].items():
            torch.testing.assert_close(compiled[key][name], weight, rtol=1e-2, atol=1e-3)
    values = [logged(tmp_path / folder)["val/loss"] for folder in ("plain", "compiled")]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@pytest.mark.slow
def test_two_processes_average_and_enlarge_their_images_as_one_and_resume_exactly(tmp_path: Path) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "checkpoint.every_n_seconds=0.01"]
    sizes = "data.resize={0: 32, 1: 48}"  # the run is stopped in the second epoch
    options = [*EMA, *ddp, sizes, "model.batch_norm=true", "trainer.max_epochs=3", "hydra.run.dir=outputs/run"]
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    done = vggexp("train", *options, cwd=tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    with started(tmp_path / "stopped", *options) as process:
        process.wait_for_output("epoch 1/")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143, process.output + process.errors
    resumed = vggexp("train", "resume=last", "allowed_packages=[synthetic]", cwd=tmp_path / "stopped")
    assert resumed.returncode == 0, resumed.stderr
    one, other = (outcome(tmp_path / name / "outputs" / "run") for name in ("whole", "stopped"))
    assert not differences(one, other)
    assert one["last.ckpt"].keys() >= {"state_dict", "current_model_state"}
    result = json.loads((tmp_path / "whole" / "outputs" / "run" / "result.json").read_text())
    assert result["config"]["step"]["ema"] == 0.7
