"""Scores a finished network on the test set, with tables and pictures."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torchmetrics.functional import classification

from vggexp.config import choices
from vggexp.config.instantiate import datamodule
from vggexp.errors import UserError
from vggexp.inference.load import Network
from vggexp.inspection import figures
from vggexp.system import files
from vggexp.system.text import clean
from vggexp.training.trainer import make_trainer


def evaluate(network: Network, folder: Path) -> dict[str, Any]:
    """Scores a network on the test set, on one device, in the batches and the precision of its training.

    Writes evaluation.json, per_class.csv, confusion.csv, confusion.png and mistakes.png into the folder.

    Returns:
        `test/acc` and `test/loss`; `calibration_error`: the expected difference between the probability of the
        predicted class and its accuracy, over 15 bins of equal width; `classes`: for each class name its `precision`,
        `recall`, `f1` and `images`.
    """
    data = datamodule(network.cfg)
    now = {"classes": list(map(clean, data.classes)), "dimensions": data.dimensions}
    for name, learned in {"classes": list(network.classes), "dimensions": network.dimensions}.items():
        if now[name] != learned:
            then = f"the network was trained on {learned}; use the same data"
            raise UserError(f"data: its {name} are {now[name]}, {then}")
    data.preparation = network.preparation
    batches: list[tuple[Tensor, Tensor]] = []

    def keep(trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        batches.append((outputs["logits"].float().cpu(), batch[1].cpu()))

    single = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    cfg = network.cfg.model_copy(update={"trainer": network.cfg.trainer.model_copy(update=single)})
    trainer = make_trainer(choices.with_precision(cfg), folder, [LambdaCallback(on_test_batch_end=keep)], [])
    trainer.test(network.classifier, data, verbose=False)
    scores: dict[str, Any] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    logits, labels = map(torch.cat, zip(*batches, strict=True))
    probabilities, count = logits.softmax(dim=1), logits.shape[1]
    predicted = probabilities.max(dim=1).indices
    options: dict[str, Any] = {"num_classes": count, "average": None}
    columns = {
        "precision": classification.multiclass_precision(predicted, labels, **options),
        "recall": classification.multiclass_recall(predicted, labels, **options),
        "f1": classification.multiclass_f1_score(predicted, labels, **options),
        "images": torch.bincount(labels, minlength=count),
    }
    error = classification.multiclass_calibration_error(probabilities, labels, num_classes=count, n_bins=15)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    by_class = {name: dict(zip(columns, row, strict=True)) for name, row in zip(network.classes, rows, strict=True)}
    scores |= {"calibration_error": float(error), "classes": by_class}
    confusion = classification.multiclass_confusion_matrix(predicted, labels, num_classes=count)
    text = json.dumps({"checkpoint": str(network.path)} | scores, indent=2)
    files.write_text(folder / "evaluation.json", f"{text}\n")
    files.write_csv(folder / "per_class.csv", ["class", *columns], [[k, *v.values()] for k, v in by_class.items()])
    table = [[name, *row] for name, row in zip(network.classes, confusion.tolist(), strict=True)]
    files.write_csv(folder / "confusion.csv", ["true \\ predicted", *network.classes], table)
    figures.confusion(confusion, network.classes, folder / "confusion.png")
    worst, captions, title = figures.mistakes(probabilities, labels, network.classes, 32)
    figures.gallery(data.stored("test", worst).cpu(), captions, title, folder / "mistakes.png")
    return scores
