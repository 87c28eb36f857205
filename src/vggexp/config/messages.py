"""What is wrong with a config, in one line: the key, the value, and what would be right."""

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from vggexp.config.components import SCHEMAS

HINTS = {
    "trainer.fast_dev_run": "debug=fast runs every stage on a few batches",
    "trainer.overfit_batches": "debug=overfit learns a few images by heart, and data.train_size=N trains on N images",
    "trainer.val_check_interval": "validation follows an epoch; trainer.check_val_every_n_epoch=N skips some of them, "
    "and trainer.limit_train_batches=0.5 makes epochs shorter",
    "trainer.limit_train_batches=0": "trainer.max_epochs=0 trains nothing",
    "trainer.limit_val_batches=0": "data.val_size=0 leaves validation out",
    "trainer.limit_test_batches=0": "a run is always tested, if only on trainer.limit_test_batches=1",
    "data.resize": "a schedule takes the place of a file's as text: data.resize='{0:64,5:96}', in a shell in quotes",
    "trainer.max_time": "days:hours:minutes:seconds, such as 00:01:30:00",
    **dict.fromkeys(("experiment", "debug"), "the first line of its file must be # @package _global_"),
}
"""How to reach what users look for under another key or value, by KEY or KEY=VALUE."""


FAULTS = (HydraException, OmegaConfBaseException, ValueError, AssertionError, LookupError, TypeError)
"""What Hydra raises on a config that it cannot compose."""
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What Hydra's --info can tell."""


def _hint(key: str, value: str) -> str:
    found = HINTS.get(f"{key}={value}") or HINTS.get(key)
    return f"; {found}" if found else ""


def explain_hydra(error: Exception, overrides: list[Override], loader: ConfigLoader) -> str:
    """Why Hydra cannot compose a config, with the names that it does know."""
    typed = {override.key_or_group: text_of(override) for override in overrides}
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = loader.get_group_options(group)
        folders = [each.path.removeprefix("file://") for each in loader.get_search_path().get_path()]
        if any(Path(folder, group, f"{choice}.yml").exists() for folder in folders):
            return f"{group}={choice}: Hydra reads {choice}.yaml alone; rename {choice}.yml"
        text = f"{group}={choice}: no such choice; {group} is one of {', '.join(choices)}"
        return text + nearest(choice, choices, f"{group}=")
    if (twice := re.match(r"Multiple values for (\S+)\.", str(error))) and typed.get(twice[1], "").startswith("+"):
        return f"{typed[twice[1]]}: leave out the +, for the config has a place for this group"
    cause, unknown = error.__cause__, re.match("Could not override '(.+)'", str(error))
    if unknown is None or not isinstance(cause, OmegaConfBaseException):
        return (
            one_line(error) if isinstance(error, HydraException) else f"{' '.join(typed.values())}: {one_line(error)}"
        )
    where, _, part = str(cause.full_key).rpartition(".")
    names = [*map(str, cause.parent_node or ()), *([] if where else loader.list_groups(""))]
    known = sorted({*names} - {"hydra", "_target_"})
    return _unknown(unknown[1], typed.get(unknown[1], "").partition("=")[2], where, part, known)


def text_of(override: Override) -> str:
    """An override as it was typed."""
    return override.input_line or ""


def _unknown(key: str, value: str, where: str, part: str, names: list[str]) -> str:
    prefix = f"{where}." if where else ""
    has = f"{where or 'the config'} has {', '.join(names)}" if names else f"{where} has no keys below it"
    if hint := _hint(key, value):
        return f"{key}={value}: unknown key{hint}"
    return f"{key}={value}: unknown key; {has}" + nearest(part, names, prefix)


def nearest(word: str, names: Iterable[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{match[0]}?" if match else ""


def explain(error: ValidationError, values: dict[Any, Any], schema: type[BaseModel]) -> str:
    """The first fault in one line: key, value, what is allowed. Faults of a union's members are joined."""
    faults = error.errors()
    path = key_of(faults[0]["loc"], values)
    same = [fault for fault in faults if key_of(fault["loc"], values) == path]
    fault, key = same[0], ".".join(path)
    given = fault["input"]
    value = json.dumps(given) if given is None or isinstance(given, bool) else str(given)
    if fault["type"] == "extra_forbidden":
        names = sorted(_fields(path[:-1], values, schema))
        return _unknown(key, value, ".".join(path[:-1]), path[-1], names)
    if fault["type"] == "missing":
        return f"{key}: missing; put it back, or choose its group's default"
    if fault["type"] == "value_error":
        rest = str(fault["ctx"]["error"])  # begins with the rest of the key, or with its value
        return key + ("." if key and not rest.startswith("=") else "") + rest
    texts = list(dict.fromkeys(re.sub(r"^\w+ should ", "", f["msg"]) for f in same))
    text = " or ".join([texts[0], *(each.removeprefix("be ") for each in texts[1:])])
    hint = _hint(key, value)
    if fault["type"] == "literal_error" and isinstance(given, str):
        hint = nearest(given, fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "))
    return f"{key}={value}: must {text}{hint}"


def key_of(loc: tuple[int | str, ...], values: Any) -> tuple[str, ...]:
    """The config key of a fault; pydantic appends the members of a union, which are left out."""
    key: list[str] = []
    for part in loc:
        if isinstance(values, dict):
            key.append(str(part))
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            key.append(str(part))
            values = values[part]
        else:
            break
    return tuple(key)


def _fields(path: tuple[str, ...], values: Any, schema: Any) -> list[str]:
    """The names that the schema knows below a key."""
    for part in path:
        values = values[part]
        target = values.get("_target_")
        schema = SCHEMAS[target] if target in SCHEMAS else schema.model_fields[part].annotation
    assert issubclass(schema, BaseModel)
    return [name for name in schema.model_fields if name != "target"]


def one_line(error: Exception) -> str:
    """An error's text without its line breaks."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text or type(error).__name__


def quote(key: str, value: Path | str) -> str:
    """The argument that sets a key to a path, whatever characters it has."""
    return f"{key}={QuotedString(str(value), Quote.single).with_quotes()}"


def argument(key: str, value: str) -> str:
    """The same as plain as Hydra understands it."""
    return f"{key}={value}" if re.fullmatch(r"(\\?[\w.]|[/+:-])+\\?", value, re.ASCII) else quote(key, value)
