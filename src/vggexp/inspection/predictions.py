"""Where the network fails: by class, by pair of classes, by image."""

from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vggexp.inspection import figures
from vggexp.inspection.base import Inspection, last_step, log, tag

MISTAKES, COLUMNS = 16, 4  # a card of TensorBoard is a few hundred pixels wide


class Predictions(Inspection):
    """Logs `val_class_acc/CLASS` and shows `confusion/val`; of the test set the same, `mistakes/test`, `pr/CLASS`."""

    shows_scalars = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._logits.append(outputs["logits"].float())
        self._labels.append(batch[1])

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels = self._gathered(trainer)
        if not trainer.sanity_checking and trainer.is_global_zero:
            last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
            self._show(pl_module, pl_module.validates, logits, labels, draw=self.is_due(trainer))
            if pl_module.validates == "test" and last:
                self._show_test(pl_module, logits, labels)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels = self._gathered(trainer)
        if trainer.is_global_zero:
            self._show(pl_module, "test", logits, labels, draw=True)
            self._show_test(pl_module, logits, labels)

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

    def _show(self, pl_module: Any, stage: str, logits: Tensor, labels: Tensor, *, draw: bool) -> None:
        names, step = pl_module.trainer.datamodule.classes, last_step(pl_module.trainer)
        count = len(names)
        table = torch.bincount(labels * count + logits.argmax(1), minlength=count**2).view(count, count)
        shares = zip(names, table.diagonal() / table.sum(1), strict=True)
        scalars = {f"{stage}_class_acc/{tag(name)}": float(share) for name, share in shares if share.isfinite()}
        log(pl_module.trainer, scalars, step)
        if draw:
            picture = figures.pixels(figures.confusion, table, names)
            self.board.add_image(f"confusion/{stage}", picture, step, dataformats="HWC")

    def _show_test(self, pl_module: Any, logits: Tensor, labels: Tensor) -> None:
        data, step = pl_module.trainer.datamodule, last_step(pl_module.trainer)
        probabilities = logits.softmax(1)
        for k, name in enumerate(data.classes):
            self.board.add_pr_curve(f"pr/{tag(name)}", labels == k, probabilities[:, k], step)
        if pl_module.trainer.world_size > 1:
            return  # the gathered images are in another order than the stored ones
        worst, captions, title = figures.mistakes(probabilities, labels, data.classes, MISTAKES)
        if len(worst):
            picture = figures.pixels(
                partial(figures.gallery, columns=COLUMNS), data.stored("test", worst).cpu(), captions, title
            )
            self.board.add_image("mistakes/test", picture, step, dataformats="HWC")
