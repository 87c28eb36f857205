"""`--multirun`: every combination of values, each completed exactly once, however often the sweep is started."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
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
        jobs = {job.cfg.hash(): job for job in self.session.grid()}
        for job in jobs.values():
            refuse_processes(job.cfg)
        folder = self.folder(_identity(jobs))
        with manifest.lock(folder, f"hydra.sweep.dir={folder}", layout.SWEEP):
            return self._train(folder, self._plan(folder, jobs, arguments))

    def _plan(self, folder: Path, jobs: Mapping[str, Job], arguments: list[str]) -> list[Entry]:
        """Gives each config, by its hash, a folder, or the one that it had before; writes `sweep.json`."""
        planned = read.sweep(folder)["jobs"] if read.is_sweep(folder) else []
        known = {entry["config_hash"]: entry["folder"] for entry in planned}
        names = set(known.values())
        if self.again and not jobs.keys() <= known.keys():
            reason = "its arguments now make other configs, because the project's have changed"
            raise UserError(f"sweep={folder}: {reason}; start a new sweep with the same command")
        for config_hash, job in jobs.items():
            if config_hash not in known:
                name, number = job.subdir(len(planned)), len(planned)
                if max(map(len, map(os.fsencode, Path(name).parts)), default=0) > LONGEST_NAME:
                    raise UserError(f"hydra.sweep.subdir={name}: is too long a name for a folder; leave it out")
                while (folder / name / layout.RESULT).exists() and job.subdir(number + 1) != name:  # of another start
                    number += 1
                    name = job.subdir(number)
                if name in names:
                    raise UserError(f"hydra.sweep.subdir={name}: is the name of two jobs; leave it to be their number")
                names.add(name)
                known[config_hash] = name
                planned.append({"folder": name, "config_hash": config_hash, "overrides": job.overrides})
        self.write(folder, arguments, planned, _identity(known))
        return [Entry(folder / known[config_hash], job.overrides, job.cfg) for config_hash, job in jobs.items()]

    def _train(self, folder: Path, entries: Sequence[Entry]) -> int:
        runs = self.check_code(folder, [read.read(entry.folder) for entry in entries], entries[0].cfg)
        pairs = list(zip(entries, runs, strict=True))
        for entry, run in pairs:
            self.refuse_other(entry, run)
        todo = [entry for entry, run in pairs if run.status not in ("completed", "running")]
        done = sum(run.status == "completed" for run in runs)
        terminal.say(f"{len(entries)} jobs in {terminal.short(folder)}: {done} done, {len(todo)} to do")
        jobs = {e.folder: e._replace(label=label) for e, label in zip(entries, labels(entries), strict=True)}
        for entry in todo:
            (entry.folder / layout.TRIAL).unlink(missing_ok=True)  # belongs to a search, and names a storage
        with watched(jobs, folder, runs) as overview:
            if todo:
                self.launch(folder, todo)
            while any(run.status == "running" for run in overview.look()):
                time.sleep(1)  # in another process, which an earlier start has left
        return int(any(run.status != "completed" for run in overview.seen.values()))


def _identity(hashes: Iterable[str]) -> str:
    """The same for two sweeps over the same configs, in whatever order."""
    return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()


def labels(entries: Sequence[Entry]) -> list[str]:
    """The arguments in which jobs differ."""
    common = set.intersection(*(set(entry.overrides) for entry in entries)) if len(entries) > 1 else set()
    return [" ".join(o for o in entry.overrides if o not in common) for entry in entries]
