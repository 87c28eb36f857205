"""The gradient's norm and the memory; and which of all scalars share a chart in TensorBoard."""

from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from vggexp.inspection.base import Inspection, gradient_scale, log
from vggexp.runs.metrics import SCORES
from vggexp.system import memory

LINES = "Multiline"
CHARTS = {
    "1 training": {
        "loss": [LINES, [name for name in SCORES if name.endswith("/loss")]],
        "accuracy": [LINES, [name for name in SCORES if name.endswith("/acc")]],
        "learning rate": [LINES, ["lr"]],
    },
    "2 classes": {"accuracy of each class, validation": [LINES, ["val_class_acc/.*"]]},
    "3 health": {
        "gradient norm": [LINES, ["grad_norm"]],
        "dead ReLUs": [LINES, ["dead_relu/.*"]],
        "images a second": [LINES, ["images_per_second"]],
    },
}
"""Which scalars share a chart of TensorBoard, by section and title."""


class Gauges(Inspection):
    """Logs `grad_norm` at the steps that log `lr`, and `memory_gib`, the process's peak so far, after each epoch."""

    shows_scalars = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.board.add_custom_scalars(CHARTS)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / gradient_scale(trainer, optimizer)
        log(trainer, {"grad_norm": norm}, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.log("memory_gib", memory.peak() / 2**30, sync_dist=True, rank_zero_only=True)
