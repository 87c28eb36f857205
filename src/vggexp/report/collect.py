"""From runs to what a report shows of them."""

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from yaml import YAMLError

from vggexp.config.schema import flatten
from vggexp.runs import layout, metrics
from vggexp.runs import read as runs
from vggexp.runs.read import Run
from vggexp.system import terminal

SEED = "seed"
COLUMNS = (*metrics.COMPARED, "seconds")  # the results in tables of groups

CURVES = (*metrics.SCORES, "images_per_second")
PROGRESS = {"epoch": "epoch", "train_seconds": "seconds of training"}
"""How far training is: what curves are drawn against, with the axis's title."""


class Spread(NamedTuple):
    """One result over some runs."""

    mean: float
    deviation: float | None  # the sample standard deviation; None of a single run


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    values: dict[str, Any]  # what sets the group apart, by axis
    runs: list[Run]

    def spread(self, name: str) -> Spread | None:
        """A result over the completed runs; None if there is none."""
        return spread([run.score(name) for run in self.runs])

    def best(self, name: str) -> Run | None:
        """The completed run with the best result."""
        return metrics.best(self.runs, lambda run: run.score(name), name)

    def text(self, name: str) -> str:
        """A result as it is printed."""
        if (found := self.spread(name)) is None:
            return metrics.text(name, None)
        parts = (found.mean,) if found.deviation is None else (found.mean, found.deviation)
        return " ± ".join(metrics.text(name, part) for part in parts)

    def row(self) -> list[str]:
        """The axes' values, the number of runs and the results of COLUMNS."""
        return [*map(runs.text, self.values.values()), str(len(self.runs)), *map(self.text, COLUMNS)]


class Report(NamedTuple):
    """Runs, and what a report says about them."""

    title: str
    runs: list[Run]
    axes: list[str]  # the keys that vary, without the seed
    objective: str  # val/acc, or test/acc where nothing was validated
    groups: list[Group]  # the best first
    curves: list[list[dict[str, float]]]  # what each run logged at the end of each epoch
    machines: list[str]  # what the completed runs were trained on
    notes: list[str]  # what a reader should know before comparing
    differences: list[tuple[str, str, str]]  # where there are two runs: key, value, other value

    def header(self) -> list[str]:
        """The columns of a table of groups, see `Group.row`."""
        return [*self.axes, "runs", *COLUMNS]

    def best(self) -> Run | None:
        """The completed run that is best by the objective."""
        return Group({}, self.runs).best(self.objective)

    def failures(self) -> list[Run]:
        """The runs that ended without completing."""
        return [run for run in self.runs if run.status in ("failed", "unreadable", "interrupted")]

    def levels(self) -> list[tuple[str, str, Group]]:
        """Each axis, each of its values, and the runs that have it."""
        levels = []
        for axis in self.axes:
            having: dict[str, list[Run]] = {}
            for run in self.runs:
                if config := run.config:
                    having.setdefault(runs.text(config.get(axis)), []).append(run)
            levels += [(axis, value, Group({axis: value}, having[value])) for value in sorted(having, key=number_first)]
        return levels

    def pair(self) -> tuple[str, str] | None:
        """The two axes of a heatmap: resize and learning rate where they vary, else the first two."""
        wanted = ["data.resize", "optimizer.lr"]
        chosen = sorted(self.axes, key=lambda axis: wanted.index(axis) if axis in wanted else len(wanted))
        return (chosen[0], chosen[1]) if len(chosen) > 1 else None


def spread(values: Sequence[float | None]) -> Spread | None:
    """The spread of the numbers among some values."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def number_first(text: str) -> tuple[int, float, str]:
    """A key that sorts numbers by their value, and other texts after them."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def collect(places: Sequence[Path], found: Sequence[Run]) -> Report:
    """Puts runs side by side."""
    axes = [key for key in runs.varied([run.config for run in found if run.config]) if key != SEED]
    validated = any(run.number(metrics.OBJECTIVE) is not None for run in found)
    objective = metrics.OBJECTIVE if validated else metrics.WITHOUT_VALIDATION
    by_values: dict[tuple[str, ...], Group] = {}
    for run in found:
        if config := run.config:
            values = {axis: config.get(axis) for axis in axes}
            by_values.setdefault(tuple(map(str, values.values())), Group(values, [])).runs.append(run)
    groups = sorted(by_values.values(), key=lambda group: -(score.mean if (score := group.spread(objective)) else -1.0))
    return Report(
        title=", ".join(terminal.short(place.resolve()) for place in places),
        runs=list(found),
        axes=axes,
        objective=objective,
        groups=groups,
        curves=[runs.epochs(run.folder) for run in found],
        machines=list(dict.fromkeys(_machine(run) for run in found if run.status == "completed")),
        notes=_notes(found),
        differences=_differences(found) if len(found) == 2 else [],
    )


def command(run: Run) -> str:
    """The command that repeats a run, from what Hydra has noted of it; empty where that cannot be read."""
    try:
        overrides = OmegaConf.load(run.folder / layout.OVERRIDES)
        flags = [arg for arg in run.result["command"] if arg.startswith("--config")]
        return shlex.join(["vggexp", "train", *flags, *map(str, overrides)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError):
        return ""


def _facts(run: Run) -> dict[str, Any]:
    """What a run's result says, under keys joined by dots, and its revision as it is printed."""
    facts = flatten(run.result)
    revision = str(facts.get("git.revision"))[:8] + (", changed" if facts.get("git.dirty") else "")
    return facts | {"revision": revision if "git.revision" in facts else "no checkout"}


def _machine(run: Run) -> str:
    """The processor or GPU, the threads and the precision."""
    facts = _facts(run)
    device = facts.get("hardware.cpu") if facts.get("device") == "cpu" else facts.get("device")
    return f"{device}, {facts.get('threads')} threads, {facts.get('precision')}"


NOTED = {"versions of vggexp": "versions.vggexp", "versions of torch": "versions.torch"}
NOTED |= {"revisions of the code": "revision", "processors": "hardware.cpu", "numbers of threads": "threads"}
"""What runs should have in common to be compared; a report notes where they do not."""


def _notes(found: Sequence[Run]) -> list[str]:
    notes = []
    for name, key in NOTED.items():
        known = [str(_facts(run).get(key)) for run in found if run.status == "completed"]
        if len(counts := {text: known.count(text) for text in known}) > 1:
            notes.append(f"{name} differ: {'; '.join(f'{text} ({count} runs)' for text, count in counts.items())}")
    return notes


def _differences(found: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Where two runs differ in config, versions, source and machine."""
    parts = ("config.", "versions.", "git.", "hardware.", "status", "device", "precision", "threads")
    one, other = ({k: runs.text(value) for k, value in _facts(run).items() if k.startswith(parts)} for run in found)
    keys = dict.fromkeys([*one, *other])
    return [(key, one.get(key, "–"), other.get(key, "–")) for key in keys if one.get(key) != other.get(key)]
