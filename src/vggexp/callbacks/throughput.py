"""`images_per_second` and `lr`."""

import time
from typing import Any

import lightning as L
import torch


class Throughput(L.Callback):
    """Measures the training loop alone: reading, resizing, forward, backward and update, without validation.

    Logs `images_per_second` (over all processes) per epoch, `lr` every `log_every_n_steps` and at an epoch's end.
    """

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0

    @property
    def images_per_second(self) -> float | None:
        """Over the whole run; None before the first epoch has ended."""
        return self.images / self.seconds if self.seconds else None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images, self._start = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch[1])
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if last and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds = time.perf_counter() - self._start
        if last or batch_idx % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            lr = float(trainer.optimizers[0].param_groups[0]["lr"])
            for logger in trainer.loggers:  # not `self.log`, which would round it to float32
                logger.log_metrics({"lr": lr}, step=trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        images = self._images * trainer.world_size
        self.images, self.seconds = self.images + images, self.seconds + self._seconds
        pl_module.log("images_per_second", images / self._seconds, rank_zero_only=True)
