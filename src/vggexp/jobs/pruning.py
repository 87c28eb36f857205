"""Stops a trial whose val/acc is behind the others of its study."""

import json
from pathlib import Path

import lightning as L
import optuna

from vggexp.errors import Pruned
from vggexp.jobs.search import opened
from vggexp.runs import metrics
from vggexp.system import files


class Pruning(L.Callback):
    """Reports each epoch's val/acc to the study, which may then prune the trial."""

    def __init__(self, trial: Path) -> None:
        content = json.loads(files.content(trial))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(study_name=content["study"], storage=opened(content["storage"]))
        frozen = study.get_trials()[content["number"]]  # with what it reported before it was resumed
        # only the private id makes a trial that can report: `Study.ask` would start a new one (Optuna 4.5 to 5.0)
        self.trial, self.known = optuna.Trial(study, frozen._trial_id), frozen.intermediate_values

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        score = float(trainer.callback_metrics[metrics.OBJECTIVE])
        if epoch not in self.known:
            self.trial.report(score, epoch)
        if epoch < (trainer.max_epochs or epoch) and self.trial.should_prune():
            raise Pruned(f"{metrics.OBJECTIVE} {score:.4f} after {epoch} epochs: behind the other trials")
