"""Each epoch's scores, kept for the result and printed in one line."""

from typing import Any

import lightning as L
from rich.console import Console

SCORES = ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc")


class History(L.Callback):
    """Closes an epoch when the next begins or training ends: only then have all its scores been logged.

    Args:
        console: gets the lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.epochs: list[dict[str, float]] = []
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch > len(self.epochs):
            self._close(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close(trainer)

    def _close(self, trainer: L.Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        names = [name for name in SCORES if name.startswith("train/") or self._validated]
        self.epochs.append({name: metrics[name] for name in names if name in metrics})
        self._validated = False
        if trainer.is_global_zero:
            text = "  ".join(f"{name} {value:.4f}" for name, value in self.epochs[-1].items())
            speed = f"{metrics['images_per_second']:,.0f} images/s"
            self.console.print(f"epoch {len(self.epochs)}/{trainer.max_epochs}  {text}  {speed}", soft_wrap=True)

    @property
    def best_epoch(self) -> int | None:
        """The first with the highest val/acc, counted from 1; without validation the last; None if there was none."""
        validated = [n for n, epoch in enumerate(self.epochs, start=1) if "val/acc" in epoch]
        if not validated:
            return len(self.epochs) or None
        return max(validated, key=lambda n: (self.epochs[n - 1]["val/acc"], -n))

    def results(self) -> dict[str, float]:
        """The last epoch's scores, but for val/ those of the best."""
        if self.best_epoch is None:
            return {}
        best = {name: value for name, value in self.epochs[self.best_epoch - 1].items() if name.startswith("val/")}
        return self.epochs[-1] | best
