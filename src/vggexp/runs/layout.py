"""The names of the files and folders in the folder of a run and of a sweep."""

import os
from pathlib import Path

from vggexp.errors import UserError

RESULT = "result.json"  # what made the run, its status and its final scores
CHOICES = "choices.json"  # what was measured to be the fastest on the machine where the run began
METRICS = "metrics.csv"  # every logged value
CHECKPOINTS = "checkpoints"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
FINISHED = "finished.ckpt"  # what a finished run was tested with, while it is trained further
LOCK = ".lock"  # held by the process that works in the folder
CODE, HASHES = "code", "files.json"  # what made the run and is in no commit; a package's files by hash
LOGGER_ID = "logger_id.txt"  # the name by which a logger's server knows the run, and its address there
LOGGED = "wandb_logged.txt"  # what W&B has been given: a line for each step and name
PROFILE = "profile"
EVALUATION, EXPORT, REPORT = "evaluation", "export", "report"  # where the commands put what they make from a run

SWEEP = "sweep.json"  # the jobs of a sweep and what started it
MULTIRUN = "multirun.yaml"
OVERRIDES = Path(".hydra", "overrides.yaml")
OUTPUT = "output.log"  # what a job of a sweep would have printed on the terminal
ASIDE = "other-code"  # the runs of a sweep that were trained again, because the code has changed
STOP = ".stop"  # the sweep was stopped: a job that still waits in a queue must not begin
TRIAL, TRIAL_LOCK = "trial.json", ".trial.lock"  # which trial of which study a run is, and the lock of its process
STUDY = "study.db"

TOLD = "VGGEXP_FOLDER_TO"
"""The environment variable by which a program that starts `vggexp train` names a file for the folder of the run."""


def tell(folder: Path) -> None:
    """Tells the program that has started this process, if it wants to know, in which folder a run or a sweep lies."""
    if file := os.environ.get(TOLD):
        Path(file).write_text(str(folder.resolve()), encoding="utf-8")


def check_output(file: Path, key: str) -> None:
    """Refuses to write what the user named over a file that belongs to a run, or where no file can be."""
    if not file.name or file.is_dir():
        raise UserError(f"{key}={file}: is no file; name one")
    of_run = any((folder / RESULT).exists() for folder in (file.parent, file.parent.parent))
    if of_run and file.exists() and file.parent.name not in (EVALUATION, EXPORT, REPORT):
        raise UserError(f"{key}={file}: belongs to a run; name another file")


def checkpoint(run: Path, name: str) -> Path:
    """The path of a run's checkpoint."""
    return run / CHECKPOINTS / name


def tested_checkpoint(run: Path, attempt: bool) -> Path:
    """The checkpoint that a finished run was tested with: the best by val/acc, without validation the last.

    Args:
        attempt: whether the run has since been trained further, but not to the end.
    """
    paths = [checkpoint(run, name) for name in (*[FINISHED] * attempt, BEST, LAST)]
    return next((path for path in paths if path.exists()), paths[-1])
