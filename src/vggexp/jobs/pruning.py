"""Stops a trial whose val/acc shows that it is hopeless beside the others of its study."""

import json
from pathlib import Path

import lightning as L
import optuna

from vggexp.errors import Pruned


class Pruning(L.Callback):
    """Reports each epoch's val/acc to the study, and asks it.

    Args:
        trial: what the search has left in the run's folder.
    """

    def __init__(self, trial: Path) -> None:
        content = json.loads(trial.read_text(encoding="utf-8"))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.load_study(study_name=content["study"], storage=content["storage"])
        frozen = self.study.get_trials()[content["number"]]
        self.trial = optuna.Trial(self.study, frozen._trial_id)
        self.known = dict(frozen.intermediate_values)  # before the run was resumed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        score = float(trainer.callback_metrics["val/acc"])
        if epoch not in self.known:
            self.trial.report(score, epoch)
        if epoch < (trainer.max_epochs or epoch) and self.trial.should_prune():
            raise Pruned(f"val/acc {score:.4f} after {epoch} epochs: behind the other trials")
