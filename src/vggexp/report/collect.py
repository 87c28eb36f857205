"""From runs to what a report shows of them."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.errors import UserError
from vggexp.report import notes, statistics
from vggexp.report.statistics import Difference, Spread
from vggexp.runs import metrics, query
from vggexp.runs import read as runs
from vggexp.runs.query import number_first
from vggexp.runs.read import Run
from vggexp.system import terminal
from vggexp.system.text import message

SEED = "seed"
COLUMNS = (*metrics.COMPARED, "seconds")  # the results in tables of groups

CURVES = (*metrics.SCORES, "images_per_second")
PROGRESS = ("epoch", "train_seconds")
"""How far training is: what curves are drawn against."""

Curve = list[dict[str, float]]
"""What a run logged at the end of each epoch."""


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    values: dict[str, Any]  # what sets the group apart, by axis
    runs: list[Run]
    curves: list[Curve]  # of the runs

    def sample(self, name: str) -> dict[Any, float]:
        """A result of the completed runs by seed; a seed that was repeated counts once."""
        return statistics.by_seed((run.config.get(SEED), run.score(name)) for run in self.runs)

    def spread(self, name: str) -> Spread | None:
        """A result over seeds; None if there is none."""
        return statistics.spread(list(self.sample(name).values()))

    def numbers(self) -> dict[str, Any]:
        """The seeds that have completed, and of each result the mean and the standard deviation over them."""
        found = {name: spread for name in COLUMNS if (spread := self.spread(name))}
        means = {name: spread.mean for name, spread in found.items()}
        return {"seeds": self.seeds()} | means | {f"{name} ±": spread.deviation for name, spread in found.items()}

    def label(self) -> str:
        """What sets the group apart, in words."""
        names = [name.strip("_") for name in runs.short(self.values)]  # matplotlib hides what begins with a _
        values = map(runs.text, self.values.values())
        return message(", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True)) or "all")

    def band(self, against: str, name: str) -> list[tuple[float, float, float]]:
        """The mean curve: what it is drawn against, the mean and the standard deviation over seeds, by epoch."""
        seeds = [run.config.get(SEED) for run in self.runs]
        points = []
        for rows in zip_longest(*self.curves, fillvalue={}):
            columns = [zip(seeds, [row.get(key) for row in rows], strict=True) for key in (against, name)]
            x, y = (statistics.spread(list(statistics.by_seed(pairs).values())) for pairs in columns)
            if x and y:
                points.append((x.mean, y.mean, y.deviation or 0.0))
        return points

    def best(self, name: str) -> Run | None:
        """The completed run with the best result."""
        return metrics.best(self.runs, lambda run: run.score(name), name)

    def seeds(self) -> int:
        """How many seeds have completed."""
        return len({run.config.get(SEED) for run in self.runs if run.status == "completed"})

    def text(self, name: str) -> str:
        """A result as it is printed: the mean and the standard deviation; of one seed, the test set's interval."""
        if (found := self.spread(name)) is None:
            return metrics.text(name, None)
        images = next((run.number("test_images") for run in self.runs if run.number("test_images")), None)
        if found.deviation is None and name == "test/acc" and images and 0 <= found.mean <= 1:
            interval = statistics.binomial(found.mean, int(images))
            return f"{metrics.text(name, found.mean)} [{', '.join(metrics.text(name, end) for end in interval)}]"
        parts = (found.mean,) if found.deviation is None else (found.mean, found.deviation)
        return " ± ".join(metrics.text(name, part) for part in parts)

    def cell(self, column: str) -> str:
        """What a column of a table of groups says."""
        if column == "seeds":
            return str(self.seeds())
        if column in self.values:
            return runs.text(self.values[column])
        if column in metrics.METRICS or self.spread(column):
            return self.text(column)
        return ", ".join(dict.fromkeys(str(query.value(run, column)) for run in self.runs))


DIFFERENCES = ["group", "difference", f"{statistics.LEVEL:.0%} interval", "by seed", "seeds needed", ""]
"""The columns of a table of differences."""


class Comparison(NamedTuple):
    """How groups differ from one of them, over seeds."""

    metric: str
    reference: Group
    rows: list[tuple[Group, Difference]]  # the largest first

    def texts(self) -> list[list[str]]:
        """The rows as they are printed, see DIFFERENCES."""
        texts = []
        for group, found in self.rows:
            row = [group.label(), metrics.text(self.metric, found.mean, "+")]
            if found.interval is None:
                texts.append([*row, "–", "–", "–", "a single seed"])
                continue
            interval = ", ".join(metrics.text(self.metric, end, "+") for end in found.interval)
            needed = "–" if found.needed is None else str(found.needed)
            says = "separated" if found.separated else "not separated"
            texts.append([*row, f"[{interval}]", "yes" if found.paired else "no", needed, says])
        return texts


class Part(NamedTuple):
    """Runs that belong side by side, and what can be said of them."""

    title: str  # what they have in common that other parts have not
    runs: list[Run]
    axes: list[str]  # the keys that vary, without the seed
    objective: str  # val/acc, or test/acc where nothing was validated
    groups: list[Group]  # the best first
    columns: list[str]  # of the table of groups
    curves: list[Curve]  # of the runs
    comparisons: list[Comparison]  # with the best group, and with the one that `against=` names

    def rows(self) -> list[list[str]]:
        """The table of groups."""
        return [[group.cell(column) for column in self.columns] for group in self.groups]

    def best(self) -> Run | None:
        """The completed run that is best by the objective."""
        return Group({}, self.runs, self.curves).best(self.objective)

    def levels(self) -> list[tuple[str, str, Group]]:
        """Each axis, each of its values, and the runs that have it."""
        levels = []
        for axis in self.axes:
            having: dict[str, list[Run]] = {}
            for run in self.runs:
                having.setdefault(runs.text(query.value(run, axis)), []).append(run)
            values = sorted(having, key=number_first)
            levels += [(axis, value, Group({axis: value}, having[value], [])) for value in values]
        return levels

    def pair(self) -> tuple[str, str] | None:
        """The two axes of a heatmap: resize and learning rate where they vary, else the first two."""
        wanted = ["data.resize", "optimizer.lr"]
        chosen = sorted(self.axes, key=lambda axis: wanted.index(axis) if axis in wanted else len(wanted))
        return (chosen[0], chosen[1]) if len(chosen) > 1 else None


class Report(NamedTuple):
    """Runs, and what a report says about them."""

    title: str
    runs: list[Run]
    parts: list[Part]
    machines: list[str]  # what the completed runs were trained on
    notes: list[str]  # what a reader should know before comparing
    differences: list[tuple[str, str, str]]  # where there are two runs: key, value, other value

    def failures(self) -> list[Run]:
        """The runs that ended without completing."""
        return [run for run in self.runs if run.status in ("failed", "unreadable", "interrupted")]


class Choices(NamedTuple):
    """What a user chooses of a report; None is the default."""

    group: Sequence[str] | None = None  # what the runs of a part have in common
    columns: Sequence[str] | None = None
    sort: str | None = None
    against: str | None = None  # the conditions that the baseline of a comparison meets
    by: Sequence[str] | None = None  # the keys whose values make the groups; by default all that vary but the seed


DEFAULTS = Choices()
PARTS = {"experiment": "experiment", "data": "data._target_", "model": "model._target_"}
"""What the runs of a part have in common, unless they are all of one sweep: it was started to compare them."""


def collect(places: Sequence[Path], found: Sequence[Run], choices: Choices = DEFAULTS) -> Report:
    """Puts runs side by side."""
    readable = [run for run in found if run.config]
    together = len(places) == 1 and runs.is_sweep(places[0])
    common = [PARTS.get(name, name) for name in (choices.group or ([] if together else PARTS)) if name != "none"]
    for name in [name for name in choices.group or () if name not in (*PARTS, "none")]:
        query.check(readable, "group", name)
    keys = {key: {str(query.value(run, key)) for run in readable} for key in common}
    by_title: dict[str, list[Run]] = {}
    for run in readable:
        values = [str(query.value(run, key) or f"no {key}") for key in common if len(keys[key]) > 1]
        by_title.setdefault(", ".join(value.removeprefix("vggexp.") for value in values), []).append(run)
    against = {run.folder for run in query.select(readable, choices.against)} if choices.against else set()
    parts = [_part(title, members, choices, against) for title, members in by_title.items()]
    references = [comparison.reference for part in parts for comparison in part.comparisons]
    if against and not any(against.issuperset(run.folder for run in group.runs) for group in references):
        raise UserError(f"against={choices.against}: is no group with results that has others beside it")
    completed = [run for run in found if run.status == "completed"]
    return Report(
        title=", ".join(terminal.short(place.resolve()) for place in places),
        runs=list(found),
        parts=parts,
        machines=list(dict.fromkeys(map(notes.machine, completed))),
        notes=[*notes.of_runs(completed), *filter(None, (_repeated(group) for part in parts for group in part.groups))],
        differences=notes.differences(*found) if len(found) == 2 else [],
    )


def _repeated(group: Group) -> str:
    """A note of seeds whose results differ, which the config alone does not explain; empty where there is none."""
    results: dict[str, set[tuple[float | None, ...]]] = {}
    for run in group.runs:
        if run.status == "completed":
            results.setdefault(str(run.config.get(SEED)), set()).add(tuple(map(run.score, metrics.COMPARED)))
    if not (seeds := [seed for seed, different in results.items() if len(different) > 1]):
        return ""
    where = ", ".join(f"{key} {runs.text(value)}" for key, value in group.values.items())
    return (
        f"{where or 'seeds'}: seed {', '.join(seeds)} was repeated with other results: the machine or the code differs"
    )


def _part(title: str, found: list[Run], choices: Choices, against: set[Path]) -> Part:
    for key in choices.by or ():
        query.check(found, "by", key)
    axes = list(choices.by or [key for key in runs.varied([run.config for run in found]) if key != SEED])
    validated = any(run.number(metrics.OBJECTIVE) is not None for run in found)
    objective = metrics.OBJECTIVE if validated else metrics.WITHOUT_VALIDATION
    by_values: dict[tuple[str, ...], Group] = {}
    found = query.sort(found, choices.sort) if choices.sort else found
    curves = [runs.epochs(run.folder) for run in found]
    for run, curve in zip(found, curves, strict=True):
        values = {axis: query.value(run, axis) for axis in axes}
        group = by_values.setdefault(tuple(map(str, values.values())), Group(values, [], []))
        group.runs.append(run)
        group.curves.append(curve)
    groups = list(by_values.values())
    ranked = sorted(groups, key=lambda group: -(score.mean if (score := group.spread(objective)) else -1.0))
    for column in choices.columns or ():
        if column != "seeds":
            query.check(found, "columns", column)
    return Part(
        title=title,
        runs=found,
        axes=axes,
        objective=objective,
        groups=groups if choices.sort else ranked,
        columns=list(choices.columns or [*axes, "seeds", *COLUMNS]),
        curves=curves,
        comparisons=_comparisons(ranked, objective, against),
    )


def _comparisons(ranked: Sequence[Group], objective: str, against: set[Path]) -> list[Comparison]:
    """By test/acc, on which the choice of the best does not depend; by val/acc where nothing was tested.

    `against` holds the folders of the baseline's runs.
    """
    name = metrics.WITHOUT_VALIDATION
    scored = [group for group in ranked if group.sample(name)]
    if not scored:
        name, scored = objective, [group for group in ranked if group.sample(objective)]
    named = [group for group in scored if against.issuperset(run.folder for run in group.runs)]
    if len(named) > 1:
        raise UserError(f"against: holds for {len(named)} groups; name more of the values of one")
    made = []
    best = scored[:1]
    for reference in [*best, *(group for group in named if group not in best)] if len(scored) > 1 else []:
        others = [group for group in scored if group is not reference]
        found = statistics.compare(reference.sample(name), [group.sample(name) for group in others])
        rows = sorted(zip(others, found, strict=True), key=lambda row: -row[1].mean)
        made.append(Comparison(name, reference, rows))
    return made
