"""How training goes: `images_per_second`, `train_seconds`, and within an epoch `train/loss_step` and the rates."""

import math
import time
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from vggexp.inspection.csvlog import CSVLogger


class Throughput(L.Callback):
    """Measures the training loop alone: reading, resizing, forward, backward and update, without validation.

    Logs per epoch `images_per_second` (over all processes) and `train_seconds`, all epochs' so far; every
    `log_every_n_steps` and at an epoch's end, the rate that the step has used, for each parameter group (`lr`, `lr_1`,
    ...), and `train/loss_step`, the mean loss of the images since the row before.
    """

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0
        self._images, self._seconds, self._logged = 0, 0.0, -1
        self._rates: list[float] = []
        self._losses = (0.0, 0)  # the epoch's sum and number of images when the last row was logged

    @property
    def images_per_second(self) -> float | None:
        """The mean over the whole run; None before the first epoch has ended."""
        return self.images / self.seconds if self.seconds else None

    def state_dict(self) -> dict[str, Any]:
        run, epoch = (self.images, self.seconds), (self._images, self._seconds)
        return {"run": run, "epoch": epoch, "rates": self._rates, "logged": self._logged, "losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        (images, seconds), (in_epoch, begun) = state_dict["run"], state_dict["epoch"]
        self.images, self.seconds = int(images), float(seconds)
        self._images, self._seconds = int(in_epoch), float(begun)
        self._logged, self._rates = int(state_dict["logged"]), list(map(float, state_dict.get("rates", [])))
        total, count = state_dict.get("losses", (0.0, 0))
        self._losses = float(total), int(count)
        if not (math.isfinite(total) and 0 <= count < 2**40):
            raise ValueError(f"the loss is {total} over {count} images")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter() - self._seconds

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images, self._start, self._losses = 0, time.perf_counter(), (0.0, 0)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]  # a schedule is about to change them

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._images += len(batch[1])
        last = trainer.is_last_batch or trainer.should_stop
        if last and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds = time.perf_counter() - self._start
        stepped = trainer.global_step - 1 > self._logged and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        step = batch_idx // trainer.accumulate_grad_batches
        if stepped and not last and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_step(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log_step(trainer, pl_module)
        images = self._images * trainer.world_size
        self.images, self.seconds = self.images + images, self.seconds + self._seconds
        values = {"images_per_second": images / self._seconds, "train_seconds": self.seconds}
        pl_module.log_dict(values, sync_dist=True, rank_zero_only=True)  # the first process's; nothing is exchanged

    def _log_step(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._logged, (total, count) = trainer.global_step - 1, self._losses
        self._losses = pl_module.losses()
        values: dict[str, float] = {f"lr_{n}" if n else "lr": rate for n, rate in enumerate(self._rates)}
        if images := self._losses[1] - count:
            values |= {"epoch": trainer.current_epoch, "train/loss_step": (self._losses[0] - total) / images}
        for logger in trainer.loggers if values else []:  # not `self.log`, which would round them to float32
            logger.log_metrics(values, step=self._logged)
            if isinstance(logger, CSVLogger):
                logger.save()  # so that a long epoch can be watched
