"""From runs to what a report shows of them."""

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from yaml import YAMLError

from vggexp.runs import read as runs
from vggexp.runs.read import Run
from vggexp.system import terminal

SEED = "seed"
SCORES = ("val/acc", "val/loss", "test/acc", "test/loss")
COSTS = ("seconds", "images_per_second", "peak_memory_bytes", "parameters", "epochs")
CURVES = ("train/loss", "train/acc", "val/loss", "val/acc", "test/acc", "images_per_second")


class Spread(NamedTuple):
    """Of one result over some runs."""

    mean: float
    deviation: float | None
    """The sample standard deviation; None of a single run."""

    def text(self, form: str = ".4f") -> str:
        """For people."""
        return f"{self.mean:{form}}" + ("" if self.deviation is None else f" ± {self.deviation:{form}}")


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    values: dict[str, Any]
    """What sets the group apart, by axis."""
    runs: list[Run]

    def spread(self, name: str) -> Spread | None:
        """Of a result over the completed runs; None if there is none."""
        return spread([run.number(name) for run in self.runs if run.status == "completed"])


class Report(NamedTuple):
    """Runs, and what a report says of them."""

    title: str
    runs: list[Run]
    configs: list[dict[str, Any]]
    """Of each run, its keys joined by dots."""
    axes: list[str]
    """The keys that vary, the seed left out."""
    objective: str
    """val/acc, or test/acc where nothing was validated."""
    groups: list[Group]
    """The best first."""
    curves: list[list[dict[str, float]]]
    """Of each run, what it logged at the end of each epoch."""
    commands: list[str]
    """Of each run, what repeats it."""
    machines: list[str]
    """What the completed runs were trained on."""
    notes: list[str]
    """What a reader should know before comparing."""
    differences: list[tuple[str, str, str]]
    """Where there are two runs: key, value, other value."""

    def best(self) -> Run | None:
        """By the objective."""
        scored = [run for run in self.runs if run.status == "completed" and run.number(self.objective) is not None]
        return max(scored, key=lambda run: run.result[self.objective], default=None)

    def failures(self) -> list[Run]:
        """What did not complete, but for what has not begun or goes on."""
        return [run for run in self.runs if run.status in ("failed", "unreadable", "interrupted")]

    def per_value(self) -> list[tuple[str, str, Group]]:
        """For each axis and each of its values, the runs that have it."""
        found = []
        for axis in self.axes:
            values = sorted({runs.text(config.get(axis)) for config in self.configs if config}, key=number_first)
            for value in values:
                having = [
                    run
                    for run, config in zip(self.runs, self.configs, strict=True)
                    if config and runs.text(config.get(axis)) == value
                ]
                found.append((axis, value, Group({axis: value}, having)))
        return found


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the numbers among some values."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def number_first(text: str) -> tuple[int, float, str]:
    """Sorts texts by their number, if they are one."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def collect(places: Sequence[Path], found: Sequence[Run]) -> Report:
    """Puts runs side by side.

    Args:
        places: where they were looked for, for the title.
    """
    configs = [run.config for run in found]
    varied = runs.varied([config for config in configs if config])
    axes = [key for key in varied if key != SEED]
    validated = any(run.number("val/acc") is not None for run in found)
    objective = "val/acc" if validated else "test/acc"
    by_values: dict[tuple[str, ...], list[int]] = {}
    for n, config in enumerate(configs):
        if config:
            by_values.setdefault(tuple(str(config.get(axis)) for axis in axes), []).append(n)
    groups = [
        Group({axis: configs[members[0]].get(axis) for axis in axes}, [found[n] for n in members])
        for members in by_values.values()
    ]
    groups.sort(key=lambda group: -(score.mean if (score := group.spread(objective)) else -1.0))
    return Report(
        title=", ".join(terminal.short(place.resolve()) for place in places),
        runs=list(found),
        configs=configs,
        axes=axes,
        objective=objective,
        groups=groups,
        curves=[runs.epochs(run.folder) for run in found],
        commands=[_command(run) for run in found],
        machines=list(dict.fromkeys(_machine(run) for run in found if run.status == "completed")),
        notes=_notes(found),
        differences=_differences(found) if len(found) == 2 else [],
    )


def _command(run: Run) -> str:
    """What trains a run again, from what Hydra has noted of it."""
    try:
        overrides = OmegaConf.load(run.folder / ".hydra" / "overrides.yaml")
        flags = [arg for arg in run.result["command"] if arg.startswith("--config")]
        return shlex.join(["python", "-m", "vggexp.train", *flags, *map(str, overrides)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError):
        return ""


def _machine(run: Run) -> str:
    """The processor or GPU, the threads and the precision."""
    device = str(run.result.get("device"))
    if device == "cpu":
        device = str((run.result.get("hardware") or {}).get("cpu"))
    return f"{device}, {run.result.get('threads')} threads, {run.result.get('precision')}"


def _revision(run: Run) -> str:
    git = run.result.get("git")
    if isinstance(git, dict):
        return str(git.get("revision"))[:8] + (", changed" if git.get("dirty") else "")
    return "no checkout"


def _notes(found: Sequence[Run]) -> list[str]:
    notes = []
    for name, of in (
        ("versions of vggexp", lambda run: str((run.result.get("versions") or {}).get("vggexp"))),
        ("versions of torch", lambda run: str((run.result.get("versions") or {}).get("torch"))),
        ("revisions of the code", _revision),
        ("processors", lambda run: str((run.result.get("hardware") or {}).get("cpu"))),
        ("numbers of threads", lambda run: str(run.result.get("threads"))),
    ):
        known = [of(run) for run in found if run.status == "completed"]
        if len(counts := {text: known.count(text) for text in known}) > 1:
            notes.append(f"{name} differ: {'; '.join(f'{text} ({count} runs)' for text, count in counts.items())}")
    return notes


def _differences(found: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Of two runs, in config, versions, source and machine."""
    sides = []
    for run in found:
        side = {f"config.{key}": runs.text(value) for key, value in run.config.items()}
        for part in ("versions", "git", "hardware"):
            values = run.result.get(part)
            side |= {f"{part}.{key}": str(value) for key, value in values.items()} if isinstance(values, dict) else {}
        own = ("status", "device", "precision", "threads")
        side |= {name: str(run.result[name]) for name in own if name in run.result}
        sides.append(side)
    one, other = sides
    keys = dict.fromkeys([*one, *other])
    return [(key, one.get(key, "–"), other.get(key, "–")) for key in keys if one.get(key) != other.get(key)]
