"""`vggexp evaluate` repeats the run's numbers bit for bit, and its tables and pictures show the predictions."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch.nn import functional as F

import synthetic
from conftest import Run, refusal, vggexp
from synthetic import TEST
from vggexp.inference import load as networks
from vggexp.inference.evaluate import evaluate

# A factor for the last layer's weights: the confidence of some bins is then above their accuracy, of others below.
SHARPER = 5
TRUST = {"allowed_packages": ["synthetic"]}


def predictions(found: networks.Network) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the test set, computed without `evaluate`."""
    data = synthetic.module(root=found.cfg.data.root, resize=32, batch_size=TEST, val_size=100)
    data.setup()
    images, labels = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    with torch.inference_mode():
        return found.module(images), labels


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.slow
def test_the_command_repeats_the_stored_numbers_and_writes_tables_and_pictures(trained: Run, tmp_path: Path) -> None:
    run = shutil.copytree(trained.folder, tmp_path / "run")
    done = vggexp("evaluate", f"run={run}", "allowed_packages=[synthetic]", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the same numbers" in done.stdout
    scores = json.loads((run / "evaluation" / "evaluation.json").read_text())
    stored = json.loads((run / "result.json").read_text())
    assert (scores["test/acc"], scores["test/loss"]) == (stored["test/acc"], stored["test/loss"])
    for name in ("confusion.png", "mistakes.png"):
        picture = matplotlib.image.imread(run / "evaluation" / name)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_checkpoint_alone_gives_the_same_numbers_in_the_precision_of_its_training(
    precision: str, train: Callable[..., Run], tmp_path: Path
) -> None:
    done = train(f"trainer.precision={precision}", "trainer.max_epochs=1")
    alone = shutil.copy(done.folder / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    scores = evaluate(networks.load(alone, TRUST), tmp_path)
    assert {name: scores[name] for name in ("test/acc", "test/loss")} == {
        name: done.result[name] for name in ("test/acc", "test/loss")
    }


def test_tables_match_the_predictions(trained: Run, tmp_path: Path) -> None:
    found = networks.load(str(trained.folder), TRUST)
    last = [layer for layer in found.module.modules() if isinstance(layer, torch.nn.Linear)][-1]
    last.weight.data *= SHARPER
    scores = evaluate(found, tmp_path)
    logits, labels = predictions(found)
    predicted, probabilities = logits.argmax(1), logits.softmax(1)
    assert scores["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)

    matrix = torch.zeros(10, 10, dtype=torch.int64)
    for true, guess in zip(labels, predicted, strict=True):
        matrix[true, guess] += 1
    header, *lines = rows(tmp_path / "confusion.csv")
    assert header[1:] == [line[0] for line in lines] == list(synthetic.SOURCE.classes)
    assert torch.equal(torch.tensor([[int(x) for x in line[1:]] for line in lines]), matrix)

    for n, (name, *values) in enumerate(rows(tmp_path / "per_class.csv")[1:]):
        right = matrix[n, n].item()
        precision, recall = right / max(1, matrix[:, n].sum().item()), right / matrix[n].sum().item()
        f1 = 2 * precision * recall / max(1e-12, precision + recall)
        assert [float(x) for x in values] == pytest.approx([precision, recall, f1, matrix[n].sum().item()], abs=1e-6)
        assert list(scores["classes"][name].values()) == [float(x) for x in values]

    top, hit = probabilities.max(1).values, (predicted == labels).float()
    bins = (top * 15).ceil().long() - 1
    error = sum(
        (bins == b).float().mean().item() * abs(hit[bins == b].mean() - top[bins == b].mean()).item()
        for b in set(bins.tolist())
    )
    assert scores["calibration_error"] == pytest.approx(error, abs=1e-4)


def test_mistakes_are_shown_the_most_confident_first(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggexp.inspection import figures

    shown: list[tuple[torch.Tensor, list[str]]] = []
    monkeypatch.setattr(figures, "gallery", lambda images, captions, title, path: shown.append((images, captions)))
    found = networks.load(str(trained.folder), TRUST)
    evaluate(found, tmp_path)
    logits, labels = predictions(found)
    top, predicted = logits.softmax(1).max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    worst = wrong[top[wrong].argmax()].item()
    ((images, captions),) = shown
    assert len(images) == len(captions) == min(32, len(wrong)) > 0
    assert captions[0].startswith(f"bar {predicted[worst]} ")
    assert captions[0].endswith(f"is bar {labels[worst]}")
    data = synthetic.module(root=found.cfg.data.root, val_size=100)
    data.setup()
    assert torch.equal(images[0], data.sets["test"].tensors[0][worst])


def test_data_with_other_classes_are_refused(trained: Run, tmp_path: Path) -> None:
    other = {"data": {"_target_": "vggexp.data.FashionMNIST"}} | TRUST
    assert "T-shirt/top" in refusal(lambda: evaluate(networks.load(str(trained.folder), other), tmp_path))
    other = {"data": {"resize": 64}} | TRUST
    assert "'image_size': 64" in refusal(lambda: evaluate(networks.load(str(trained.folder), other), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "run: missing"),
        (("run=nowhere",), "run=nowhere: no such file or folder"),
        (("run=last",), "run=last: there is no run under outputs/"),
        (("rum=last",), "rum=last: unknown key did you mean run?"),
        (("run=last", "model.ratio=2"), "model.ratio=2: unknown key"),
        (("last",), "last: is not KEY=VALUE"),
    ],
)
def test_the_command_answers_a_mistake_with_one_line_and_exit_2(
    args: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = vggexp("evaluate", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for word in words.split(" "):
        assert word in done.stderr


def test_settings_that_may_differ_from_training_are_checked(trained: Run) -> None:
    message = refusal(lambda: networks.load(str(trained.folder), {"trainer": {"acelerator": "cpu"}} | TRUST))
    assert "did you mean trainer.accelerator?" in message
