"""What a grid and a search have in common: a folder with a record, jobs that are launched, shown and stopped."""

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from vggexp.config import compose
from vggexp.config.compose import Session
from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.jobs import job
from vggexp.jobs.overview import Overview, Watched
from vggexp.runs import layout, tables
from vggexp.runs import read as runs
from vggexp.system import files, paths, terminal
from vggexp.system.signals import Interrupted, Signals

OPTION = "sweep="
ITS_OWN = ("hydra.", "hydra/", "allowed_packages=", "search.n_trials=", "search.at_once=")
"""What a sweep may be given anew: where it runs, whom its user trusts, how long it searches; not what it is."""

PATIENCE = 60.0
"""Seconds that a job gets to save and stop."""


class Entry(NamedTuple):
    """A job of a sweep, and its place."""

    folder: Path
    overrides: list[str]
    cfg: Config


def option(args: list[str]) -> list[str]:
    """The command line that a sweep was started with, where `sweep=FOLDER` or `sweep=last` asks for it to go on.

    Raises:
        UserError: there is none, or an argument would change it.
    """
    (named,) = [arg for arg in args if arg.startswith(OPTION)][:1]
    others = [arg for arg in args if not arg.startswith(OPTION) and arg not in ("-m", "--multirun")]
    for other in others:
        if not other.startswith(ITS_OWN):
            raise UserError(f"{other}: cannot go with sweep=; the sweep's own arguments are used")
    folder = _named(named.removeprefix(OPTION))
    content = read(folder)
    stored = [arg for arg in content["arguments"] if not arg.startswith(("allowed_packages=", "hydra.sweep.dir="))]
    stored = [arg for arg in stored if not any(_key(arg) == _key(other) for other in others)]
    return [*stored, *others, compose.place("hydra.sweep.dir", folder)]


def _key(argument: str) -> str:
    return argument.partition("=")[0]


def _named(name: str) -> Path:
    folders = sorted(paths.outputs().glob(f"*/{layout.SWEEP}"), key=lambda path: _started(path.parent))
    if name == "last" and not Path(name).exists():
        if not folders:
            raise UserError(f"{OPTION}last: there is no sweep under {paths.outputs()}/; start one, or name its folder")
        return folders[-1].parent
    if not (Path(name) / layout.SWEEP).is_file():
        raise UserError(f"{OPTION}{name}: holds no {layout.SWEEP}, so it is no sweep's folder; name one, or last")
    return Path(name)


def latest() -> Path:
    """The folder of the sweep or run that was started last.

    Raises:
        UserError: there is none.
    """
    root = paths.outputs()
    sweeps = [path.parent for path in root.glob(f"*/{layout.SWEEP}")]
    alone = [path.parent for path in root.glob(f"*/{layout.RESULT}")]
    if not sweeps + alone:
        raise UserError(f"last: there is no sweep and no run under {root}/; start one, or name its folder")
    started = {folder: _started(folder) for folder in sweeps}
    started |= {folder: str(runs.read(folder).result.get("started")) for folder in alone}
    return max(started, key=lambda folder: started[folder])


def _started(folder: Path) -> str:
    try:
        return str(read(folder).get("started"))
    except UserError:
        return ""


def read(folder: Path) -> dict[str, Any]:
    """A sweep's `sweep.json`.

    Raises:
        UserError: it is not what a sweep writes.
    """
    try:
        content: dict[str, Any] = json.loads((folder / layout.SWEEP).read_text(encoding="utf-8"))
        texts = [entry[key] for entry in content["jobs"] for key in ("folder", "config_hash")] + content["arguments"]
        leaving = any(Path(entry["folder"]).is_absolute() or ".." in entry["folder"] for entry in content["jobs"])
        if leaving or not all(isinstance(text, str) for text in texts):
            raise ValueError("it is not what a sweep writes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        place = f"{folder}: its {layout.SWEEP} cannot be read"
        raise UserError(f"{place} ({error}); name another hydra.sweep.dir") from error
    return content


def place(hydra: Session, identity: str) -> Path:
    """The folder of a sweep: where the same has been begun before, the last such place.

    Raises:
        UserError: it cannot be used.
    """
    folder = Path(str(hydra.raw.hydra.sweep.dir))
    if compose.run_name() in str(folder):  # nobody has named it
        same = [path.parent for path in folder.parent.glob(f"*/{layout.SWEEP}") if _is(path.parent, identity)]
        folder = max(same, key=_started, default=folder)
    if (folder / layout.RESULT).exists():
        raise UserError(f"hydra.sweep.dir={folder}: holds a run already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"hydra.sweep.dir={folder}: {error.strerror}; name a folder that can be written", 1) from error
    return folder


def _is(folder: Path, identity: str) -> bool:
    try:
        return bool(read(folder).get("identity") == identity)
    except UserError:
        return False


def write(folder: Path, argv: list[str], jobs: list[dict[str, Any]], identity: str) -> None:
    """Replaces `sweep.json`: what a later start needs to know.

    Raises:
        UserError: it cannot be written.
    """
    content = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": sys.argv,
        "arguments": argv,
        "identity": identity,
        "jobs": jobs,
    }
    try:
        files.write_text(folder / layout.SWEEP, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"hydra.sweep.dir={folder}: {error.strerror}; name a folder that can be written", 1) from error


def launch(hydra: Session, folder: Path, entries: Sequence[Entry]) -> None:
    """Has Hydra's launcher train, as many at once as it does; returns when all have ended.

    Raises:
        UserError: the launcher cannot do it.
    """
    launcher, config = hydra.launcher(job.of_sweep, folder.resolve())
    OmegaConf.save(config, folder / "multirun.yaml")
    for name in ("hydra", "hydra_plugins"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the overview says it
    jobs = [
        [
            *entry.overrides,
            compose.place("hydra.sweep.dir", folder.resolve()),
            compose.place("hydra.sweep.subdir", entry.folder.relative_to(folder)),
        ]
        for entry in entries
    ]
    size = config.hydra.sweeper.max_batch_size or len(jobs)
    name = config.hydra.runtime.choices["hydra/launcher"]
    if name == "submitit_local":  # starts all at once; the other launchers divide the threads themselves
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // min(size, len(jobs)))))
    try:
        for first in range(0, len(jobs), size):
            launcher.launch(jobs[first : first + size], initial_job_idx=first)
    except Exception as error:
        raise UserError(f"hydra/launcher={name}: {type(error).__name__}: {' '.join(str(error).split())}", 1) from error


@contextmanager
def conducted(watched: dict[Path, Watched], folder: Path, total: int = 0) -> Iterator[None]:
    """Shows a sweep while it runs; a signal stops its jobs, so that they save, before it leaves here.

    Args:
        total: how many jobs there will be, if more than are watched yet.

    Raises:
        Interrupted: by a signal.
    """
    (folder / layout.STOP).unlink(missing_ok=True)
    stopping: list[int] = []

    def stop(signum: int) -> None:
        if not stopping:
            stopping.append(signum)
            (folder / layout.STOP).touch()
            _stop_jobs(list(watched))

    with Overview(watched, total), Signals(stop):
        yield


@contextmanager
def concluded(folder: Path) -> Iterator[None]:
    """Closes with the table of what is done, however the sweep ends."""
    try:
        try:
            yield
        finally:
            tables.show_sweep(folder)
    except Interrupted as stop:
        again = f"{job.COMMAND} {OPTION}{terminal.short(folder)}"
        print(f"vggexp: stopped by {stop}; to go on: the same command, or {again}", file=sys.stderr)
        raise


def _stop_jobs(folders: Sequence[Path]) -> None:
    """Asks the jobs on this machine to stop, and waits until they have."""
    end = time.monotonic() + PATIENCE
    asked: set[int] = set()
    while running := [run for folder in folders if (run := runs.read(folder)).status == "running"]:
        here = [run for run in running if run.result.get("host") == socket.gethostname()]
        for pid in {run.result["pid"] for run in here} - asked - {os.getpid()}:
            asked.add(pid)
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGTERM)
        if not here or time.monotonic() > end:
            return
        time.sleep(0.1)


def refuse_processes(cfg: Config) -> None:
    """
    Raises:
        UserError: a job of a sweep would start further processes, and each of them would run the sweep.
    """
    devices = cfg.trainer.devices
    if devices == "auto" and cfg.trainer.accelerator != "cpu":
        import torch

        devices = max(1, torch.cuda.device_count())
    if (len(devices) if isinstance(devices, list) else devices) not in ("auto", 1) or cfg.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: several processes cannot train within --multirun; set "
            "trainer.devices=1, or start the combinations one by one without --multirun"
        )
