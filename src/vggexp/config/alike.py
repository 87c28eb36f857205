"""The configs of a grid: those that differ in single values only are composed once for all of them."""

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from vggexp.config.compose import MOST_JOBS, SEARCH, Job, Session, plain_values, validate
from vggexp.config.messages import text_of
from vggexp.config.schema import Config, merged
from vggexp.errors import UserError


class _Numbered(Job):
    """A job whose folder has its number for a name, which need not be composed."""

    def subdir(self, number: int) -> str:
        return str(number)


def composer(session: Session) -> Callable[[list[str]], Job]:
    """What `session.job` does, but composed once for all jobs that differ in single values: 0.2 s less for each."""
    value = functools.cache(lambda text: session.parse([text])[0].value())
    composed: dict[tuple[str, ...], tuple[Job, Any]] = {}

    @functools.cache
    def plain(*keys: str) -> set[str]:
        """The keys that name no group of configs, are not Hydra's, and have no other within them."""
        fit = {key for key in keys if re.fullmatch(r"(?!hydra\.)\w+(\.\w+)*", key)}
        alone = {key for key in fit if not any(f"{one}.".startswith(f"{key}.") for one in keys if one != key)}
        return {key for key in alone if keys.count(key) == 1 and not session.loader.get_group_options(key)}

    def make(overrides: list[str]) -> Job:
        free = plain(*(text.partition("=")[0].lstrip("+~") for text in overrides))
        texts = {text.partition("=")[0]: text for text in overrides if not re.search(r"[$?]", text)}
        values = {key: value(texts[key]) for key in texts.keys() & free}
        values = {key: each for key, each in values.items() if not isinstance(each, dict | list)}
        alike = (*sorted(values), *(text for text in overrides if text.partition("=")[0] not in values))
        if alike not in composed:
            first = session.job(overrides)
            own = OmegaConf.masked_copy(first.raw, [str(key) for key in first.raw if key != "hydra"])
            numbered = OmegaConf.to_container(first.raw.hydra.sweep)["subdir"] == "${hydra.job.num}"  # type: ignore[call-overload, index]
            single = numbered and not re.search(r"\$\{(?!oc\.env:)", str(OmegaConf.to_container(own)))
            composed[alike] = first, plain_values(first.raw) if single else None
        first, tree = composed[alike]
        if tree is None:
            return session.job(overrides)
        for key, each in values.items():
            over: Any = each
            for part in reversed(key.split(".")):
                over = {part: over}
            tree = merged(tree, over)
        return _Numbered(validate(tree, Config), overrides, first.raw)

    return make


def choices(overrides: list[Override]) -> dict[str, list[str]]:
    """The arguments among which each key has a choice."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            try:
                values = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
            except ValueError as error:
                raise UserError(f"{text_of(override)}: {error}") from error
            if not values:
                raise UserError(f"{text_of(override)}: has no values; name at least one")
            if len(values) > MOST_JOBS:
                raise UserError(f"{text_of(override)}: has more than {MOST_JOBS:,} values; name fewer")
        else:
            raise UserError(f"{text_of(override)}: has no end of values; name some, or let {SEARCH} choose")
        key = override.get_key_element()
        choices[key] = [f"{key}={value}" for value in values]
    return choices
