"""When a run saves: only at points from which it can resume as if it had never stopped."""

import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from vggexp.inspection.csvlog import CSVLogger
from vggexp.runs import layout, metrics
from vggexp.system.signals import Interrupted, Signals
from vggexp.training.callbacks.averaging import Averaging
from vggexp.training.callbacks.history import History

Point = Literal["batch", "epoch", "validation"]
"""After a batch that is not its epoch's last; between epochs, or after the last; before validation."""


class Saver(Checkpoint):
    """Writes `last.ckpt` between epochs, every so many seconds and when a signal comes; `best.ckpt` by val/acc.

    A signal ends the run at the next `Point`. With several processes, all save and end at the same one. `start` is
    when the run began in this process, by `time.perf_counter`.
    """

    def __init__(
        self, run: Path, every: float, signals: Signals, history: History, averaging: Averaging, start: float
    ) -> None:
        self.run, self.every_n_seconds, self.signals, self.history = run, every, signals, history
        self.averaging, self._start, self._before = averaging, start, 0.0
        self.point: Point = "epoch"
        self._stopped = False
        self._saved: tuple[Point, int] = ("epoch", 0)
        self._again: list[dict[str, float]] = []

    @property
    def best_path(self) -> Path | None:
        """The checkpoint with the best val/acc; None if nothing was validated."""
        return layout.checkpoint(self.run, layout.BEST) if self.history.validated else None

    @property
    def seconds(self) -> float:
        """How long the run has lasted, before and after it was resumed."""
        return self._before + time.perf_counter() - self._start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_test_start(trainer, pl_module)
        for values in self._again:
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger | TensorBoardLogger):  # which drop what was logged from a step on
                    logger.log_metrics(values, trainer.global_step - 1)
        self._again = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.install()
        self.signals.armed = True
        self._saved_at = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, "epoch")
        self._heed_signals(trainer, None)

    on_train_end = on_train_epoch_start

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not (trainer.is_last_batch or trainer.should_stop or (batch_idx + 1) % trainer.accumulate_grad_batches):
            self._heed_signals(trainer, "batch", due=time.monotonic() - self._saved_at >= self.every_n_seconds)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # in a run that is about to end, the rest of the validation is all that is left
        if not trainer.should_stop:
            self._heed_signals(trainer, None if trainer.sanity_checking else "validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = trainer.callback_metrics.get(metrics.OBJECTIVE)
        if score is not None and not trainer.sanity_checking and self.history.improves(float(score)):
            self._write(trainer, layout.BEST, weights_only=True)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._heed_signals(trainer, None)

    def _heed_signals(self, trainer: L.Trainer, point: Point | None, due: bool = False) -> None:
        """Saves at `point` if saving is due or any process has received a signal, which then ends the run."""
        asked = 2 * self.signals.received + due
        if trainer.world_size > 1:
            own = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(own, reduce_op="max"))
        if asked and point is not None:
            self._save(trainer, point)
        if signum := asked // 2:
            raise Interrupted(signum)

    def _save(self, trainer: L.Trainer, point: Point) -> None:
        if (point, trainer.global_step) == self._saved:
            return
        for logger in trainer.loggers:
            logger.sync() if isinstance(logger, CSVLogger) else logger.save()
        self.point, self._stopped = point, trainer.should_stop
        self._write(trainer, layout.LAST, weights_only=False)
        self._saved, self._saved_at = (point, trainer.global_step), time.monotonic()

    def _write(self, trainer: L.Trainer, name: str, weights_only: bool) -> None:
        with self.averaging.applied(trainer.lightning_module):
            trainer.save_checkpoint(layout.checkpoint(self.run, name), weights_only=weights_only)

    def state_dict(self) -> dict[str, Any]:
        return {"point": self.point, "stopped": self._stopped, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["seconds"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets Lightning's counters to where the run will resume: it saves in hooks between two of their steps."""
        loops = checkpoint["loops"]["fit_loop"]
        epochs, validation = loops["epoch_progress"], loops["epoch_loop.val_loop.batch_progress"]
        for counter in ("total", "current"):
            if self.point == "epoch":
                epochs[counter] |= dict.fromkeys(epochs[counter], epochs[counter]["processed"])
            begun = int(self.point == "validation")
            validation[counter] = {"ready": begun, "started": begun, "processed": 0, "completed": 0}
        checkpoint["first_step"] = trainer.global_step
        if self.point == "validation":  # its scores belong to the last step, which has logged before it
            checkpoint["first_step"] -= 1
            logged = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
            checkpoint["again"] = [row for logger in logged for row in logger.at(trainer.global_step - 1)]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["callbacks"][self.state_key]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning would let it pass
            if callback.state_dict() and not checkpoint["callbacks"].get(callback.state_key):
                raise ValueError(f"it lacks the state of {callback.state_key}")
        self._saved, self._again = (state["point"], checkpoint["global_step"]), checkpoint.get("again", [])
        trainer.should_stop = state["stopped"]
