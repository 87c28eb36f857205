"""A sweep while it runs: its progress, what failed, what is best so far, how long it will take."""

import functools
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from vggexp.config.schema import Config
from vggexp.runs import layout, metrics, read
from vggexp.runs.read import Run
from vggexp.system import terminal

OVER = ("completed", "pruned", "failed", "unreadable")  # a job of this status has ended
SCORES = (metrics.OBJECTIVE, metrics.WITHOUT_VALIDATION)
RUNNING = ("train/loss", metrics.OBJECTIVE)
SHOWN = 8  # running jobs that have a line of their own


class Entry(NamedTuple):
    """A job of a sweep, and its folder."""

    folder: Path
    overrides: list[str]
    cfg: Config
    label: str = ""  # what sets it apart from the others


class Overview:
    """Reads the jobs' folders, wherever they run; a terminal shows progress, a file gets a line for each event."""

    def __init__(self, jobs: dict[Path, Entry], known: Sequence[Run] = (), total: int = 0) -> None:
        self.jobs, self._total = jobs, total
        self.console = Console(file=terminal.steady(os.dup(1), sys.stdout.encoding), highlight=False)
        # what an earlier start has done is not an event
        self.seen = {run.folder: run for run in known if run.status in ("completed", "pruned")}
        self._heard: dict[Path, tuple[float, float]] = {}
        self._looking = threading.Lock()
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._watch, daemon=True)
        self._begun, self._before = time.monotonic(), 0.0

    def __enter__(self) -> Self:
        self._before = sum(self._done(run) for run in self.seen.values())
        if self.console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.look()
        self._live.stop()
        self.console.file.close()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self.look()

    def look(self) -> list[Run]:
        """Reads, once more, the runs that have not completed; returns all."""
        with self._looking:
            names = functools.cache(lambda place: {*place.iterdir()} if place.is_dir() else set())
            for folder, job in list(self.jobs.items()):
                before = self.seen.get(folder)
                if before is not None and before.status in ("completed", "pruned"):
                    continue
                begun = folder in names(folder.parent)  # without a question to the disk for each job that waits
                self.seen[folder] = run = read.read(folder) if begun else Run(folder, "waiting", "", {}, {})
                if before is None or before.status != run.status:
                    self._print(run, job)
            if self.console.is_terminal:
                self._live.update(self._picture(), refresh=True)
            return list(self.seen.values())

    def _print(self, run: Run, job: Entry) -> None:
        if run.status == "waiting" or (run.status == "running" and self.console.is_terminal):
            return
        text = f"{run.folder.name}  {run.status}  {job.label}"
        text += f"  on {run.result.get('host')}" if run.status == "running" else ""
        if run.status == "completed":
            scores = [f"{name} {metrics.text(name, run.number(name))}" for name in SCORES if name in run.result]
            text = "  ".join([text, *scores, f"{metrics.text('seconds', run.result['seconds'])} s"])
        elif run.reason:
            text += f"  {run.reason}"
        if run.status != "running":
            text = f"[{self._count(*OVER)}/{self.total}]  {text}"
        self.console.print(text, style="red" if run.status in ("failed", "unreadable") else "", soft_wrap=True)

    @property
    def total(self) -> int:
        """How many jobs there will be."""
        return max(self._total, len(self.jobs))

    def _count(self, *statuses: str) -> int:
        return sum(run.status in statuses for run in self.seen.values())

    def _picture(self) -> RenderableType:
        done, running, failed = self._count("completed", "pruned"), self._count("running"), self._count(*OVER[2:])
        waiting = self.total - done - running - failed
        words = [f"{done}/{self.total} done", f"{running} running", f"{waiting} waiting", f"{failed} failed"]
        if best := metrics.best(self.seen.values(), lambda run: run.score(metrics.OBJECTIVE)):
            label = self.jobs[best.folder].label or best.folder.name
            words.append(f"best {metrics.OBJECTIVE} {best.result[metrics.OBJECTIVE]:.4f} ({label})")
        if (left := self.seconds_left()) is not None:
            words.append(f"about {duration(left)} left")
        bar = Table.grid()
        bar.add_row(ProgressBar(total=self._work(), completed=sum(map(self._done, self.seen.values())), width=60))
        hosts = {str(run.result.get("host")) for run in self.seen.values() if run.status == "running"}
        words += [f"on {len(hosts)} hosts"] if len(hosts) > 1 else []
        lines = Table.grid(padding=(0, 2))
        for run in [run for run in self.seen.values() if run.status == "running"][:SHOWN]:
            epochs = read.epochs(run.folder)
            last = epochs[-1] if epochs else {}
            scores = "  ".join(f"{name} {last[name]:.4f}" for name in RUNNING if name in last)
            job = self.jobs[run.folder]
            epoch = f"epoch {len(epochs) + 1}/{job.cfg.trainer.max_epochs}"
            heard = f"{run.result.get('host')}, heard of {duration(self._silence(run.folder))} ago"
            lines.add_row(run.folder.name, job.label, epoch, scores, heard)
        return Group(bar, " · ".join(words), lines)

    def _silence(self, folder: Path) -> float:
        """Seconds since a file of a run was seen to change, by this machine's clock alone: others may be set wrong."""
        files = [folder / layout.RESULT, folder / layout.METRICS, layout.checkpoint(folder, layout.LAST)]
        changed = max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
        if changed != self._heard.get(folder, (None,))[0]:
            self._heard[folder] = changed, time.monotonic()
        return time.monotonic() - self._heard[folder][1]

    def _work(self) -> float:
        return sum(work(job.cfg) for job in self.jobs.values()) * self.total / max(1, len(self.jobs))

    def _done(self, run: Run) -> float:
        cfg = self.jobs[run.folder].cfg
        over = 0.0 if run.status == "waiting" else 1.0
        done = run.status in (*OVER, "waiting")
        share = over if done else len(read.epochs(run.folder)) / max(1, cfg.trainer.max_epochs)
        return work(cfg) * min(1.0, share)

    def seconds_left(self) -> float | None:
        """Estimated from the work done since the sweep was started; None before anything is done."""
        done = sum(self._done(run) for run in self.seen.values())
        if done <= self._before:
            return None
        return (time.monotonic() - self._begun) * (self._work() - done) / (done - self._before)


def work(cfg: Config) -> float:
    """A rough measure of what there is to compute: pixels times epochs, less for narrower networks."""
    ratio = float(cfg.model.spec().get("ratio") or 1)
    return cfg.data.size**2 * cfg.trainer.max_epochs / ratio


def duration(seconds: float) -> str:
    """A time as it is printed."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{max(1, round(seconds))} s"
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"
