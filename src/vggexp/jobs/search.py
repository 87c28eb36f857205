"""`--multirun search=optuna`: Optuna chooses the configs, by val/acc; its study outlives every process."""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from vggexp.config import compose
from vggexp.config.compose import Session
from vggexp.config.schema import Search
from vggexp.errors import UserError
from vggexp.jobs import sweep
from vggexp.jobs.overview import Watched
from vggexp.runs import layout
from vggexp.runs import read as runs
from vggexp.system import files, terminal

STUDY = "study.db"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
FAILED = ("failed", "unreadable")
OBJECTIVE = "val/acc"
TRIES = 3
"""Of a trial whose process is killed each time, perhaps for want of memory."""


def start(hydra: Session, argv: list[str]) -> int:
    """Tries configs until the study has as many finished trials as it should; returns the exit code.

    Raises:
        UserError: nothing may start, or every trial fails.
        Interrupted: by a signal, when the trials that run have been saved.
    """
    settings = compose.validate(OmegaConf.to_container(hydra.search, resolve=True), Search, "search.")
    space, fixed = _space(hydra, settings)
    first = hydra.job([*fixed, *(f"{key}={texts[0]}" for key, (_, texts) in space.items() if texts)])
    if first.cfg.data.val_size == 0:
        raise UserError("data.val_size=0: a search needs a validation set; set data.val_size=5000")
    sweep.refuse_processes(first.cfg)
    folder = sweep.place(hydra, identity := _identity(settings, space, fixed))
    sweep.write(folder, argv, [], identity)
    study = _study(settings, folder)
    watched: dict[Path, Watched] = {}
    failures = 0
    cut_off: Counter[int] = Counter()  # how often each trial has ended without a word
    with sweep.concluded(folder), sweep.conducted(watched, folder, settings.n_trials):
        while _finished(study) < settings.n_trials:
            with contextlib.ExitStack() as held:
                trials = _next(study, settings, space, folder, held)
                entries = []
                for trial in trials:
                    job = hydra.job([*fixed, *_overrides(trial, space)])
                    entry = sweep.Entry(folder / str(trial.number), job.overrides, job.cfg)
                    content = {"storage": _storage(settings, folder), "study": study.study_name, "number": trial.number}
                    files.write_text(entry.folder / layout.TRIAL, json.dumps(content) + "\n")
                    watched[entry.folder] = Watched(" ".join(_overrides(trial, space)), job.cfg)
                    entries.append(entry)
                if entries:
                    sweep.launch(hydra, folder, entries)
                else:
                    time.sleep(1)  # other processes are at the last trials
                ended = [runs.read(entry.folder) for entry in entries]
                for trial, run in zip(trials, ended, strict=True):
                    cut_off[trial.number] += run.status == "interrupted"
                    _tell(study, trial, run, give_up=cut_off[trial.number] == TRIES)
            failed = [run for run in ended if run.status in FAILED or cut_off[int(run.folder.name)] == TRIES]
            failures += len(failed)
            if failed and len(study.get_trials(deepcopy=False, states=[TrialState.FAIL])) >= settings.n_trials:
                raise UserError(f"search: {settings.n_trials} trials have failed, the last for: {failed[-1].reason}", 1)
    _show_best(study, space, folder)
    return int(failures > 0)


def _space(hydra: Session, settings: Search) -> tuple[dict[str, tuple[BaseDistribution, list[str]]], list[str]]:
    """What is searched, by key: a distribution, and where it is a choice the texts of its values; and what is fixed.

    Raises:
        UserError: a part of the space is none.
    """
    given = {override.get_key_element(): override for override in hydra.overrides}
    default = {}
    for key, text in settings.space.items():
        (default[key],) = hydra.parse([f"{key}={text}"])
    found = {}
    for key, override in (default | given).items():
        if override.is_sweep_override():
            found[key] = _distribution(override)
        elif key not in given:
            raise UserError(f"search.space.{key}={settings.space[key]}: is one value; give a choice or an interval")
    fixed = [text for text in hydra.task_overrides() if text.partition("=")[0] not in found]
    return found, fixed


def _distribution(override: Override) -> tuple[BaseDistribution, list[str]]:
    value = override.value()
    text = override.input_line
    try:
        if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
            log = "log" in value.tags
            low, high = value.start, value.end
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log), []
            return FloatDistribution(low, high, log=log), []
        if isinstance(value, RangeSweep) or (isinstance(value, ChoiceSweep) and value.list):
            texts = list(override.sweep_string_iterator())
            return CategoricalDistribution(texts), texts
    except ValueError as error:
        raise UserError(f"{text}: {error}") from error
    raise UserError(f"{text}: is no choice, range or interval of values")


def _overrides(trial: FrozenTrial, space: Mapping[str, Any]) -> list[str]:
    return [f"{key}={trial.params[key]}" for key in space]


def _identity(settings: Search, space: Mapping[str, Any], fixed: list[str]) -> str:
    """The same for two starts that share a study."""
    how = settings.model_dump(exclude={"n_trials", "at_once", "space"})
    parts = [how, fixed, {key: str(dimension) for key, dimension in space.items()}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _study(settings: Search, folder: Path) -> optuna.Study:
    """
    Raises:
        UserError: its storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if settings.pruner == "median":
        pruner = optuna.pruners.MedianPruner(settings.startup_trials, settings.warmup_epochs)
    elif settings.pruner == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(min_resource=settings.warmup_epochs)
    name, storage = settings.study or folder.name, _storage(settings, folder)
    try:
        return optuna.create_study(
            study_name=name, storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
        )
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f"search.storage={storage}: cannot be used: {type(error).__name__}: {text}", 1) from error


def _storage(settings: Search, folder: Path) -> str:
    return settings.storage or f"sqlite:///{folder.resolve() / STUDY}"


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def _next(
    study: optuna.Study,
    settings: Search,
    space: Mapping[str, tuple[BaseDistribution, list[str]]],
    folder: Path,
    held: contextlib.ExitStack,
) -> list[FrozenTrial]:
    """Trials that a process has left, and new ones; nobody else works on them while `held` is open."""
    trials: list[FrozenTrial] = []
    others = 0
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        here = settings.storage is None or (folder / str(trial.number)).is_dir()
        if len(trials) < settings.at_once and here and _hold(folder, trial.number, held):
            trials.append(trial)
        else:
            others += 1
    while len(trials) < min(settings.at_once, settings.n_trials - _finished(study) - others):
        # the choice depends on what the study holds, not on how often it was killed
        seeds = np.random.SeedSequence([settings.seed, len(study.get_trials(deepcopy=False))])
        study.sampler = optuna.samplers.TPESampler(
            seed=int(seeds.generate_state(1)[0]), n_startup_trials=settings.startup_trials
        )
        number = study.ask({key: distribution for key, (distribution, _) in space.items()}).number
        if _hold(folder, number, held):  # else another process has taken it for one that was left
            trials.append(study.get_trials()[number])
    return trials


def _hold(folder: Path, number: int, held: contextlib.ExitStack) -> bool:
    """Whether no other process works on a trial; none will from now on."""
    (folder / str(number)).mkdir(exist_ok=True)
    try:
        held.enter_context(FileLock(folder / str(number) / ".trial.lock", timeout=0))
    except Timeout:
        return False
    return True


def _tell(study: optuna.Study, trial: FrozenTrial, run: runs.Run, give_up: bool) -> None:
    """Of an interrupted run nothing, unless it is given up: its trial goes on."""
    if run.status == "completed":
        study.tell(trial.number, run.result[OBJECTIVE], skip_if_finished=True)
    elif run.status == "pruned":
        study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
    elif run.status in FAILED or give_up:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _show_best(study: optuna.Study, space: Mapping[str, Any], folder: Path) -> None:
    """The config to go on with."""
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        return
    best = study.best_trial
    text = f"best {OBJECTIVE} {best.value:.4f} in {terminal.short(folder / str(best.number))}: "
    terminal.console().print(text + " ".join(_overrides(best, space)), soft_wrap=True)
