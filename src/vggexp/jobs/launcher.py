"""Hydra's launchers, and the one that a sweep uses by default: one job after another, each in a process of its own.

Nothing passes from job to job but what a fork server has imported, and a job that is killed takes no other with it.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from vggexp.config.compose import Session
from vggexp.config.messages import one_line
from vggexp.errors import UserError
from vggexp.runs import manifest
from vggexp.system import paths, signals, terminal

PROCESSES = "vggexp.jobs.launcher.Processes"


def context(session: Session) -> HydraContext:
    """What Hydra's own functions need to know; a config cannot name callbacks, so there are none."""
    return HydraContext(config_loader=session.loader, callbacks=Callback())  # type: ignore[arg-type]


def make(session: Session, task: TaskFunction, config: DictConfig) -> Launcher:
    """The launcher that a config names; it calls `task` with the composed config of each job."""
    options: dict[str, Any] = {"hydra_context": context(session), "task_function": task, "config": config}
    if config.hydra.launcher._target_ == PROCESSES:
        launcher = Processes(config.hydra.launcher.start_method)  # Hydra looks for others in its own namespace alone
        launcher.setup(**options)
        return launcher
    try:
        return Plugins.instance().instantiate_launcher(**options)
    except (RuntimeError, ImportError, HydraException) as error:
        name = config.hydra.runtime.choices["hydra/launcher"]
        extra = name.partition("_")[0]
        raise UserError(f"hydra/launcher={name}: {one_line(error)}; {paths.install(extra)}", 1) from None


class Processes(Launcher):
    """One job after another, each in a process that is started by one of multiprocessing's methods."""

    def __init__(self, start_method: str) -> None:
        known = multiprocessing.get_all_start_methods()
        auto = "forkserver" if sys.platform == "linux" else "spawn"  # what macOS loads must not be forked
        self.method = auto if start_method == "auto" else start_method
        if self.method not in known:
            raise UserError(f"hydra.launcher.start_method={start_method}: must be one of auto, {', '.join(known)}")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The return value of a job is its exit code, which is negative where a signal has ended it."""
        setup_globals()
        processes: Any = multiprocessing.get_context(self.method)
        if self.method == "forkserver":
            processes.set_forkserver_preload(["vggexp.jobs.preload"])  # imported once, by a process that never trains
        done = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            process = processes.Process(target=_job, args=(self.context, self.task, config), name=f"job {number}")
            with signals.blocked(), manifest.PROBING:  # of which a process that is forked would inherit too much
                process.start()
            while process.is_alive():
                process.join(1)  # on Windows, Ctrl-C has to wait for it
            done.append(JobReturn(_return_value=process.exitcode, status=JobStatus.COMPLETED))
        return done


def _job(context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
    """The life of a job's process."""
    signals.reset()
    terminal.make_redirectable()
    if hasattr(os, "setsid"):
        os.setsid()  # the terminal's Ctrl-C is for the sweep, which passes it on
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    setup_globals()
    JobRuntime.instance().set("name", config.hydra.job.name)
    done = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    sys.exit(done.return_value)


def _end_with_parent() -> None:
    """Makes the job save and stop when the sweep's process has ended, however it did."""
    wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
    signals.stop()
