"""The numbers of a run: their names, which direction is better, how they are printed, and what is best."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar


class Metric(NamedTuple):
    """A number that a run logs or stores."""

    format: str
    higher_is_better: bool = False
    label: str = ""  # the name and the unit that a reader sees, where the name does not say it
    unit: float = 1  # what a number is divided by before it is shown


METRICS = {
    "train/loss": Metric(".4f"),
    "train/acc": Metric(".4f", higher_is_better=True),
    "val/loss": Metric(".4f"),
    "val/acc": Metric(".4f", higher_is_better=True),
    "test/loss": Metric(".4f"),
    "test/acc": Metric(".4f", higher_is_better=True),
    "images_per_second": Metric(",.0f", higher_is_better=True, label="images/s"),
    "train_seconds": Metric(".0f", label="seconds of training"),
    "seconds": Metric(".0f", label="time (s)"),
    "peak_memory_bytes": Metric(".2f", label="memory (GiB)", unit=2**30),
    "parameters": Metric(",.0f"),
    "epochs": Metric(".0f"),
}
SCORES = tuple(name for name in METRICS if "/" in name)  # in the order in which they are printed
COMPARED = ("val/acc", "val/loss", "test/acc", "test/loss")  # the scores by which runs are compared
SUMMARY = ("val/acc", "test/acc", "test/loss", "images_per_second", "seconds")  # in the closing table of a sweep
RESULTS = tuple(dict.fromkeys((*COMPARED, "images_per_second", *SCORES)))  # TensorBoard's table first shows five
COSTS = ("seconds", "images_per_second", "peak_memory_bytes", "parameters", "epochs")
OBJECTIVE, WITHOUT_VALIDATION = "val/acc", "test/acc"
"""The score that choices are made by, and the one shown in its place where nothing was validated."""

T = TypeVar("T")


def text(name: str, value: float | None, sign: str = "") -> str:
    """A value as it is printed, with `sign` "+" also where it is positive; a dash where there is none."""
    found = METRICS.get(name, Metric(".4f"))
    return "–" if value is None else format(value / found.unit, sign + found.format)


def label(name: str) -> str:
    """A number's name for a reader, with its unit."""
    return METRICS[name].label or name if name in METRICS else name


def best(items: Iterable[T], score: Callable[[T], float | None], name: str = OBJECTIVE) -> T | None:
    """The item with the best score under the metric `name`, the first of several; None if no item has a score."""
    sign = 1 if METRICS[name].higher_is_better else -1
    scored = [(item, value) for item in items if (value := score(item)) is not None and value == value]
    return max(scored, key=lambda pair: sign * pair[1], default=(None,))[0]


def ordered(names: Iterable[str]) -> list[str]:
    """The scores among some names, those of SCORES first, in its order; others are a user's own metrics."""
    scores = [name for name in names if name.startswith(("train/", "val/", "test/"))]
    return sorted(scores, key=lambda name: SCORES.index(name) if name in SCORES else len(SCORES))
