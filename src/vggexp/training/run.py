"""One run: a checked config and a folder in, a trained and tested network and its results out."""

import multiprocessing
import os
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vggexp import inspection
from vggexp.checkpoints import file, io, pretrained
from vggexp.config.instantiate import datamodule, network
from vggexp.config.schema import Config, flatten
from vggexp.data import DataModule
from vggexp.errors import UserError, described
from vggexp.inspection import dry_run, loggers
from vggexp.inspection.csvlog import CSVLogger
from vggexp.runs import choices, layout, metrics
from vggexp.runs import resume as resuming
from vggexp.system import hardware, memory, terminal
from vggexp.system.signals import Signals, kill_children
from vggexp.training.callbacks.averaging import Averaging
from vggexp.training.callbacks.history import History
from vggexp.training.callbacks.limits import FiniteLoss, MaxSteps, Start
from vggexp.training.callbacks.saver import Saver
from vggexp.training.callbacks.throughput import Throughput
from vggexp.training.classifier import Classifier
from vggexp.training.peers import Peers
from vggexp.training.trainer import compile_in_place, make_trainer

Begun = Callable[[int, int], None]  # takes an epoch, counted from 0, and how many of its batches are done


class TrainingBar(TQDMProgressBar):
    """Training's progress in one line that is written again and again, which a notebook can show, too."""

    def init_sanity_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    init_validation_tqdm = init_test_tqdm = init_sanity_tqdm


class Prepared(NamedTuple):
    """What a run consists of, ready to train."""

    data: DataModule
    module: Classifier
    trainer: L.Trainer
    throughput: Throughput
    saver: Saver
    logger: Logger | None
    checkpoint: Path | None  # what the run resumes from
    peers: Peers | None = None


def run(
    cfg: Config,
    folder: Path,
    *,
    resume: bool = False,
    signals: Signals | None = None,
    callbacks: Sequence[L.Callback] = (),
    begun: Begun = lambda epoch, batch: None,
) -> dict[str, Any]:
    """Trains, tests and logs into `folder`; the same config gives the same numbers on the same machine.

    Args:
        resume: continues from the newest checkpoint in `folder`, or starts if there is none yet.
        callbacks: beside the run's own.
        begun: is told before the first step from where training goes on.

    Returns:
        The results by name. The scores are exact means over samples; those of val/ and test/ belong to the best epoch
        by val/acc, without a validation set to the last. `seconds` is all of it, `images_per_second` training alone.

    Raises:
        Interrupted: by a signal, when everything so far is saved.
    """
    others = multiprocessing.active_children()
    signals = signals or Signals()
    prepared: Prepared | None = None
    peers: Peers | None = None
    try:
        peers = Peers.of(cfg)
        prepared = prepare(cfg, folder, resume, signals, callbacks, begun, peers)
        return _train(prepared, cfg)
    except Exception as error:
        if peers and isinstance(error, RuntimeError) and (lost := peers.missed()):
            again = peers.command or f"the same command, with {terminal.argument(folder, 'resume')}"
            where = "if nothing starts it again, on every host, here by"
            raise UserError(f"trainer.strategy=ddp: {lost}; to continue, {where}: ", 1, again) from error
        signals.check()  # if one has cut something short, the error only follows from that
        if prepared is None:
            raise
        if lost := _lost(prepared.trainer):
            again = terminal.argument(folder, "resume")
            raise UserError(f"trainer.strategy=ddp: {lost}; to continue: vggexp train {again}", 1) from error
        if prepared.checkpoint and not isinstance(error, UserError) and _restoring(error):
            text = f"is not what this run writes: {described(error)}"
            raise UserError(f"resume={prepared.checkpoint}: {text}; train again in a new folder") from error
        raise
    finally:
        if peers is not None:
            peers.end()
        if prepared is not None:
            loggers.close(prepared.logger)
        kill_children(others)  # of a run that is stopped, the processes that load batches


def _check_counters(tree: Any) -> None:
    """Refuses counters of Lightning's loops that count nothing."""
    for value in tree.values():
        if isinstance(value, dict):
            _check_counters(value)
        elif not isinstance(value, int) or not 0 <= value < 2**40:
            raise ValueError(f"a counter is {value!r}")


def _restoring(error: BaseException) -> bool:
    """Whether an error comes of what a checkpoint has brought into the trainer, the optimizer or its schedule."""
    frames = traceback.extract_tb(error.__traceback__)
    places = "\n".join(f"{Path(frame.filename).as_posix()} {frame.name}" for frame in frames)
    return bool(re.search(r"/checkpoint_connector\.py|/torch/optim/|/vggexp/training/.* on_train_start", places))


def _lost(trainer: L.Trainer) -> str | None:
    """Which of the further processes has ended, so that the first one could not go on; None if all live."""
    for rank, process in enumerate(getattr(trainer.strategy.launcher, "procs", ()), start=1):
        with suppress(subprocess.TimeoutExpired):  # its end may be noticed a moment before it is known
            if code := process.wait(1):
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                return f"process {rank} of {trainer.world_size} (rank {rank}) has ended by {how}"
    return None


def prepare(
    cfg: Config,
    folder: Path,
    resume: bool,
    signals: Signals,
    callbacks: Sequence[L.Callback],
    begun: Begun,
    peers: Peers | None = None,
) -> Prepared:
    """Builds data, network, callbacks and trainer, in this order, because the seed is drawn from in between."""
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    memory.keep_freed()
    memory.forget_peak()
    L.seed_everything(cfg.seed, verbose=False)
    say = rank_zero_only(terminal.say)

    data = datamodule(cfg)
    paths = [layout.checkpoint(folder, name) for name in (layout.LAST, layout.PREVIOUS)]
    checkpoint = io.newest(paths, folder) if resume else None
    if peers is not None:  # the first process keeps the folder, perhaps on a disk of its own
        peers.meet()
        checkpoint = peers.share(checkpoint or paths[0], checkpoint is not None)
    first_step, before, position = _resumed(checkpoint, cfg, data)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if peers is not None and not first:
        peers.share(folder / layout.CHOICES, True)  # when the first process has made them
    exact, found = choices.of_run(cfg, folder, data.dimensions, before, first, resume)
    if peers is not None and first:
        peers.share(folder / layout.CHOICES, True)
    about = {"classes": list(data.classes), "preparation": data.preparation.values(), "choices": found}
    counts = data.labels("train").bincount(minlength=len(data.classes)).tolist()
    module = Classifier(cfg, about, data.dimensions, counts)
    if cfg.model.weights is not None and checkpoint is None:
        say(pretrained.load(module.net, cfg.model.weights))

    throughput, history, averaging = Throughput(), History(), Averaging(cfg.step.ema)
    saver = Saver(folder, cfg.checkpoint.every_n_seconds, signals, history, averaging, start)
    own = [FiniteLoss(), throughput, history, averaging, saver, Start(partial(begun, *position)), *callbacks]
    if cfg.trainer.max_steps is not None:
        own.insert(0, MaxSteps(cfg.trainer.max_steps))
    if cfg.trainer.enable_progress_bar and (terminal.console().is_terminal or terminal.BAR in os.environ):
        batches = 6_000_000 // (cfg.data.batch_size * cfg.data.size**2)  # drawing slows the training threads
        bar = TrainingBar if terminal.BAR in os.environ else RichProgressBar
        own.append(bar(refresh_rate=min(100, max(1, batches))))
    if cfg.trainer.early_stopping.patience is not None:
        own.append(EarlyStopping(metrics.OBJECTIVE, mode="max", **cfg.trainer.early_stopping.model_dump()))
    logger = loggers.make(cfg, folder, first_step if resume else None)
    own += inspection.callbacks(cfg, folder, logger)
    trainer = make_trainer(exact, folder, own, [*filter(None, [logger]), CSVLogger(folder, first_step)])
    _check_sizes(cfg, data, trainer.strategy.root_device)
    compile_in_place(module.net, exact, trainer.strategy.root_device)
    return Prepared(data, module, trainer, throughput, saver, logger, checkpoint, peers)


def _train(run: Prepared, cfg: Config) -> dict[str, Any]:
    """Trains, tests the best checkpoint, unless each epoch has tested already, and returns the results; see `run`."""
    trainer, history = run.trainer, run.saver.history
    trainer.fit(run.module, run.data, ckpt_path=run.checkpoint, weights_only=True)
    run.saver.signals.check()
    if run.data.validates != "test" or not history.epochs:
        best = run.saver.best_path
        if run.peers is not None and best is not None:
            run.peers.share(best, True)
        trainer.test(run.module, run.data, ckpt_path=best, weights_only=True, verbose=False)
    tested = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    scores, device = history.results() | tested, trainer.strategy.root_device
    result = {
        **{name: scores[name] for name in metrics.ordered(scores)},
        "epochs": trainer.current_epoch,
        "best_epoch": history.best_epoch,
        "steps": trainer.global_step,
        "test_images": run.module.images.get("test"),
        "seconds": run.saver.seconds,
        "images_per_second": run.throughput.images_per_second,
        "parameters": sum(parameter.numel() for parameter in run.module.net.parameters()),
        "peak_memory_bytes": memory.peak(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": trainer.precision,
        "choices": run.module.about["choices"],
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "onednn_isa": hardware.onednn_isa(),
    }
    if trainer.is_global_zero:
        loggers.conclude(run.logger, cfg, result)
    return result


def _check_sizes(cfg: Config, data: DataModule, device: torch.device) -> None:
    """Refuses a schedule of image sizes at which the network, which is built for the last one, cannot be trained."""
    if len(data.sizes) > 1 and cfg.trainer.deterministic and device.type == "cuda":
        cannot = "torch pools smaller maps on a GPU in no fixed order"
        raise UserError(f"data.resize={cfg.data.resize}: {cannot}; leave out trainer.deterministic, or set one size")
    for size in [size for size in data.sizes.values() if size != data.size]:
        with dry_run.without_content():
            net = network(cfg.model.spec(), data.dimensions)
            try:
                net(torch.empty(2, data.source.channels, size, size))
            except Exception as error:
                cannot = f"{type(net).__name__} is built for {data.size} px and takes no others, such as {size}"
                remedy = f"set data.resize={data.size}, or have it pool its maps to one size in training"
                raise UserError(f"data.resize={cfg.data.resize}: {cannot}; {remedy}") from error


def _resumed(path: Path | None, cfg: Config, data: DataModule) -> tuple[int, str | None, tuple[int, int]]:
    """The first step that a resumed run will log, its precision so far, and its position, if it is the same run."""
    if path is None:
        return 0, None, (0, 0)
    content = file.read(path, "resume")
    try:
        now, then = flatten(cfg.values()), flatten(content["config"])
        resuming.check_same({key: now[key] for key in now if key in then}, then)  # keys may have been added since
        _check_counters(content["loops"])
        state = content.get(type(data).__qualname__, {})  # under which name Lightning has stored it
        epoch, batch = state.get("position") or (content["epoch"], 0)
        found = int(content["first_step"]), content.get("precision"), (int(epoch), int(batch))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"resume={path}: is not a checkpoint that a run can resume from") from error
    except UserError as error:
        raise UserError(f"resume={path}: belongs to another run: {error}") from None
    data.check_same(state)
    return found
