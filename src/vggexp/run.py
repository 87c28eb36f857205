"""One run: a checked config and a folder in, a trained and tested network and its `result.json` out."""

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch.utils.tensorboard.summary import hparams

from vggexp import memory, weights
from vggexp.build import construct
from vggexp.callbacks.history import SCORES, History
from vggexp.callbacks.progress import ProgressBar
from vggexp.callbacks.throughput import Throughput
from vggexp.errors import UserError
from vggexp.module import Classifier
from vggexp.schema import Config


def run(cfg: Config, folder: Path) -> dict[str, Any]:
    """Trains, tests and logs into `folder`; the same config gives the same numbers on the same machine.

    Returns:
        The results by name: the scores, each an exact mean over samples; `epochs`, `best_epoch`, `seconds` (all of
        it), `images_per_second` (training alone), `parameters`, `peak_memory_bytes`, `device`, `precision`. The
        val/ and test/ scores belong to the best epoch by val/acc; without a validation set, to the last.

    Raises:
        UserError: the machine or the data cannot do what the config asks.
    """
    start = time.perf_counter()
    quiet()
    memory.keep_freed()
    memory.forget_peak()
    L.seed_everything(cfg.seed, verbose=False)

    data = construct(cfg.data.spec(), seed=cfg.seed)
    if cfg.model.num_classes < len(data.classes):
        raise UserError(f"model.num_classes={cfg.model.num_classes}: the data have {len(data.classes)} classes")
    if cfg.model.in_channels != 1:
        raise UserError(f"model.in_channels={cfg.model.in_channels}: the images are grey; set model.in_channels=1")
    module = Classifier(cfg.model_dump(by_alias=True), data.classes)

    console = Console(highlight=False)
    if cfg.model.weights is not None:
        rank_zero_only(console.print)(weights.load(module.net, cfg.model.weights), soft_wrap=True)
    throughput, history = Throughput(), History(console)
    checkpoints: dict[str, Any] = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    # Lightning's save_last would write `last` only when the monitored checkpoint is written, too
    last = ModelCheckpoint(**checkpoints, filename="last", save_on_train_epoch_end=True)
    best = ModelCheckpoint(**checkpoints, filename="best", monitor="val/acc", mode="max")
    callbacks: list[L.Callback] = [throughput, history, last]
    if data.validates == "val":
        callbacks.append(best)
    if cfg.trainer.enable_progress_bar and console.is_terminal:
        callbacks.append(ProgressBar(console))
    if cfg.trainer.early_stopping.patience is not None:
        callbacks.append(EarlyStopping("val/acc", mode="max", **cfg.trainer.early_stopping.model_dump()))
    tensorboard = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    trainer = make_trainer(cfg, folder, callbacks, [tensorboard, CSVLogger(folder, name="", version="")])

    trainer.fit(module, data, weights_only=True)
    if data.validates != "test" or not history.epochs:
        trainer.test(module, data, ckpt_path=best.best_model_path or None, weights_only=True, verbose=False)
    scores = history.results() | {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}

    result = {
        **{name: scores[name] for name in SCORES if name in scores},
        "epochs": trainer.current_epoch,
        "best_epoch": history.best_epoch,
        "steps": trainer.global_step,
        "seconds": time.perf_counter() - start,
        "images_per_second": throughput.images_per_second,
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "peak_memory_bytes": memory.peak(),
        "device": _device_name(trainer.strategy.root_device),
        "precision": cfg.trainer.precision,
        "threads": torch.get_num_threads(),
    }
    if trainer.is_global_zero:
        _log_hparams(tensorboard, cfg, result)
    return result


def make_trainer(cfg: Config, folder: Path, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Lightning's Trainer with the options of the config.

    Raises:
        UserError: this machine cannot do what they ask.
    """
    options = cfg.trainer.model_dump(exclude={"early_stopping", "enable_progress_bar"})
    options["max_steps"] = options["max_steps"] or -1
    options["benchmark"] = options["benchmark"] and not options["deterministic"]
    try:
        trainer = L.Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers,
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


def _log_hparams(logger: TensorBoardLogger, cfg: Config, result: dict[str, Any]) -> None:
    """A row in TensorBoard's hparams table; its metrics are the scalars that the run has logged under these names."""
    flat = _flatten(cfg.model_dump(by_alias=True))
    metrics = {name: 0.0 for name in (*SCORES, "images_per_second") if name in result}
    for summary in hparams(flat, metrics):  # type: ignore[no-untyped-call]
        writer = logger.experiment._get_file_writer()
        writer.add_summary(summary)
    logger.experiment.flush()


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def quiet() -> None:
    """Silences what Lightning says of choices that are ours."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
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
    ):
        warnings.filterwarnings("ignore", message)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
