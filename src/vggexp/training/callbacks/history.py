"""Each epoch's scores: kept for the result, printed in one line, and compared to find the best epoch."""

from typing import Any

import lightning as L
from rich import get_console

from vggexp.runs import metrics


class History(L.Callback):
    """Closes an epoch when the next begins or training ends: only then have all its scores been logged."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [{str(n): float(x) for n, x in epoch.items()} for epoch in state_dict["epochs"]]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch > len(self.epochs):
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        scores = [name for name in metrics.ordered(logged) if name.startswith("train/") or self._validated]
        self.epochs.append({name: logged[name] for name in scores})
        self._validated = False
        if trainer.is_global_zero:
            text = "  ".join(f"{name} {metrics.text(name, value)}" for name, value in self.epochs[-1].items())
            speed = f"{metrics.text('images_per_second', logged['images_per_second'])} images/s"
            # on the console of the progress bar, so that the line appears above it
            line = f"epoch {len(self.epochs)}/{trainer.max_epochs}  {text}  {speed}"
            get_console().print(line, soft_wrap=True, markup=False, highlight=False)

    def improves(self, score: float) -> bool:
        """Whether a val/acc is better than that of every earlier epoch."""
        scores = [*(epoch.get(metrics.OBJECTIVE) for epoch in self.epochs), score]
        return metrics.best(range(len(scores)), scores.__getitem__) == len(scores) - 1

    @property
    def validated(self) -> bool:
        """Whether any epoch has a val/acc."""
        return any(metrics.OBJECTIVE in epoch for epoch in self.epochs)

    @property
    def best_epoch(self) -> int | None:
        """The first with the best val/acc, counted from 1; without validation the last; None if there was none."""
        numbered = list(enumerate(self.epochs, start=1))
        best = metrics.best(numbered, lambda epoch: epoch[1].get(metrics.OBJECTIVE))
        return best[0] if best else len(self.epochs) or None

    def results(self) -> dict[str, float]:
        """The last epoch's scores, except that those of validation are the best epoch's."""
        if self.best_epoch is None:
            return {}
        best = {name: value for name, value in self.epochs[self.best_epoch - 1].items() if name.startswith("val/")}
        return self.epochs[-1] | best
