"""Lightning's Trainer, as a config asks for it, and `torch.compile`."""

import logging
import os
import shutil
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import (  # type: ignore[attr-defined]
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from vggexp.checkpoints.io import CheckpointFiles
from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.inspection.profile import Profile
from vggexp.runs import layout
from vggexp.system import hardware

GRACE = 20  # seconds in which a process that has lost another one may say so and record it


class _Observer(subprocess_script._ChildProcessObserver):
    """Lightning's, which kills the first process as soon as it sees, every five seconds, that another one has died."""

    def _terminate_all(self) -> None:
        time.sleep(GRACE)
        super()._terminate_all()


subprocess_script._ChildProcessObserver = _Observer  # type: ignore[misc]


def make_trainer(cfg: Config, folder: Path, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Lightning's Trainer with the options of the config; refuses what this machine cannot do."""
    on_cpu = hardware.device(cfg.trainer.accelerator).type == "cpu"
    if cfg.trainer.precision == "16-mixed" and on_cpu:
        raise UserError("trainer.precision=16-mixed: needs a GPU; on a CPU, set trainer.precision=bf16-mixed")
    if cfg.trainer.sync_batchnorm and cfg.trainer.strategy == "ddp" and on_cpu:
        raise UserError("trainer.sync_batchnorm=true: needs GPUs; leave it out")
    _quiet()
    own = {"compile", "early_stopping", "enable_progress_bar", "max_steps", "timeout"}
    options = cfg.trainer.model_dump(exclude=own)
    if options["profiler"] == "pytorch":
        options["profiler"] = None  # Lightning's would watch each layer, and so slow a CPU's way to run them
        callbacks = [*callbacks, Profile(folder / layout.PROFILE)]
    if options["strategy"] == "ddp":
        # else the first step's sums would be taken in another order, and a resumed run would round differently
        options["strategy"] = "ddp_find_unused_parameters_true"
        if TorchElasticEnvironment.detect():  # as many as there are now, which may be fewer than at the start
            options["num_nodes"] = int(os.environ["GROUP_WORLD_SIZE"])
            if not isinstance(options["devices"], list):
                options["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
    options["benchmark"] = options["benchmark"] and not options["deterministic"]
    if not (cfg.data.val_size or cfg.data.test_each_epoch):
        options["limit_val_batches"] = 0  # there is nothing to validate with
    # on SLURM, the run itself handles the signal; Lightning would save and queue the job once more
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    try:
        return L.Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers,
            plugins=[CheckpointFiles({layout.LAST: layout.PREVIOUS}), *slurm],
            default_root_dir=folder,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,  # the batches know their process
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def compile_in_place(net: torch.nn.Module, cfg: Config, device: torch.device) -> None:
    """Compiles a network as `trainer.compile` says; in place, so that its weights keep their names."""
    mode = cfg.trainer.compile
    if mode is None:
        return
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        advice = "needs a C++ compiler (apt-get install g++); a CPU gains nothing, so leave it out"
        raise UserError(f"trainer.compile={mode}: {advice}", 1)
    net.compile(mode=mode, dynamic=False)


def _quiet() -> None:
    """Silences what Lightning says of deliberate choices and has no option for."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # the images are in memory
        ".*smaller than the logging interval.*",  # an epoch's values are logged at its end, whatever the interval
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning 2.6 still uses this class of torch
        ".*GPU available but not used.*",  # trainer.accelerator=cpu
        ".*`srun` command is available on your system but is not used.*",  # one process needs none
        ".*your dataloader is not resumable.*",  # the data module, which is, starts it at the right batch
        ".*in eval mode at the start of training.*",  # model.freeze
    ):
        warnings.filterwarnings("ignore", message)
