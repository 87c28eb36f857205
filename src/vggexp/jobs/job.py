"""One run, alone or in a sweep: starts or resumes it, reports what goes wrong, and keeps its `result.json`."""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from omegaconf import DictConfig

from vggexp.config import compose, messages
from vggexp.config.compose import Session
from vggexp.config.schema import Config
from vggexp.errors import Pruned, UserError, described
from vggexp.jobs import launcher
from vggexp.runs import code, layout, manifest, resume, select, tables
from vggexp.system import files, terminal
from vggexp.system.signals import Interrupted, Signals, reason

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""The errors of a full, broken or protected disk."""


def start(session: Session) -> int:
    """Trains the one config of a command line into a new folder; returns the exit code.

    Where torchrun or SLURM has started the same run before, by its name for it, the run in the folder is resumed.
    """
    job = session.job()
    folder = Path(job.raw.hydra.run.dir)
    if folder.is_dir():
        files.check_folder(folder, f"hydra.run.dir={folder}")
    if (folder / layout.SWEEP).exists():
        raise UserError(f"hydra.run.dir={folder}: holds a sweep; name another folder")
    if not is_worker() and compose.launched() and (folder / layout.RESULT).exists():
        past = manifest.load(folder, f"hydra.run.dir={folder}")
        if past.get("launched") == compose.launched():
            resume.check_same(job.cfg.values(), past["config"])
            return continue_run(job.cfg, folder, past)
    content = manifest.collect(job.cfg, job.raw.hydra.runtime.choices.get("experiment"))
    if not is_worker():
        manifest.claim(folder, content, "hydra.run.dir")
    done = run_job(lambda _: train(job.cfg, folder, content), job.raw, "hydra.run.dir", None, launcher.context(session))
    return int(done.return_value)


def start_in_sweep(raw: DictConfig) -> int:
    """Trains a job of a sweep, in whatever process the launcher has chosen; returns the exit code.

    A run that completed stays as it is, one that was begun is resumed. No exception leaves this function, because it
    would end the launcher; not even an interruption, which is in `result.json`, unless submitit waits for it.
    """
    terminal.prepare()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if (Path(HydraConfig.get().sweep.dir) / layout.STOP).exists():
        return 130
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ.setdefault("OMP_NUM_THREADS", cores)  # not every cluster confines a job to its own
    with _output_to(folder / layout.OUTPUT):
        try:
            cfg = compose.check(raw)
            files.check_folder(folder, f"hydra.sweep.dir={folder.parent}")
            if not (folder / layout.RESULT).exists():
                content = manifest.collect(cfg, HydraConfig.get().runtime.choices.get("experiment"))
                manifest.claim(folder, content, "hydra.sweep.subdir")
                return train(cfg, folder, content, in_sweep=True)
            past = manifest.load(folder, f"resume={folder}")
            done = past["status"] in ("completed", "pruned")
            return 0 if done else continue_run(cfg, folder, past, in_sweep=True)
        except UserError as error:
            return terminal.fail(error)
        except Interrupted as stop:
            if "SUBMITIT_EXECUTOR" in os.environ and reason(stop.signum) == "SIGUSR2":
                signal.raise_signal(stop.signum)  # submitit's, before the time is up: it queues the job again and exits
            if "SLURM_JOB_ID" in os.environ:
                os._exit(stop.exit_code)  # a return would mean success; SLURM may start the job again
            return stop.exit_code


def resume_run(run: str, args: list[str]) -> int:
    """Resumes the run that `resume=` means, if it has anything left to do; returns the exit code."""
    folder = select.run(run, "resume")
    cfg, past = resume.config(folder, args)
    if past["status"] == "completed" and (done := resume.nothing_left(cfg, past)):
        layout.tell(folder)
        terminal.say(f"{folder}: {done}")
        return 0
    # the further processes of trainer=ddp start by the same arguments, and `last` may mean another run by then
    sys.argv = [f"resume={folder.resolve()}" if arg.startswith("resume=") else arg for arg in sys.argv]
    return continue_run(cfg, folder, past)


def continue_run(cfg: Config, folder: Path, past: dict[str, Any], in_sweep: bool = False) -> int:
    """Resumes a run, whose `result.json` is `past`, in its folder; returns the exit code."""
    content = manifest.resumed(manifest.collect(cfg), past)
    if not is_worker():
        for line in manifest.changes(folder, past, content):
            terminal.say(f"{folder}: resumed with {line}", stderr=True)
    return train(cfg, folder, content, past, in_sweep)


def train(
    cfg: Config, folder: Path, content: dict[str, Any], past: dict[str, Any] | None = None, in_sweep: bool = False
) -> int:
    """Trains into a folder, keeping `content` in `result.json`; what goes wrong is printed. Returns the exit code.

    `past` is the `result.json` of a run that is resumed. If it ends before it goes on, the file says that again.
    """
    kept = past if past and (not in_sweep or past["status"] == "completed") else None

    def ends(status: str, why: str) -> None:
        _write(folder, kept or content | {"status": status, "reason": why})

    def interrupted(signum: int) -> None:
        if content["status"] == "running":
            ends("interrupted", reason(signum))

    def begun(epoch: int, batch: int) -> None:
        nonlocal kept
        kept = None
        if past and past["status"] == "completed" and not is_worker():
            manifest.keep_finished(folder)
        if (epoch, batch) != (0, 0):
            content["begins"] |= {"epoch": epoch, "batch": batch}
            _write(folder, content)

    parent = os.getppid()
    if cfg.trainer.strategy == "ddp":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would warn of our choice in each process
    try:
        lock = nullcontext() if is_worker() else manifest.lock(folder, f"resume={folder}")
        with lock, Signals(interrupted) as signals:
            try:
                if not is_worker():
                    if in_sweep and manifest.load(folder, f"resume={folder}")["status"] in ("completed", "pruned"):
                        return 0  # by a process that had the lock until now
                    if not in_sweep:
                        layout.tell(folder)
                    manifest.write(folder, content)
                    code.keep(folder, code.current(cfg.allowed_packages))
                    tables.announce(cfg, folder)
                from vggexp.training.run import run  # torch and Lightning: only now, when nothing is left to refuse

                callbacks = []
                if in_sweep and (folder / layout.TRIAL).exists():
                    from vggexp.jobs.pruning import Pruning

                    callbacks.append(Pruning(folder / layout.TRIAL))
                again = past is not None
                content |= run(cfg, folder, resume=again, signals=signals, callbacks=callbacks, begun=begun)
            except Interrupted as stop:
                interrupted(stop.signum)
                if is_worker():  # Lightning would kill the first process before it has recorded its end
                    return stop.exit_code if "TORCHELASTIC_RUN_ID" in os.environ else 0
                given = {"data.cache_dir": cfg.data.cache_dir, "logger.uri": cfg.logger.uri}  # see `resume.config`
                words = [terminal.quoted(messages.argument(key, value)) for key, value in given.items() if value]
                again_with = " ".join(["vggexp train", terminal.argument(folder, "resume"), *words])
                if "TORCHELASTIC_RUN_ID" in os.environ:
                    from vggexp.training.peers import command

                    again_with = command() or f"the torchrun command, with {again_with}"
                terminal.say(f"vggexp: stopped by {stop}; to continue: {again_with}", stderr=True)
                raise
            except Pruned as stop:
                print(stop)
                ends("pruned", str(stop))
                return 0
            except Exception as error:
                if is_worker() and os.getppid() != parent:
                    return 1  # the first process has ended and said why
                errors = list(_chain(error))
                mistake = next(filter(None, (_known(each, cfg, folder) for each in errors)), None)
                text = str(mistake or "; then ".join(map(described, reversed(errors))))
                ends("failed", text)
                if mistake is not None:
                    first = not int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
                    return terminal.fail(mistake) if first else mistake.exit_code  # one process of each host says it
                traceback.print_exc()
                return 1
            content["status"] = "completed"
            content.pop("finished", None)
            _write(folder, content)
            layout.checkpoint(folder, layout.FINISHED).unlink(missing_ok=True)
    except UserError as error:  # from the lock
        return terminal.fail(error)
    if not is_worker():
        tables.show_result(content, folder)
    return 0


def is_worker() -> bool:
    """Whether this is one of the further processes of trainer=ddp: the first one keeps `result.json`."""
    rank = os.environ.get("SLURM_PROCID") if int(os.environ.get("SLURM_NTASKS", 1)) > 1 else None
    return int(os.environ.get("RANK") or rank or os.environ.get("LOCAL_RANK") or 0) > 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it covers, such as the cause of an error in Lightning's teardown; the first is last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _known(error: BaseException, cfg: Config, folder: Path) -> UserError | None:
    """The message for a mistake or an error of the system; None if it is not one that a user can put right."""
    if not folder.exists():
        return UserError(f"{folder}: was removed while it was trained; start a new run", 1)
    if isinstance(error, UserError):
        return error
    if (known := files.no_temporary_folder(error)) is not None:
        return known
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error)):
        half = "half of it with trainer.accumulate_grad_batches=2"
        remedy = f"{half}, a smaller data.resize, a larger model.ratio, or trainer.precision=bf16-mixed"
        return UserError(f"data.batch_size={cfg.data.batch_size}: out of memory; try {remedy}", 1)
    if isinstance(error, OSError) and error.errno in DISK:
        remedy = f"make it writable or free some space, then {terminal.argument(folder, 'resume')}"
        return UserError(f"{error.filename or folder}: {error.strerror}; {remedy}", 1)
    return None


def _write(folder: Path, content: dict[str, Any]) -> None:
    if not is_worker():
        try:
            manifest.write(folder, content)
        except OSError as error:
            terminal.say(f"vggexp: {folder / layout.RESULT}: {error.strerror}: not written", stderr=True)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Redirects standard output and error into a file, also those of libraries and child processes."""
    with ExitStack() as stack, open(path, "ab", opener=files.no_link) as file:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            before = os.dup(number)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, number)
            stack.callback(stream.flush)
            os.dup2(file.fileno(), number)
        yield
