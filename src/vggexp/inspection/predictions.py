"""Where the network fails: by class, by pair of classes, by image."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from vggexp.inspection import figures
from vggexp.inspection.board import Board, name
from vggexp.inspection.inspection import Inspection, step

MISTAKES = 24


class Predictions(Inspection):
    """`val_class_acc/CLASS`, `confusion/val`; of the test set the same, `mistakes/test`, and `pr/CLASS`."""

    def __init__(self, board: Board, times: int) -> None:
        super().__init__(board, times)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def _collect(self, outputs: Any, labels: Tensor) -> None:
        self._logits.append(outputs["logits"].float())
        self._labels.append(labels)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._collect(outputs, batch[1])

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._collect(outputs, batch[1])

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels = self._gathered(trainer)
        if not trainer.sanity_checking and trainer.is_global_zero:
            stage = pl_module.validates
            self._show(trainer, pl_module, str(stage), logits, labels, self.is_due(trainer))
            last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
            if stage == "test" and last:
                self._show_test(trainer, pl_module, logits, labels)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels = self._gathered(trainer)
        if trainer.is_global_zero:
            self._show(trainer, pl_module, "test", logits, labels, True)
            self._show_test(trainer, pl_module, logits, labels)

    def _gathered(self, trainer: L.Trainer) -> tuple[Tensor, Tensor]:
        """(N, K) and (N,) of all processes, on the CPU of the first."""
        pair = (torch.cat(self._logits).cpu(), torch.cat(self._labels).cpu())
        self._logits, self._labels = [], []
        if trainer.world_size == 1:
            return pair
        parts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, pair)
        # a batch's images have been dealt out one by one
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _show(
        self, trainer: L.Trainer, pl_module: Any, stage: str, logits: Tensor, labels: Tensor, picture: bool
    ) -> None:
        count = logits.shape[1]
        names = _names(pl_module, count)
        table = torch.bincount(labels * count + logits.argmax(1), minlength=count**2).view(count, count)
        shares = table.diagonal() / table.sum(1)
        scalars = {
            f"{stage}_class_acc/{name(names[k])}": float(share) for k, share in enumerate(shares) if share.isfinite()
        }
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step(trainer))
        if picture:
            pixels = figures.pixels(figures.confusion, table, names)
            self.board.picture(f"confusion/{stage}", pixels, step(trainer))

    def _show_test(self, trainer: L.Trainer, pl_module: Any, logits: Tensor, labels: Tensor) -> None:
        probabilities, names = logits.softmax(1), _names(pl_module, logits.shape[1])
        for k, text in enumerate(names):
            self.board.pr_curve(f"pr/{name(text)}", labels == k, probabilities[:, k], step(trainer))
        if trainer.world_size > 1:
            return  # the gathered images are in another order than the stored ones
        worst, captions, title = figures.mistakes(probabilities, labels, names, MISTAKES)
        if len(worst):
            stored = trainer.datamodule.sets["test"].tensors[0]  # type: ignore[attr-defined]
            shown = stored[worst.to(stored.device)].cpu()
            self.board.picture("mistakes/test", figures.pixels(figures.gallery, shown, captions, title), step(trainer))


def _names(pl_module: Any, count: int) -> list[str]:
    classes = list(pl_module.hparams["classes"])
    return [*classes, *(f"class {n}" for n in range(len(classes), count))]
