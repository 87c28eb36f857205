"""Which runs, in which order: what `where=` and `sort=` mean, and what a name means of a run."""

import math
import re
from collections.abc import Callable, Sequence
from operator import ge, gt, le, lt
from typing import Any

from vggexp.config.messages import nearest
from vggexp.errors import UserError
from vggexp.runs import metrics, read
from vggexp.runs.read import Run
from vggexp.system import terminal
from vggexp.system.text import is_number

CONDITION = re.compile(r"([^=<>!\s]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
OWN = ("status", "reason", "experiment", "tags", "note", "started", "host", "user", "config_hash", "size")
"""What `where=`, `sort=` and `columns=` may name beside a result and a key of the config."""


def value(run: Run, name: str) -> Any:
    """What a name means of a run; None where it has nothing of that name."""
    if name == "run":
        return run.folder.name
    if name == "status":
        return run.status
    if name == "size":
        return read.size(run.folder)
    if name in OWN or (config := run.config).get(name) is None:
        return None if isinstance(found := run.result.get(name), dict) else found
    return config[name]


def select(runs: Sequence[Run], where: str | None) -> list[Run]:
    """The runs that meet all conditions, such as `data.resize=32 status!=failed val/acc>0.9`."""
    try:
        conditions = terminal.split(where or "")
    except ValueError as error:
        raise UserError(f"where={where}: {error}") from None
    kept = list(runs)
    for condition in conditions:
        if (parts := CONDITION.fullmatch(condition)) is None:
            raise UserError(f"where={condition}: is not a condition, such as data.resize=32 or 'val/acc>0.9'")
        name, sign, text = parts.groups()
        check(runs, "where", name)
        kept = [run for run in kept if _meets(value(run, name), sign, text, condition)]
    if runs and not kept:
        raise UserError(f"where={where}: holds for none of {len(runs)} runs")
    return kept


def _meets(found: Any, sign: str, text: str, condition: str) -> bool:
    if sign in ("=", "!="):
        values = found if isinstance(found, list) else [found]
        return any(_same(each, text) for each in values) == (sign == "=")
    if not is_number(text):
        raise UserError(f"where={condition}: {text} is not a number")
    return isinstance(found, int | float) and OPERATORS[sign](found, float(text))


def _same(found: Any, text: str) -> bool:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return is_number(text) and float(text) == found
    return str(found).lower() == text.lower() or (found is None and text in ("", "null"))


def check(runs: Sequence[Run], option: str, name: str) -> None:
    """Refuses a name that means nothing of any run."""
    if name in ("run", *OWN, *metrics.METRICS) or any(name in run.config or name in run.result for run in runs):
        return
    known = list(dict.fromkeys(key for run in runs for key in (*OWN, *run.result, *run.config)))
    raise UserError(f"{option}={name}: no run has that{nearest(name, known)}")


def sort(runs: Sequence[Run], name: str, option: str = "sort") -> list[Run]:
    """The runs by what a name means of them, small before large, numbers before texts; `-NAME` turns that around."""
    down, name = name.startswith("-"), name.removeprefix("-")
    check(runs, option, name)
    known = [run for run in runs if value(run, name) is not None]
    ordered = sorted(known, key=lambda run: number_first(str(value(run, name))), reverse=down)
    return [*ordered, *(run for run in runs if value(run, name) is None)]


def number_first(text: str) -> tuple[int, float, str]:
    """A key that sorts numbers by their value, and other texts after them."""
    number = float(text) if is_number(text) else math.nan
    return (1, 0.0, text) if math.isnan(number) else (0, number, "")
