"""One job, alone or of a sweep: trains a config into a folder, tells what goes wrong, and keeps the record."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.errors import Pruned, UserError
from vggexp.runs import layout, manifest, resume, tables
from vggexp.system import terminal
from vggexp.system.signals import Interrupted, Signals, reason

COMMAND = "python -m vggexp.train"
OUTPUT = "output.log"
"""What a job of a sweep would have said on the terminal."""

STOP = ".stop"
"""In a sweep's folder: it has been stopped, so that a job which still waits in a queue must not begin."""

layout.TRIAL = "trial.json"
"""In a folder of a sweep: the study that the run is a trial of, and may prune it."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a full, broken or protected disk answers."""


def first(raw: DictConfig) -> int:
    """Trains a composed config into the folder that Hydra made for it; returns the exit code."""
    cfg = compose.check(raw)
    return train(cfg, _folder(), manifest.collect(cfg))


def of_sweep(raw: DictConfig) -> int:
    """The same, in whatever process the launcher has chosen: what is done stays, what was begun goes on.

    No exception leaves here, for it would end the launcher: not even an interruption, which is in the record.
    """
    folder = _folder()
    if (Path(HydraConfig.get().sweep.dir) / STOP).exists():
        return 130
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ.setdefault("OMP_NUM_THREADS", cores)  # not every cluster confines a job to its own
    with _output(folder / OUTPUT):
        try:
            cfg = compose.check(raw)
            if not (folder / layout.RESULT).exists():
                manifest = manifest.collect(cfg)
                manifest.claim(folder, manifest, "hydra.sweep.subdir")
                return train(cfg, folder, manifest, of_study=True)
            past = manifest.load(folder, f"{resume.OPTION}{folder}")
            return 0 if past["status"] in ("completed", "pruned") else go_on(cfg, folder, past, of_study=True)
        except UserError as error:
            return compose.fail(error)
        except Interrupted as stop:
            if "SLURM_JOB_ID" in os.environ:
                os._exit(stop.exit_code)  # to return would be to have done; SLURM may begin the job again
            return stop.exit_code


def go_on(cfg: Config, folder: Path, past: dict[str, Any], of_study: bool = False) -> int:
    """Goes on with a run in its folder; returns the exit code.

    Args:
        past: its record so far.
        of_study: see `train`.
    """
    manifest = manifest.collect(cfg)
    old, new = dict(past.get("versions") or {}), manifest["versions"]
    if changed := [f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]]:
        print(f"{folder}: goes on with {', '.join(changed)}: the last bits may differ", file=sys.stderr)
    manifest |= {"started": past.get("started"), "resumed": [*past.get("resumed", []), manifest["started"]]}
    return train(cfg, folder, manifest, again=True, of_study=of_study)


def train(cfg: Config, folder: Path, manifest: dict[str, Any], again: bool = False, of_study: bool = False) -> int:
    """Trains into a folder; what goes wrong is told and recorded. Returns the exit code.

    Args:
        again: goes on from what the folder holds.
        of_study: if the folder says that the run is a trial, its study may prune it.

    Raises:
        Interrupted: by a signal.
    """

    def interrupted(signum: int) -> None:
        if manifest["status"] == "running":
            _record(folder, manifest | {"status": "interrupted", "reason": reason(signum)})

    parent = os.getppid()
    if cfg.trainer.strategy == "ddp":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would advise against our choice in each process
    try:
        lock = nullcontext() if is_worker() else manifest.lock(folder, f"{resume.OPTION}{folder}")
        with lock, Signals(interrupted) as signals:
            try:
                if not is_worker():
                    manifest.write(folder, manifest)
                    tables.announce(cfg, folder)
                from vggexp.training.run import run  # torch and Lightning: only now, when nothing is left to refuse

                callbacks = []
                if of_study and (folder / layout.TRIAL).exists():
                    from vggexp.jobs.pruning import Pruning

                    callbacks.append(Pruning(folder / layout.TRIAL))
                result = run(cfg, folder, resume=again, signals=signals, callbacks=callbacks)
            except Interrupted as stop:
                interrupted(stop.signum)
                if is_worker():
                    return 0  # else Lightning would kill the first process before it has recorded its end
                place = terminal.short(folder)
                print(f"vggexp: stopped by {stop}; to go on: {COMMAND} {resume.OPTION}{place}", file=sys.stderr)
                raise
            except Pruned as stop:
                print(stop)
                _record(folder, manifest | {"status": "pruned", "reason": str(stop)})
                return 0
            except Exception as error:
                if is_worker() and os.getppid() != parent:
                    return 1  # the first process has ended and said why
                mistake = error if isinstance(error, UserError) else _known(error, cfg, folder)
                text = str(mistake or f"{type(error).__name__}: {error}")
                _record(folder, manifest | {"status": "failed", "reason": text})
                if mistake is not None:
                    return mistake.exit_code if is_worker() else compose.fail(mistake)
                traceback.print_exc()
                return 1
            manifest |= {"status": "completed"} | result
            _record(folder, manifest)
    except UserError as error:  # of the lock
        return compose.fail(error)
    if not is_worker():
        tables.show_result(manifest, folder)
    return 0


def is_worker() -> bool:
    """Whether this is one of the further processes of trainer=ddp: the first one keeps the record."""
    rank = os.environ.get("SLURM_PROCID") if int(os.environ.get("SLURM_NTASKS", 1)) > 1 else None
    return int(os.environ.get("RANK") or rank or os.environ.get("LOCAL_RANK") or 0) > 0


def is_started_again() -> bool:
    """Whether torchrun or SLURM has started these processes before."""
    return any(int(os.environ.get(name, 0)) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _known(error: Exception, cfg: Config, folder: Path) -> UserError | None:
    """The mistake behind an exception of the system; None if it is not known."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return UserError(
            f"data.batch_size={cfg.data.batch_size}: out of memory; try half of it with "
            "trainer.accumulate_grad_batches=2, a smaller data.resize, a larger model.ratio, or "
            "trainer.precision=bf16-mixed",
            1,
        )
    if isinstance(error, OSError) and error.errno in DISK:
        return UserError(
            f"{error.filename or folder}: {error.strerror}; make it writable or make room, then "
            f"{resume.OPTION}{folder}",
            1,
        )
    return None


def _record(folder: Path, content: dict[str, Any]) -> None:
    if not is_worker():
        try:
            manifest.write(folder, content)
        except OSError as error:
            print(f"vggexp: {folder / layout.RESULT}: {error.strerror}: not written", file=sys.stderr)


@contextmanager
def _output(path: Path) -> Iterator[None]:
    """Leads this process's standard output and error into a file, those of libraries and child processes, too."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(before, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
