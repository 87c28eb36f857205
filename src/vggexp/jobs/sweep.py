"""What a grid and a search share: a folder with `sweep.json`, jobs that are launched, watched and stopped."""

import itertools
import json
import logging
import os
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vggexp.config import compose, messages
from vggexp.config.compose import Session
from vggexp.config.schema import Config, flatten
from vggexp.errors import UserError, described
from vggexp.jobs import job, launcher
from vggexp.jobs.overview import OVER, Entry, Overview
from vggexp.runs import code, layout, manifest, read, resume, select, tables
from vggexp.system import files, paths, signals, terminal
from vggexp.system.signals import Interrupted, Signals

GRID = "vggexp.jobs.grid.Grid"
CHANGEABLE = ("hydra.", "hydra/", "allowed_packages=", "search.n_trials=", "search.at_once=", "search.storage=")
"""What a resumed sweep may be given anew: where it runs, whom its user trusts, how long it searches; not what it is."""
KEPT = re.compile(
    r"hydra/launcher=(processes|joblib|ray|submitit_local|submitit_slurm)"
    r"|hydra\.launcher\.\w+=(\d+|fork|spawn|forkserver)"
    r"|[+~]{0,2}(?!hydra|allowed_packages|data\.cache_dir|logger\.uri|search\.storage)[\w./]+=(?!.*\$\{).*",
    re.DOTALL,
)
"""What `sweep.json` may say for a later start: what is trained, and by which of the project's own launchers."""
FLAGS = ("--config-dir=", "--config-path=", "--config-name=")

PATIENCE = 60.0  # seconds that a job gets to save and stop

CODE = ("any", "now")
"""What `code=` may say of runs that other code has made: they count as they are, or they are trained again."""


def start(session: Session, args: list[str], again: bool, other_code: str | None = None) -> int:
    """Starts many runs, or with `again` resumes those of `sweep=`; returns the exit code."""
    settings = session.raw.hydra
    if settings.sweeper._target_ != GRID:
        name = settings.runtime.choices["hydra/sweeper"]
        raise UserError(f"hydra/sweeper={name}: leave it out; {compose.SEARCH} searches among values")
    sweeper: Sweep
    if session.search is None:
        from vggexp.jobs.grid import Grid

        sweeper = Grid(session, again, other_code)
    else:
        if find_spec("optuna") is None:
            raise UserError(f"{compose.SEARCH}: Optuna is not installed; {paths.install('search')}", 1)
        from vggexp.jobs.search import Search

        sweeper = Search(session, again, other_code)
    launcher.make(session, job.start_in_sweep, session.raw)  # refuses a wrong one before anything is written
    return sweeper.sweep(args)


def arguments(name: str, args: list[str]) -> list[str]:
    """The command line that a sweep was started with, for `sweep=FOLDER` or `sweep=last` to continue it."""
    others = [arg for arg in args if arg not in ("-m", "--multirun")]
    for other in others:
        if not other.startswith((*CHANGEABLE, *FLAGS)):
            raise UserError(f"{other}: cannot be combined with sweep=; the sweep's own arguments are used")
    folder = select.sweep(name, "sweep")
    given = {other.partition("=")[0] for other in others} | {"hydra.sweep.dir"}
    known = {"-m", "--multirun", *given}
    stored = [arg for arg in read.sweep(folder)["arguments"] if arg.partition("=")[0] not in known]
    kept = [arg for arg in stored if KEPT.fullmatch(arg)]
    if dropped := [arg for arg in stored if arg not in kept]:
        text = f"{layout.SWEEP} grants no trust: left out {' '.join(map(terminal.quoted, dropped))}"
        terminal.say(f"sweep={terminal.short(folder)}: {text}; type again what you trust", stderr=True)
    return [*kept, *others, messages.quote("hydra.sweep.dir", folder)]


class Sweep(ABC):
    """Trains many configs in one folder, by Hydra's launchers; with `again`, only those that were asked for before."""

    def __init__(self, session: Session, again: bool = False, other_code: str | None = None) -> None:
        self.session, self.again, self.other_code = session, again, other_code

    @abstractmethod
    def sweep(self, arguments: list[str]) -> int:
        """Trains what the command line asks for; returns the exit code, 1 if a run did not complete."""

    def folder(self, identity: str) -> Path:
        """The folder of the sweep: the last in which a sweep of the same `identity` was begun, if there is one."""
        folder = Path(str(self.session.raw.hydra.sweep.dir))
        if compose.run_name() in str(folder):  # the user did not name it
            begun = [path.parent for path in folder.parent.glob(f"*/{layout.SWEEP}")]
            same = [sweep for sweep in begun if read.sweep_value(sweep, "identity") == identity]
            folder = max(same, key=read.started, default=folder)
        if (folder / layout.RESULT).exists():
            raise UserError(f"hydra.sweep.dir={folder}: holds a run already; name another folder")
        if (jobs := read.sweep_value(folder, "jobs")) is not None and bool(jobs) == bool(self.session.search):
            other = "grid" if jobs else "search"
            raise UserError(f"hydra.sweep.dir={folder}: holds a {other} already; name another folder")
        with files.writing(folder, f"hydra.sweep.dir={folder}"):
            files.check_folder(folder, f"hydra.sweep.dir={folder}", depth=0)
            return folder

    @staticmethod
    def refuse_other(entry: Entry, found: read.Run) -> None:
        """Refuses a folder in which another run is `found` than the job's; it may have been trained further."""
        if "config" in found.result:
            wanted = flatten(entry.cfg.values())
            try:  # keys may have been added since
                resume.check_same(found.config, {key: value for key, value in wanted.items() if key in found.config})
            except UserError as error:
                place = f"hydra.sweep.dir={terminal.short(entry.folder.parent)}"
                raise UserError(f"{place}: {entry.folder.name} is another run: {error}; name another folder") from None

    def write(self, folder: Path, args: list[str], jobs: list[dict[str, Any]], identity: str, **more: Any) -> None:
        """Replaces `sweep.json`: what a later start needs to know."""
        content = {**manifest.origin(), "arguments": args, "identity": identity, "jobs": jobs, **more}
        with files.writing(folder, f"hydra.sweep.dir={folder}"):
            files.write_text(folder / layout.SWEEP, json.dumps(content, indent=1) + "\n")

    def check_code(self, folder: Path, runs: Sequence[read.Run], cfg: Config) -> list[read.Run]:
        """Lets no runs of other code stand beside new ones in silence; `code=` says what to do with them.

        Returns the runs as they are then.
        """
        now = {package.name: package.summary() for package in code.current(cfg.allowed_packages)}
        others: dict[Path, list[str]] = {}
        for run in runs:
            begun = run.status in ("completed", "pruned") or layout.checkpoint(run.folder, layout.LAST).exists()
            if begun and run.status != "running":
                files, start = code.changed(run.folder, run.result.get("code"), now), run.config.get("model.weights")
                files += [start] if start and run.result.get("weights") != manifest.weights(start) else []
                others |= {run.folder: files} if files else {}
        if not others:
            return list(runs)
        files = list(dict.fromkeys(file for files in others.values() for file in files))
        names = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        text = f"{len(others)} {'was' if len(others) == 1 else 'were'} done by other code ({names} changed)"
        if self.other_code is None:
            again = "code=any keeps them, code=now trains them again and puts the old runs aside"
            raise UserError(f"hydra.sweep.dir={terminal.short(folder)}: {text}; {again}")
        if self.other_code == "now":
            for path in others:
                numbers = (folder / layout.ASIDE / f"{path.relative_to(folder)}-{n}" for n in itertools.count(1))
                aside = next(place for place in numbers if not place.exists())
                aside.parent.mkdir(parents=True, exist_ok=True)
                path.rename(aside)
            text += f" and are now in {terminal.short(folder / layout.ASIDE)}"
        terminal.say(text)
        return [read.read(run.folder) if run.folder in others else run for run in runs]

    def launch(self, folder: Path, entries: Sequence[Entry]) -> None:
        """Has Hydra's launcher train, as many at once as it does; returns when all have ended."""
        config = self.session.sweep_config(folder.resolve())
        made = launcher.make(self.session, job.start_in_sweep, config)
        OmegaConf.save(config, folder / layout.MULTIRUN)
        for name in ("hydra", "hydra_plugins"):
            logging.getLogger(name).setLevel(logging.WARNING)  # the overview says it
        at = messages.quote("hydra.sweep.dir", folder.resolve())
        names = [messages.quote("hydra.sweep.subdir", entry.folder.relative_to(folder)) for entry in entries]
        own = [[o for o in entry.overrides if not o.startswith(("+hydra", "~hydra"))] for entry in entries]
        jobs = [[*given, at, name] for given, name in zip(own, names, strict=True)]  # the others Hydra adds, once
        size = config.hydra.sweeper.max_batch_size or len(jobs)
        name = config.hydra.runtime.choices["hydra/launcher"]
        if name == "submitit_local":  # starts all at once; the other launchers divide the threads themselves
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // min(size, len(jobs)))))
        try:
            for first in range(0, len(jobs), size):
                made.launch(jobs[first : first + size], initial_job_idx=first)
        except Exception as error:
            raise UserError(f"hydra/launcher={name}: {described(error)}", 1) from error


@contextmanager
def watched(
    jobs: dict[Path, Entry], folder: Path, known: Sequence[read.Run] = (), total: int = 0
) -> Iterator[Overview]:
    """Shows a sweep while it runs; a signal stops its jobs, so that they save; the table of what is done comes last.

    What has completed, as those that are `known` may have, is not read again.
    """
    overview = Overview(jobs, known, total)
    layout.tell(folder)
    (folder / layout.STOP).unlink(missing_ok=True)
    stopping: list[int] = []

    def stop(signum: int) -> None:
        if not stopping:
            stopping.append(signum)
            (folder / layout.STOP).touch()
            _stop_jobs([path for path in jobs if path not in overview.seen or overview.seen[path].status not in OVER])

    try:
        with ExitStack() as last, overview, Signals(stop):
            last.callback(tables.show_sweep, folder, overview.seen)
            yield overview
    except Interrupted as stopped:
        again = f"the same command, or vggexp train {terminal.argument(folder, 'sweep')}"
        terminal.say(f"vggexp: stopped by {stopped}; to continue: {again}", stderr=True)
        raise


def _stop_jobs(folders: Sequence[Path]) -> None:
    """Asks the jobs on this machine to stop, and waits until they have."""
    end = time.monotonic() + PATIENCE
    asked: set[int] = set()
    while running := [run for folder in folders if (run := read.read(folder)).status == "running"]:
        folders = [run.folder for run in running]
        here = [run for run in running if run.result.get("host") == socket.gethostname()]
        for pid in {run.result["pid"] for run in here} - asked - {os.getpid()}:
            asked.add(pid)
            signals.ask_to_stop(pid)
        if not here or time.monotonic() > end:
            return
        time.sleep(0.1)


def refuse_processes(cfg: Config) -> None:
    """Refuses a job that would start further processes, because each of them would run the sweep."""
    devices = cfg.trainer.devices
    if devices == "auto" and cfg.trainer.accelerator != "cpu":
        import torch

        devices = max(1, torch.accelerator.device_count())
    if (len(devices) if isinstance(devices, list) else devices) not in ("auto", 1) or cfg.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: several processes cannot train within --multirun; set "
            "trainer.devices=1, or start the combinations one by one without --multirun"
        )
