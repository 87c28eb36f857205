"""`--multirun search=optuna`: Optuna chooses the configs, by val/acc; its study outlives every process."""

import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from vggexp.config import compose
from vggexp.config.schema import Config, flatten
from vggexp.config.schema import Search as Settings
from vggexp.errors import UserError, described
from vggexp.jobs.overview import Entry
from vggexp.jobs.sweep import Sweep, refuse_processes, watched
from vggexp.runs import layout, metrics, read
from vggexp.system import files, terminal

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
FAILED = ("failed", "unreadable")
TRIES = 3  # starts of a trial whose process is killed each time, perhaps for want of memory

JOURNAL = "journal:"
SECRET = re.compile(r"://[^/:@]*:[^@]+@|[?&]\w*(?:password|passwd|pwd)=", re.IGNORECASE)
"""A password in the URL of a database, which would be in the command and the file of every trial."""

Space = dict[str, tuple[BaseDistribution, list[str]]]
"""What is searched, by key: a distribution and, where it is a choice, the texts of its values."""


class Search(Sweep):
    """Tries configs until the study has as many finished trials as it should."""

    def sweep(self, arguments: list[str]) -> int:
        self.settings = compose.validate(OmegaConf.to_container(self.session.search, resolve=True), Settings, "search.")
        if SECRET.search(self.settings.storage or ""):
            where = "put it where the database's driver looks for it, for PostgreSQL into ~/.pgpass or PGPASSWORD"
            raise UserError(f"search.storage: holds a password, which the trials' folders would show; {where}")
        self.space, self.fixed = self._space()
        first = [f"{key}={texts[0]}" for key, (_, texts) in self.space.items() if texts]
        cfg = self.session.job([*self.fixed, *first]).cfg
        if self.other_code == "now":
            raise UserError("code=now: a study keeps its trials; name another hydra.sweep.dir, or set code=any")
        if cfg.data.val_size == 0:
            raise UserError("data.val_size=0: a search needs a validation set; set data.val_size=5000")
        refuse_processes(cfg)
        how = self.settings.model_dump(exclude={"n_trials", "at_once", "space"})
        parts = [how, self.fixed, {key: str(dimension) for key, dimension in self.space.items()}]
        # the same for two starts that share a study
        identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        folder = self.folder(identity)
        self.check_code(folder, [read.read(path.parent) for path in folder.glob(f"*/{layout.RESULT}")], cfg)
        common = self._check_common(folder, cfg)
        self.storage = self.settings.storage or f"sqlite:///{folder.resolve() / layout.STUDY}"
        if self.storage.startswith(JOURNAL):
            self.storage = f"{JOURNAL}{Path(self.storage.removeprefix(JOURNAL)).resolve()}"
        with FileLock(folder / layout.LOCK):  # two that begin at once would both make the tables of a new database
            study = self._study(folder.name)
        self._check_space(study)
        self.write(folder, arguments, [], identity, common=common)
        failures = self._search(study, folder)
        if study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            best = study.best_trial
            score, where = metrics.text(metrics.OBJECTIVE, best.value), terminal.short(folder / str(best.number))
            terminal.say(f"best {metrics.OBJECTIVE} {score} in {where}: {' '.join(self._overrides(best))}")
        return int(failures > 0)

    def _study(self, name: str) -> optuna.Study:
        """The study, created where it does not exist yet."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        settings = self.settings
        pruners: dict[str | None, optuna.pruners.BasePruner] = {
            None: optuna.pruners.NopPruner(),
            "median": optuna.pruners.MedianPruner(settings.startup_trials, settings.warmup_epochs),
            "hyperband": optuna.pruners.HyperbandPruner(min_resource=settings.warmup_epochs),
        }
        how: Any = {"direction": "maximize", "load_if_exists": True, "pruner": pruners[settings.pruner]}
        try:
            return optuna.create_study(study_name=settings.study or name, storage=opened(self.storage), **how)
        except Exception as error:
            raise UserError(f"search.storage={self.storage}: cannot be used: {described(error)}", 1) from error

    def _search(self, study: optuna.Study, folder: Path) -> int:
        """Returns how many trials failed."""
        jobs: dict[Path, Entry] = {}
        failures, wanted = 0, self.settings.n_trials
        killed: Counter[int] = Counter()  # how often each trial has ended without a word
        with watched(jobs, folder, total=wanted):
            while _finished(study) < wanted:
                with contextlib.ExitStack() as locks:
                    with FileLock(folder / layout.LOCK):  # else two processes could take the last trial's place
                        trials = self._next(study, folder, locks)
                    entries = [self._entry(study, trial, folder) for trial in trials]
                    for entry in entries:
                        self.refuse_other(entry, read.read(entry.folder))
                    jobs |= {entry.folder: entry for entry in entries}
                    if entries:
                        self.launch(folder, entries)
                    else:
                        time.sleep(1)  # other processes are at the last trials
                    ended = [read.read(entry.folder) for entry in entries]
                    for trial, run in zip(trials, ended, strict=True):
                        killed[trial.number] += run.status == "interrupted"
                        _report(study, trial, run, give_up=killed[trial.number] == TRIES)
                failed = [run for run in ended if run.status in FAILED or killed[int(run.folder.name)] == TRIES]
                failures += len(failed)
                if failed and len(study.get_trials(deepcopy=False, states=[TrialState.FAIL])) >= wanted:
                    raise UserError(f"search: {wanted} trials have failed, the last because: {failed[-1].reason}", 1)
        return failures

    def _entry(self, study: optuna.Study, trial: FrozenTrial, folder: Path) -> Entry:
        """The job of a trial, with the file by which its run finds the study."""
        job = self.session.job([*self.fixed, *self._overrides(trial)])
        content = {"storage": self.storage, "study": study.study_name, "number": trial.number}
        files.write_text(folder / str(trial.number) / layout.TRIAL, json.dumps(content) + "\n")
        return Entry(folder / str(trial.number), job.overrides, job.cfg, " ".join(self._overrides(trial)))

    def _space(self) -> tuple[Space, list[str]]:
        """What is searched, and the arguments that are fixed."""
        given = {override.get_key_element(): override for override in self.session.overrides}
        default = {key: self.session.parse([f"{key}={text}"])[0] for key, text in self.settings.space.items()}
        found = {}
        for key, override in (default | given).items():
            if override.is_sweep_override():
                found[key] = _distribution(override)
            elif key not in given:
                one = f"search.space.{key}={self.settings.space[key]}"
                raise UserError(f"{one}: is one value; give a choice or an interval")
        fixed = [text for text in self.session.task_overrides() if text.partition("=")[0] not in found]
        return found, fixed

    def _check_common(self, folder: Path, cfg: Config) -> dict[str, Any]:
        """What all trials have in common; refuses what the trials before had otherwise."""
        searched = tuple(f"{key}." for key in self.space)
        common = {k: v for k, v in flatten(cfg.values()).items() if not f"{k}.".startswith((*searched, "allowed_"))}
        then = read.sweep_value(folder, "common")
        for key in (common.keys() & then.keys()) if isinstance(then, dict) else ():
            if common[key] != then[key]:
                was = f"the search in {terminal.short(folder)} has {then[key]}"
                raise UserError(f"{key}={common[key]}: {was}; name another hydra.sweep.dir")
        return common

    def _check_space(self, study: optuna.Study) -> None:
        """Refuses a space that contradicts the study's trials; it may have more keys, fewer, and other intervals."""
        for trial in study.get_trials(deepcopy=False):
            for key in trial.distributions.keys() & self.space.keys():
                was, now = trial.distributions[key], self.space[key][0]
                try:
                    optuna.distributions.check_distribution_compatibility(was, now)
                except ValueError as error:
                    changed = f"the study {study.study_name} has searched {was}, this would be {now}"
                    raise UserError(f"{key}: {changed}; name another hydra.sweep.dir or search.study") from error

    @staticmethod
    def _overrides(trial: FrozenTrial) -> list[str]:
        return [f"{key}={value}" for key, value in trial.params.items()]

    def _next(self, study: optuna.Study, folder: Path, locks: contextlib.ExitStack) -> list[FrozenTrial]:
        """Trials that a process has left, and new ones; no other process works on them while `locks` is open."""
        settings, others = self.settings, 0
        trials: list[FrozenTrial] = []
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            here = settings.storage is None or (folder / str(trial.number)).is_dir()
            if len(trials) < settings.at_once and here and _lock(folder, trial.number, locks):
                place = folder / str(trial.number)
                if trial.params.keys() < self.space.keys() and not (place / layout.TRIAL).exists():
                    study.tell(trial.number, state=TrialState.FAIL)  # its process died while it chose the values
                else:
                    trials.append(trial)
            else:
                others += 1
        while len(trials) < min(settings.at_once, settings.n_trials - _finished(study) - others):
            # the choice depends on what the study holds, not on how often it was killed
            seeds = np.random.SeedSequence([settings.seed, len(study.get_trials(deepcopy=False))])
            seed = int(seeds.generate_state(1)[0])
            study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.startup_trials)
            number = self._ask(study, folder)
            if _lock(folder, number, locks):  # else another process has taken it for one that was left
                trials.append(study.get_trials()[number])
        return trials

    def _ask(self, study: optuna.Study, folder: Path) -> int:
        """A new trial's number."""
        before = len(study.get_trials(deepcopy=False))
        place = folder / str(before)
        place.mkdir(exist_ok=True)  # first: by its folder, a trial is found whose process dies in this moment
        try:
            number = study.ask({key: distribution for key, (distribution, _) in self.space.items()}).number
            if number != before:  # another sweep, in another folder, shares the study
                place.rmdir()
            return number
        except Exception as error:
            for trial in study.get_trials(deepcopy=False)[before:]:  # it may have been made before something failed
                if trial.state == TrialState.RUNNING and (folder / str(trial.number)).exists():
                    study.tell(trial.number, state=TrialState.FAIL)
            raise UserError(f"search: Optuna cannot choose values: {described(error)}", 1) from error


def _distribution(override: Override) -> tuple[BaseDistribution, list[str]]:
    value, text = override.value(), override.input_line
    try:
        if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind: Any = IntDistribution if whole else FloatDistribution
            return kind(value.start, value.end, log="log" in value.tags), []
        if isinstance(value, RangeSweep) or (isinstance(value, ChoiceSweep) and value.list):
            texts = list(override.sweep_string_iterator())
            return CategoricalDistribution(texts), texts
    except ValueError as error:
        raise UserError(f"{text}: {error}") from error
    raise UserError(f"{text}: is not a choice, range or interval of values")


def opened(storage: str) -> str | optuna.storages.BaseStorage:
    """What Optuna takes for the name of a storage: a URL, or a journal, to which hosts append on a disk they share."""
    if not storage.startswith(JOURNAL):
        return storage
    file = storage.removeprefix(JOURNAL)  # its lock is a file: a link is what a sweep's folder must not hold
    return optuna.storages.JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def _lock(folder: Path, number: int, locks: contextlib.ExitStack) -> bool:
    """Whether no other process works on a trial; none will from now on.

    The system, or the server of a shared disk, ends the lock of a process or host that dies. Unlike Optuna's heartbeat,
    it does so for any storage, the trial keeps its checkpoints, and one that is slow is never taken for dead.
    """
    (folder / str(number)).mkdir(exist_ok=True)
    with contextlib.suppress(Timeout):
        locks.enter_context(FileLock(folder / str(number) / layout.TRIAL_LOCK, timeout=0))
        return True
    return False


def _report(study: optuna.Study, trial: FrozenTrial, run: read.Run, give_up: bool) -> None:
    """Tells the study how a trial ended; of an interrupted run nothing, unless it is given up: its trial continues."""
    if run.status == "completed":
        study.tell(trial.number, run.result[metrics.OBJECTIVE], skip_if_finished=True)
    elif run.status == "pruned" or run.status in FAILED or give_up:
        state = TrialState.PRUNED if run.status == "pruned" else TrialState.FAIL
        study.tell(trial.number, state=state, skip_if_finished=True)
