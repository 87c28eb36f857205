"""Lightning's Trainer, as a config asks for it, and `torch.compile`."""

import logging
import os
import shutil
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]

from vggexp.checkpoints.io import CheckpointFiles
from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.inspection.profile import Profile
from vggexp.runs import layout
from vggexp.system import hardware


def make_trainer(cfg: Config, folder: Path, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Lightning's Trainer with the options of the config; refuses what this machine cannot do."""
    quiet()
    if cfg.trainer.precision == "16-mixed" and hardware.device(cfg.trainer.accelerator).type == "cpu":
        raise UserError("trainer.precision=16-mixed: needs a GPU; on a CPU, set trainer.precision=bf16-mixed")
    options = cfg.trainer.model_dump(exclude={"compile", "early_stopping", "enable_progress_bar", "max_steps"})
    if options["profiler"] == "pytorch":
        options["profiler"] = None  # Lightning's would watch each layer, and so slow a CPU's way to run them
        callbacks = [*callbacks, Profile(folder / layout.PROFILE)]
    if options["strategy"] == "ddp":
        # else the first step's sums would be taken in another order, and a resumed run would round differently
        options["strategy"] = "ddp_find_unused_parameters_true"
    options["benchmark"] = options["benchmark"] and not options["deterministic"]
    try:
        trainer = L.Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers,
            plugins=[CheckpointFiles({layout.LAST: layout.PREVIOUS}), *_slurm()],
            default_root_dir=folder,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,  # the batches know their process
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    return trainer


def _slurm() -> list[SLURMEnvironment]:
    """On SLURM, keeps Lightning from handling its signal: saving and requeuing twice would be once too often."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def compile_in_place(net: torch.nn.Module, cfg: Config, device: torch.device) -> None:
    """Compiles a network as `trainer.compile` says; in place, so that its weights keep their names."""
    mode = cfg.trainer.compile
    if mode is None:
        return
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise UserError(
            f"trainer.compile={mode}: needs a C++ compiler (apt-get install g++); a CPU gains nothing, so leave it out",
            1,
        )
    net.compile(mode=mode, dynamic=False)


def quiet() -> None:
    """Silences what Lightning says of choices that are deliberate."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # the images are in memory
        ".*smaller than the logging interval.*",  # the last batch of an epoch is logged anyway
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own call, deprecated by torch
        ".*GPU available but not used.*",  # as trainer.accelerator=cpu asks for
        ".*recommended to use `self.log.*sync_dist=True.*",  # the metric has been reduced already
        ".*Total length of `list` across ranks is zero.*",  # no validation set, on purpose
        ".*all_gather is deprecated.*",  # Lightning's own call
        ".*`srun` command is available on your system but is not used.*",  # a job may run without it
        ".*your dataloader is not resumable.*",  # the data module starts it where the run resumes
    ):
        warnings.filterwarnings("ignore", message)
