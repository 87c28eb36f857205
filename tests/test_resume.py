"""`resume=` finds the run, refuses settings that would make it a different run, and continues it otherwise."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import synthetic
from conftest import QUICK, Run, configure, refusal, started, vggexp
from processes import environment, server
from test_run import SCORES, logged
from vggexp.checkpoints import file as checkpoint
from vggexp.checkpoints.io import CheckpointFiles
from vggexp.config import policy
from vggexp.inference.load import load
from vggexp.inspection.csvlog import CSVLogger
from vggexp.runs import manifest, read, resume, select
from vggexp.system import files
from vggexp.training.run import run


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["optimizer.lr=0.1"], "optimizer.lr=0.1: the run has 0.002"),
        (["data.resize=64"], "data.resize=64: the run has 32"),
        (["data.seed=0"], "data.seed=0: the run has None"),
        (["trainer.max_epochs=1"], "trainer.max_epochs=1: the run has 2; a resumed run can only have more"),
        (["trainer.max_epochs=many"], "trainer.max_epochs=many"),
        (["model=vgg16"], "model=vgg16: cannot be chosen again"),
        (["model.depth=3"], "model.depth=3: unknown key"),
        (["nonsense"], "nonsense: is not KEY=VALUE"),
        (["--multirun"], "--multirun: cannot be combined with resume="),
        (["allowed_packages=[]"], "data._target_=synthetic.SyntheticMNIST: not in an allowed package"),
    ],
)
def test_another_config_is_refused_naming_the_key(trained: Run, args: list[str], words: str) -> None:
    trusted = [] if args[0].startswith("allowed") else ["allowed_packages=[synthetic]"]
    assert words in refusal(lambda: resume.config(trained.folder, [*trusted, *args]))


def test_the_same_config_and_more_epochs_are_accepted(trained: Run) -> None:
    cfg, _ = resume.config(trained.folder, ["allowed_packages=[synthetic]", "optimizer.lr=0.002"])
    assert cfg == trained.cfg
    cfg, _ = resume.config(trained.folder, ["allowed_packages=[synthetic]", "trainer.max_epochs=9"])
    assert cfg.trainer.max_epochs == 9


def test_a_folder_without_a_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGGEXP_OUTPUTS", str(tmp_path))
    text = f"resume={tmp_path}: is not a run folder, for it holds no result.json"
    assert text in refusal(lambda: select.run(str(tmp_path), "resume"))
    assert "resume=last: there is no run under" in refusal(lambda: select.run("last", "resume"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("[" * 10**5)
    assert "its result.json cannot be read" in refusal(lambda: resume.config(select.run("last", "resume"), []))
    (tmp_path / "a" / "result.json").write_text('{"status": "running"}')
    assert "holds no config" in refusal(lambda: resume.config(tmp_path / "a", []))


@pytest.mark.slow
def test_a_finished_run_says_so_and_continues_only_for_more_epochs(tmp_path: Path) -> None:
    """With a constant rate, two epochs and then one more give the same as three at once."""
    options = [*QUICK, "hydra.run.dir=outputs/run"]
    assert vggexp("train", *options, cwd=tmp_path).returncode == 0
    before = (tmp_path / "outputs" / "run" / "result.json").read_bytes()
    again = vggexp("train", "resume=last", "allowed_packages=[synthetic]", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert "has completed" in again.stdout
    assert (tmp_path / "outputs" / "run" / "result.json").read_bytes() == before

    more = ["resume=outputs/run", "allowed_packages=[synthetic]", "trainer.max_epochs=3"]
    assert vggexp("train", *more, cwd=tmp_path).returncode == 0
    whole = run(configure(*QUICK, "trainer.max_epochs=3"), tmp_path / "whole")
    extended = json.loads((tmp_path / "outputs" / "run" / "result.json").read_text())
    assert {name: extended[name] for name in ("test/acc", "test/loss", "val/acc", "train/loss", "steps")} == {
        name: whole[name] for name in ("test/acc", "test/loss", "val/acc", "train/loss", "steps")
    }
    assert (extended["config"]["trainer"]["max_epochs"], len(extended["segments"])) == (3, 1)


@pytest.mark.slow
def test_a_finished_record_outlives_attempts_to_train_it_further(tmp_path: Path) -> None:
    """One that is refused leaves every byte; one that is killed in its second epoch leaves what was finished."""
    root, folder = synthetic.write(tmp_path / "root"), tmp_path / "outputs" / "run"
    data = [f"data.root={root}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert vggexp("train", *QUICK, *data, "hydra.run.dir=outputs/run", cwd=tmp_path).returncode == 0
    before, finished = (folder / "result.json").read_bytes(), read.read(folder)
    for away in (root, tmp_path / "cache"):
        away.rename(away.with_suffix(".away"))
    more = ["resume=outputs/run", "allowed_packages=[synthetic]", "trainer.max_epochs=5"]
    refused = vggexp("train", *more, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert (folder / "result.json").read_bytes() == before

    root.with_suffix(".away").rename(root)
    killed = server().start("train", *more, cwd=tmp_path, env=environment(), sabotage=[("kill_in_validation", 2)])
    assert killed.wait() == -signal.SIGKILL
    assert json.loads((folder / "result.json").read_text())["status"] == "running"
    found = read.read(folder)
    assert (found.status, found.config) == ("completed", finished.config)
    assert found.result["attempt"] == {"status": "interrupted", "reason": read.KILLED}
    assert {name: found.result[name] for name in SCORES} == {name: finished.result[name] for name in SCORES}
    assert load(str(folder), {"allowed_packages": ["synthetic"]}).result == found.result

    assert vggexp("runs", "mark", "outputs/run", "tags=mine", cwd=tmp_path).returncode == 0
    assert read.read(folder).result["tags"] == ["mine"]
    with started(tmp_path, *more) as process:
        process.wait_for_output("epoch 3/")
        assert read.read(folder).status == "running"
        assert select.checkpoint(str(folder), "run").name == "finished.ckpt"
        assert process.wait() == 0
    (folder / "checkpoints" / "finished.ckpt").touch()  # as a crash would leave it
    assert select.checkpoint(str(folder), "run").name == "best.ckpt"
    (folder / "checkpoints" / "finished.ckpt").unlink()
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["epochs"], "finished" in result) == ("completed", 5, False)
    assert not (folder / "checkpoints" / "finished.ckpt").exists()


@pytest.mark.slow
def test_a_run_of_no_epochs_can_be_trained_further(tmp_path: Path) -> None:
    """It has no checkpoint, but scores, which stay until there are others."""
    folder = tmp_path / "outputs" / "run"
    none = vggexp("train", *QUICK, "trainer.max_epochs=0", "hydra.run.dir=outputs/run", cwd=tmp_path)
    assert none.returncode == 0, none.stderr
    finished = read.read(folder)
    more = ["resume=outputs/run", "allowed_packages=[synthetic]", "trainer.max_epochs=2"]
    killed = server().start("train", *more, cwd=tmp_path, env=environment(), sabotage=[("kill_in_validation", 2)])
    assert killed.wait() == -signal.SIGKILL
    found = read.read(folder)
    assert (found.status, found.result["test/acc"]) == ("completed", finished.result["test/acc"])
    assert vggexp("train", *more, cwd=tmp_path).returncode == 0
    whole = run(configure(*QUICK), tmp_path / "whole")
    assert read.read(folder).result["test/acc"] == whole["test/acc"]


def test_what_changes_no_number_may_be_given_anew(tmp_path: Path) -> None:
    cfg = configure("trainer.max_epochs=1")
    manifest.write(tmp_path, manifest.collect(cfg))
    given = ["data.root=elsewhere", "data.cache_dir=there", "data.num_workers=2", "trainer.enable_progress_bar=false"]
    now, _ = resume.config(tmp_path, given)
    assert (now.data.root, now.data.cache_dir, now.data.num_workers) == ("elsewhere", "there", 2)
    assert not now.trainer.enable_progress_bar
    assert "data.val_size=1: the run has 5000" in refusal(lambda: resume.config(tmp_path, ["data.val_size=1"]))
    stranger = manifest.collect(cfg)
    stranger["config"]["data"]["_target_"] = "mine.Data"  # nothing is known of how it reads its files
    manifest.write(tmp_path, stranger)
    assert "data.root=other: the run has None" in refusal(lambda: resume.config(tmp_path, ["data.root=other"]))


@pytest.mark.parametrize(
    ("settings", "epochs", "words"),
    [
        ({}, 3, "trainer.max_epochs=N with a larger N"),
        ({"max_steps": 7}, 2, "trainer.max_steps=7 ended it after 2 epochs"),
        ({"early_stopping": {"patience": 1, "min_delta": 0.0}}, 2, "trainer.early_stopping.patience=1 ended it"),
    ],
)
def test_a_finished_run_says_why_there_is_nothing_to_train(settings: dict, epochs: int, words: str) -> None:
    cfg = configure("trainer.max_epochs=3")
    then = {"epochs": epochs, "config": {"trainer": cfg.values()["trainer"] | settings}}
    assert words in str(resume.nothing_left(cfg, then))
    longer = configure("trainer.max_epochs=4")
    assert (resume.nothing_left(longer, then) is None) == (not settings)


def test_a_run_resumes_though_a_key_was_added_since(tmp_path: Path) -> None:
    cfg = configure(*QUICK, "trainer.max_epochs=1")
    run(cfg, tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = checkpoint.read(path, "run")
    del content["config"]["step"]["test_time_flip"]
    CheckpointFiles({}).save_checkpoint(content, path)
    assert run(configure(*QUICK), tmp_path, resume=True)["epochs"] == 2


def test_a_longer_run_stretches_its_schedule(tmp_path: Path) -> None:
    cfg = configure(*QUICK, "scheduler=onecycle", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    run(cfg, tmp_path)
    longer = configure(*QUICK, "scheduler=onecycle", "trainer.max_epochs=4", "trainer.log_every_n_steps=1")
    result = run(longer, tmp_path, resume=True)
    rates = logged(tmp_path)["lr"]
    assert (result["epochs"], len(rates)) == (4, 20)
    assert min(rates[:4]) < rates[5] > rates[19]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path: Path) -> None:
    """The first Ctrl-C waits for the batch to end, which takes this network many seconds."""
    options = [*QUICK, "model.ratio=1", "data.resize=224", "data.batch_size=64", "hydra.run.dir=outputs/run"]
    with started(tmp_path, *options, "trainer.max_epochs=99") as process:
        while not list((tmp_path / "outputs" / "run").glob("events.*")) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(3) == 130
    result = json.loads((tmp_path / "outputs" / "run" / "result.json").read_text())
    assert (result["status"], result["reason"]) == ("interrupted", "Ctrl-C")


def test_a_run_that_is_still_training_is_not_resumed(trained: Run, tmp_path: Path) -> None:
    manifest.write(tmp_path, manifest.load(trained.folder, "") | {"status": "running"})
    assert not manifest.is_locked(tmp_path)
    with manifest.lock(tmp_path, "resume=x"):
        assert manifest.is_locked(tmp_path)

        def hold() -> None:
            with manifest.lock(tmp_path, "resume=x", seconds=0.1):
                pass

        assert f"resume=x: is running, as process {os.getpid()}" in refusal(hold)


def test_a_swapped_checkpoint_is_refused(train: Callable[..., Run], trained: Run, tmp_path: Path) -> None:
    other = train("optimizer.lr=0.003", "trainer.max_epochs=1")
    content = checkpoint.read(other.folder / "checkpoints" / "last.ckpt", "run")
    CheckpointFiles({}).save_checkpoint(content, tmp_path / "checkpoints" / "last.ckpt")
    message = refusal(lambda: run(trained.cfg, tmp_path, resume=True))
    assert "last.ckpt: belongs to another run: optimizer.lr=0.002: the run has 0.003" in message


def test_metrics_csv_keeps_complete_rows_before_the_step_and_accepts_new_columns(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"lr": step / 10}, step)
    logger.save()
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("0.9,1")  # a row that was being written when the power failed
    logger = CSVLogger(tmp_path, first_step=2)
    logger.log_metrics({"lr": 0.7, "acc": 0.5}, 2)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text() == "acc,lr,step\n,0.0,0\n,0.1,1\n0.5,0.7,2\n"


def test_runs_stay_in_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy.check_folder("outputs/a", "key")
    for place in ("elsewhere", "outputs/../a", "/tmp/a", "outputsider/a"):
        assert refusal(lambda place=place: policy.check_folder(place, "key")).startswith(f"key={place}: is outside")
        policy.check_folder(place, "key", typed=True)
    assert "key=outputs: is outputs/; name" in refusal(lambda: policy.check_folder("outputs", "key", typed=True))
    monkeypatch.setenv("VGGEXP_OUTPUTS", str(tmp_path / "scratch"))
    policy.check_folder(str(tmp_path / "scratch" / "a"), "key")
    assert "is outside" in refusal(lambda: policy.check_folder("outputs/a", "key"))


def test_metrics_csv_is_complete_after_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CSVLogger(tmp_path)
    logger.save()
    logger.log_metrics({"lr": 0.1}, 0)

    def fail(_: int) -> None:
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        with pytest.raises(OSError, match="full"):
            logger.save()
    logger.save()
    assert (tmp_path / "metrics.csv").read_text() == "lr,step\n0.1,0\n"
