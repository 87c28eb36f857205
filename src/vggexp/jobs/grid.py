"""`--multirun`: every combination of values, each completed exactly once, however often the sweep is started."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from vggexp.config.compose import Job, Session
from vggexp.errors import UserError
from vggexp.jobs import sweep
from vggexp.jobs.overview import Watched
from vggexp.jobs.sweep import Entry
from vggexp.runs import layout, manifest
from vggexp.runs import read as runs
from vggexp.system import terminal


def start(hydra: Session, argv: list[str], again: bool) -> int:
    """Trains every config of a command line that is not done yet; returns the exit code.

    Args:
        argv: the command line.
        again: only if it asks for what it has asked for before.

    Raises:
        UserError: nothing may start, or the launcher cannot do it.
        Interrupted: by a signal, when the jobs that run have been saved.
    """
    jobs = list({job.cfg.hash(): job for job in hydra.grid()}.values())
    for each in jobs:
        sweep.refuse_processes(each.cfg)
    folder = sweep.place(hydra, _identity(each.cfg.hash() for each in jobs))
    with manifest.lock(folder, f"hydra.sweep.dir={folder}", layout.SWEEP):
        entries = _plan(folder, jobs, argv, again)
        return _train(hydra, folder, entries)


def _identity(hashes: Iterable[str]) -> str:
    """The same for two sweeps over the same configs, in whatever order."""
    return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()


def _plan(folder: Path, jobs: Sequence[Job], argv: list[str], again: bool) -> list[Entry]:
    """Gives each config its folder, and keeps those given before; writes `sweep.json`.

    Raises:
        UserError: two configs would get the same folder, or the sweep that was to go on has other configs by now.
    """
    planned = sweep.read(folder)["jobs"] if (folder / layout.SWEEP).exists() else []
    known = {entry["config_hash"]: entry["folder"] for entry in planned}
    if again and not {each.cfg.hash() for each in jobs} <= set(known):
        raise UserError(
            f"{sweep.OPTION}{folder}: its arguments now make other configs, for the project's have changed; "
            "start a new sweep with the same command"
        )
    entries = []
    for each in jobs:
        name = known.get(each.cfg.hash())
        if name is None:
            name = each.subdir(len(planned))
            if name in [entry["folder"] for entry in planned]:
                raise UserError(f"hydra.sweep.subdir={name}: is the name of two jobs; leave it to be their number")
            planned.append({"folder": name, "config_hash": each.cfg.hash(), "overrides": each.overrides})
        entries.append(Entry(folder / name, each.overrides, each.cfg))
    sweep.write(folder, argv, planned, _identity(entry["config_hash"] for entry in planned))
    return entries


def _train(hydra: Session, folder: Path, entries: Sequence[Entry]) -> int:
    states = {entry.folder: runs.read(entry.folder).status for entry in entries}
    todo = [entry for entry in entries if states[entry.folder] not in ("completed", "running")]
    done = sum(status == "completed" for status in states.values())
    text = f"{len(entries)} jobs in {terminal.short(folder)}: {done} done, {len(todo)} to do"
    terminal.console().print(text, soft_wrap=True)
    watched = {e.folder: Watched(label, e.cfg) for e, label in zip(entries, _labels(entries), strict=True)}
    with sweep.concluded(folder), sweep.conducted(watched, folder):
        if todo:
            sweep.launch(hydra, folder, todo)
        while any(runs.read(entry.folder).status == "running" for entry in entries):
            time.sleep(1)  # in another process, which an earlier start has left
    return int(any(runs.read(entry.folder).status != "completed" for entry in entries))


def _labels(entries: Sequence[Entry]) -> list[str]:
    """The arguments in which jobs differ."""
    common = set.intersection(*(set(entry.overrides) for entry in entries)) if len(entries) > 1 else set()
    return [" ".join(o for o in entry.overrides if o not in common) for entry in entries]
