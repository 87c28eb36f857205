"""One run: a checked config and a folder in, a trained and tested network and its `result.json` out."""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from vggexp import inspection
from vggexp.checkpoints import file as checkpoint
from vggexp.checkpoints import io as store
from vggexp.checkpoints import pretrained as weights
from vggexp.checkpoints.io import Store
from vggexp.config import precision
from vggexp.config.instantiate import datamodule
from vggexp.config.schema import Config, flatten
from vggexp.errors import UserError
from vggexp.inspection import loggers
from vggexp.inspection.csvlog import CSVLogger
from vggexp.inspection.profile import Profile
from vggexp.runs import resume as resuming
from vggexp.system import memory
from vggexp.system.signals import Signals
from vggexp.training.callbacks.history import SCORES, History
from vggexp.training.callbacks.limits import FiniteLoss, MaxSteps
from vggexp.training.callbacks.progress import ProgressBar
from vggexp.training.callbacks.saver import Saver
from vggexp.training.callbacks.throughput import Throughput
from vggexp.training.classifier import Classifier


def run(
    cfg: Config,
    folder: Path,
    *,
    resume: bool = False,
    signals: Signals | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> dict[str, Any]:
    """Trains, tests and logs into `folder`; the same config gives the same numbers on the same machine.

    Args:
        resume: goes on from the newest checkpoint in `folder`, or from the beginning if there is none yet.
        signals: that end the run.
        callbacks: to go with the run's own.

    Returns:
        The results by name: the scores, each an exact mean over samples; `epochs`, `best_epoch`, `seconds` (all of
        it), `images_per_second` (training alone), `parameters`, `peak_memory_bytes`, `device`, `precision`. The
        val/ and test/ scores belong to the best epoch by val/acc; without a validation set, to the last.

    Raises:
        UserError: the machine or the data cannot do what the config asks, or a file could not be read or written.
        Interrupted: by a signal, when everything so far is saved.
    """
    start = time.perf_counter()
    quiet()
    memory.keep_freed()
    memory.forget_peak()
    L.seed_everything(cfg.seed, verbose=False)

    data = datamodule(cfg)
    if cfg.model.num_classes < len(data.classes):
        raise UserError(f"model.num_classes={cfg.model.num_classes}: the data have {len(data.classes)} classes")
    if cfg.model.in_channels != 1:
        raise UserError(f"model.in_channels={cfg.model.in_channels}: the images are grey; set model.in_channels=1")
    module = Classifier(cfg.model_dump(by_alias=True), data.classes)

    console = Console(highlight=False)
    came_from = store.newest(folder, console) if resume else None
    first_step, before = _came_from(came_from, cfg)
    exact = precision.resolved(cfg, before)
    if exact is not cfg:
        rank_zero_only(console.print)(precision.line(exact), soft_wrap=True)
    if cfg.model.weights is not None and came_from is None:
        rank_zero_only(console.print)(weights.load(module.net, cfg.model.weights), soft_wrap=True)
    throughput, history = Throughput(), History(console)
    saver = Saver(folder, cfg.checkpoint.every_n_seconds, signals or Signals(), lambda: time.perf_counter() - start)
    callbacks = [FiniteLoss(), throughput, history, saver, *callbacks]
    if cfg.trainer.max_steps is not None:
        callbacks.insert(0, MaxSteps(cfg.trainer.max_steps))
    if cfg.trainer.enable_progress_bar and console.is_terminal:
        callbacks.append(ProgressBar(console))
    if cfg.trainer.early_stopping.patience is not None:
        callbacks.append(EarlyStopping("val/acc", mode="max", **cfg.trainer.early_stopping.model_dump()))
    logger = loggers.make(cfg, folder, first_step if resume else None)
    callbacks += inspection.callbacks(cfg, folder, logger)
    trainer = make_trainer(exact, folder, callbacks, [*filter(None, [logger]), CSVLogger(folder, first_step)])
    compile_in_place(module.net, exact, trainer.strategy.root_device)

    trainer.fit(module, data, ckpt_path=came_from and str(came_from), weights_only=True)
    saver.signals.check()
    if data.validates != "test" or not history.epochs:
        trainer.test(module, data, ckpt_path=saver.best_path, weights_only=True, verbose=False)
    scores = history.results() | {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}

    result = {
        **{name: scores[name] for name in SCORES if name in scores},
        "epochs": trainer.current_epoch,
        "best_epoch": history.best_epoch,
        "steps": trainer.global_step,
        "seconds": saver.seconds,
        "images_per_second": throughput.images_per_second,
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "peak_memory_bytes": memory.peak(),
        "device": _device_name(trainer.strategy.root_device),
        "precision": exact.trainer.precision,
        "threads": torch.get_num_threads(),
    }
    if trainer.is_global_zero:
        loggers.conclude(logger, cfg, result)
    return result


def make_trainer(cfg: Config, folder: Path, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Lightning's Trainer with the options of the config.

    Raises:
        UserError: this machine cannot do what they ask.
    """
    options = cfg.trainer.model_dump(exclude={"compile", "early_stopping", "enable_progress_bar", "max_steps"})
    if options["profiler"] == "pytorch":
        options["profiler"] = None  # Lightning's would watch each layer, and so take away a CPU's way to run them
        callbacks = [*callbacks, Profile(folder / "profile")]
    if options["strategy"] == "ddp":
        # else the first step's sums would be taken in another order, and a resumed run would round differently
        options["strategy"] = "ddp_find_unused_parameters_true"
    options["benchmark"] = options["benchmark"] and not options["deterministic"]
    try:
        trainer = L.Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers,
            plugins=[Store(), *_requeue()],
            default_root_dir=folder,
            enable_progress_bar=False,  # ours is a callback
            enable_model_summary=False,
            use_distributed_sampler=False,  # the batches know their process
        )
    except (ValueError, RuntimeError, L.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    if cfg.trainer.precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        raise UserError("trainer.precision=16-mixed: needs a GPU; on a CPU, set trainer.precision=bf16-mixed")
    return trainer


def _requeue() -> list[SLURMEnvironment]:
    """On SLURM, leaves its signal to us: two who save and requeue would be one too many."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def compile_in_place(net: torch.nn.Module, cfg: Config, device: torch.device) -> None:
    """As `trainer.compile` says, so that the network's weights keep their names.

    Raises:
        UserError: this machine cannot compile.
    """
    mode = cfg.trainer.compile
    if mode is None:
        return
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise UserError(
            f"trainer.compile={mode}: needs a C++ compiler (apt-get install g++); a CPU gains nothing, so leave it out",
            1,
        )
    net.compile(mode=mode, dynamic=False)


def _came_from(path: Path | None, cfg: Config) -> tuple[int, str | None]:
    """The first step that a run will log when it goes on from a checkpoint, and the precision it has had so far.

    Raises:
        UserError: the checkpoint is of another run.
    """
    if path is None:
        return 0, None
    content = checkpoint.read(path, "resume")
    try:
        saved, first_step = content["hyper_parameters"]["config"], content["first_step"]
        now, then = flatten(cfg.model_dump(by_alias=True)), flatten(saved)
        resuming.same({key: value for key, value in now.items() if key in then}, then)  # keys may have come since
    except (KeyError, TypeError) as error:
        raise UserError(f"resume={path}: is no checkpoint that a run can go on from") from error
    except UserError as error:
        raise UserError(f"resume={path}: is of another run: {error}") from None
    return int(first_step), content.get("precision")


def quiet() -> None:
    """Silences what Lightning says of choices that are ours."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # the images lie in memory
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*GPU available but not used.*",
        ".*you defined a `validation_step` but have no `val_dataloader`.*",
        ".*recommended to use `self.log.*sync_dist=True.*",  # torchmetrics has done it
        ".*Total length of `list` across ranks is zero.*",  # no validation set
        ".*AMP with fp16 is not supported on CPU.*",  # refused below
        ".*all_gather is deprecated.*",
        ".*`srun` command is available on your system but is not used.*",
        ".*your dataloader is not resumable.*",  # it begins where the run goes on
    ):
        warnings.filterwarnings("ignore", message)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
