"""A progress bar with speed and time left."""

import math
import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vggexp.system.seeds import position


class ProgressBar(L.Callback):
    """One bar, for the loop that runs: an epoch, its validation, the test.

    Args:
        console: a terminal; what is printed to it meanwhile appears above the bar.
    """

    def __init__(self, console: Console) -> None:
        self.bar = Progress(
            TextColumn("{task.description:12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:>16}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            refresh_per_second=2,  # drawing takes time from the threads that train
        )
        self.tasks: list[TaskID] = []  # validation runs within an epoch

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.disable = not trainer.is_global_zero
        self.bar.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()

    def _begin(self, text: str, batches: float, done: int = 0) -> None:
        total = batches if math.isfinite(batches) else None
        self.tasks.append(self.bar.add_task(text, total=total, completed=done, speed=""))
        self._images, self._start = 0, time.perf_counter()

    def _advance(self, batch: Any, processes: int) -> None:
        self._images += len(batch[1]) * processes
        speed = self._images / (time.perf_counter() - self._start)
        self.bar.update(self.tasks[-1], advance=1, speed=f"{speed:,.0f} images/s")

    def _end(self) -> None:
        self.bar.remove_task(self.tasks.pop())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _, done = position(trainer)
        if done:  # this epoch's start has been announced before
            self._begin_epoch(trainer, done)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: L.Trainer, done: int = 0) -> None:
        self._begin(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", trainer.num_training_batches, done)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._advance(batch, trainer.world_size)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._advance(batch, trainer.world_size)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end()

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._advance(batch, trainer.world_size)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end()
