"""Scalars beside loss and accuracy: the gradient's norm and the memory, and which of all share a chart."""

from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from vggexp.inspection.inspection import Inspection, scale
from vggexp.system import memory

CHARTS = {
    "1 training": {
        "loss": ["train/loss", "val/loss", "test/loss"],
        "accuracy": ["train/acc", "val/acc", "test/acc"],
        "learning rate": ["lr"],
    },
    "2 classes": {"accuracy of each class, validation": ["val_class_acc/.*"]},
    "3 health": {
        "gradient norm": ["grad_norm"],
        "dead ReLUs": ["dead_relu/.*"],
        "images a second": ["images_per_second"],
    },
}


class Gauges(Inspection):
    """`grad_norm`, with the learning rate's steps, and `memory_gib`, the process's peak so far, per epoch."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.board.charts(CHARTS)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / scale(trainer, optimizer)
        for logger in trainer.loggers:
            logger.log_metrics({"grad_norm": norm}, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if (peak := memory.peak()) is not None:
            pl_module.log("memory_gib", peak / 2**30, rank_zero_only=True)
