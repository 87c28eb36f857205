"""python -m vggexp.evaluate run=PATH [output=FOLDER] [data.KEY=VALUE ...] [trainer.KEY=VALUE ...]

Scores a finished network on the test set.

  run       a run folder, a checkpoint file, or last: the newest run under outputs/
  output    where the files go; default: evaluation/ in the run's folder
  data.*    where the data lie now, e.g. data.root=FOLDER; trainer.* what to run on, e.g. trainer.accelerator=cpu

Writes evaluation.json, per_class.csv, confusion.csv, confusion.png and mistakes.png: the images that the network got
wrong with the highest probability.
"""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggexp.commands import options
from vggexp.errors import UserError
from vggexp.inference import load as trained
from vggexp.runs import tables

if TYPE_CHECKING:
    from torch import Tensor

MISTAKES = 32


class Evaluate(options.Options):
    run: str
    output: Path | None = None


def main(args: list[str]) -> int:
    """Returns the exit code."""
    given, overrides = options.parse(Evaluate, args, trained.OVERRIDABLE)
    found = trained.load(given.run, overrides)
    folder = given.output or found.folder / "evaluation"
    with options.output(folder):
        scores = evaluate(found, folder)
    tables.show_evaluation(scores, found.result, folder)
    return 0


def evaluate(found: trained.Trained, folder: Path) -> dict[str, Any]:
    """Scores a network on the test set, on one device, in the batches and the precision of its training.

    Returns:
        `test/acc` and `test/loss`; `calibration_error`: the expected difference between the probability of the
        predicted class and its accuracy, over 15 bins of equal width; `classes`: for each class name its `precision`,
        `recall`, `f1` and `images`.
    """
    import torch
    from torchmetrics.functional import classification

    from vggexp.config.instantiate import datamodule
    from vggexp.inspection import figures
    from vggexp.training import run

    run.quiet()
    data = datamodule(found.cfg)
    if tuple(data.classes) != found.classes:
        raise UserError(
            f"data._target_={found.cfg.data.target}: its classes are {', '.join(data.classes)}, "
            f"the network's {', '.join(found.classes)}"
        )
    logits, labels, scores = _test(found, data, folder)
    probabilities, count = logits.softmax(dim=1), logits.shape[1]
    predicted = probabilities.max(dim=1).indices
    options: dict[str, Any] = {"num_classes": count, "average": None}
    columns = {
        "precision": classification.multiclass_precision(predicted, labels, **options),
        "recall": classification.multiclass_recall(predicted, labels, **options),
        "f1": classification.multiclass_f1_score(predicted, labels, **options),
        "images": torch.bincount(labels, minlength=count),
    }
    names = [*found.classes, *(f"class {n}" for n in range(len(found.classes), count))]
    scores |= {
        "calibration_error": float(
            classification.multiclass_calibration_error(probabilities, labels, num_classes=count, n_bins=15)
        ),
        "classes": {name: {key: column[n].item() for key, column in columns.items()} for n, name in enumerate(names)},
    }
    confusion = classification.multiclass_confusion_matrix(predicted, labels, num_classes=count)
    (folder / "evaluation.json").write_text(json.dumps({"checkpoint": str(found.path)} | scores, indent=2) + "\n")
    _write(folder / "per_class.csv", ["class", *columns], [[k, *v.values()] for k, v in scores["classes"].items()])
    rows = [[name, *row] for name, row in zip(names, confusion.tolist(), strict=True)]
    _write(folder / "confusion.csv", ["true \\ predicted", *names], rows)
    figures.confusion(confusion, names, folder / "confusion.png")

    worst, captions, title = figures.mistakes(probabilities, labels, names, MISTAKES)
    images = data.sets["test"].tensors[0].cpu()[data.indices["test"][worst]]
    figures.gallery(images, captions, title, folder / "mistakes.png")
    return scores


def _test(found: trained.Trained, data: Any, folder: Path) -> tuple["Tensor", "Tensor", dict[str, Any]]:
    """The logits, (N, K) float32, the labels, (N,), and the run's own scores, by the Trainer as after training."""
    import lightning as L
    import torch

    from vggexp.config import precision
    from vggexp.training import run

    logits, labels = [], []

    class Collect(L.Callback):
        def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            logits.append(outputs["logits"].float().cpu())
            labels.append(batch[1].cpu())

    single = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    cfg = found.cfg.model_copy(update={"trainer": found.cfg.trainer.model_copy(update=single)})
    trainer = run.make_trainer(precision.resolved(cfg), folder, [Collect()], [])
    trainer.test(found.module, data, verbose=False)
    return torch.cat(logits), torch.cat(labels), {k: float(v) for k, v in trainer.callback_metrics.items()}


def _write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
