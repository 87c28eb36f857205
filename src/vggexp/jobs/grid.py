"""`--multirun`: every combination of values, each completed exactly once, however often the sweep is started."""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from vggexp.config.compose import Job
from vggexp.errors import UserError
from vggexp.jobs.overview import Entry
from vggexp.jobs.sweep import Sweep, refuse_processes, watched
from vggexp.runs import layout, manifest, read
from vggexp.system import terminal

LONGEST_NAME = 255  # bytes of the name of a folder


class Grid(Sweep):
    """Trains every config of a command line that is not done yet."""

    def sweep(self, arguments: list[str]) -> int:
        jobs = list({job.cfg.hash(): job for job in self.session.grid()}.values())
        for job in jobs:
            refuse_processes(job.cfg)
        folder = self.folder(_identity(job.cfg.hash() for job in jobs))
        with manifest.lock(folder, f"hydra.sweep.dir={folder}", layout.SWEEP):
            return self._train(folder, self._plan(folder, jobs, arguments))

    def _plan(self, folder: Path, jobs: Sequence[Job], arguments: list[str]) -> list[Entry]:
        """Gives each config its folder, or the one that it had before; writes `sweep.json`."""
        planned = read.sweep(folder)["jobs"] if read.is_sweep(folder) else []
        known = {entry["config_hash"]: entry["folder"] for entry in planned}
        if self.again and not {job.cfg.hash() for job in jobs} <= set(known):
            reason = "its arguments now make other configs, because the project's have changed"
            raise UserError(f"sweep={folder}: {reason}; start a new sweep with the same command")
        for job in jobs:
            if job.cfg.hash() not in known:
                name, number = job.subdir(len(planned)), len(planned)
                if max(map(len, map(os.fsencode, Path(name).parts)), default=0) > LONGEST_NAME:
                    raise UserError(f"hydra.sweep.subdir={name}: is too long a name for a folder; leave it out")
                while (folder / name / layout.RESULT).exists() and job.subdir(number + 1) != name:  # of another start
                    number += 1
                    name = job.subdir(number)
                if name in known.values():
                    raise UserError(f"hydra.sweep.subdir={name}: is the name of two jobs; leave it to be their number")
                known[job.cfg.hash()] = name
                planned.append({"folder": name, "config_hash": job.cfg.hash(), "overrides": job.overrides})
        self.write(folder, arguments, planned, _identity(known))
        return [Entry(folder / known[job.cfg.hash()], job.overrides, job.cfg) for job in jobs]

    def _train(self, folder: Path, entries: Sequence[Entry]) -> int:
        self.check_code(folder, [entry.folder for entry in entries], entries[0].cfg)
        runs = [(entry, read.read(entry.folder)) for entry in entries]
        for entry, run in runs:
            self.refuse_other(entry, run)
        todo = [entry for entry, run in runs if run.status not in ("completed", "running")]
        done = sum(run.status == "completed" for _, run in runs)
        terminal.say(f"{len(entries)} jobs in {terminal.short(folder)}: {done} done, {len(todo)} to do")
        jobs = {e.folder: e._replace(label=label) for e, label in zip(entries, labels(entries), strict=True)}
        for entry in todo:
            (entry.folder / layout.TRIAL).unlink(missing_ok=True)  # belongs to a search, and names a storage
        with watched(jobs, folder):
            if todo:
                self.launch(folder, todo)
            while any(read.read(entry.folder).status == "running" for entry in entries):
                time.sleep(1)  # in another process, which an earlier start has left
        return int(any(read.read(entry.folder).status != "completed" for entry in entries))


def _identity(hashes: Iterable[str]) -> str:
    """The same for two sweeps over the same configs, in whatever order."""
    return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()


def labels(entries: Sequence[Entry]) -> list[str]:
    """The arguments in which jobs differ."""
    common = set.intersection(*(set(entry.overrides) for entry in entries)) if len(entries) > 1 else set()
    return [" ".join(o for o in entry.overrides if o not in common) for entry in entries]
