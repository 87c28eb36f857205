"""`resume=RUN_FOLDER`: which run is meant, and whether it may go on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vggexp.config import compose
from vggexp.config.schema import Config, flatten
from vggexp.errors import UserError
from vggexp.runs import layout, manifest
from vggexp.runs import manifest as record
from vggexp.system import paths

OPTION = "resume="
EXTENDABLE = "trainer.max_epochs"
"""The only key that may change, and only upwards."""

FREE = "allowed_packages"
"""Says whom the user trusts, not what the run is; so a run folder's own word on it does not count."""


def option(args: list[str]) -> tuple[str | None, list[str]]:
    """The run that a command line asks to resume, if any, and its other arguments.

    Raises:
        UserError: there are several.
    """
    found = [arg.removeprefix(OPTION) for arg in args if arg.startswith(OPTION)]
    if len(found) > 1:
        raise UserError(f"resume={found[1]}: is the second; one run can be resumed at a time")
    return (found[0] if found else None), [arg for arg in args if not arg.startswith(OPTION)]


def find(run: str, outputs: Path | None = None) -> Path:
    """The folder of the run that is meant; `last` is the one that was started last.

    Raises:
        UserError: there is none.
    """
    path = Path(run).expanduser()
    if run == "last" and not path.exists():
        return record.latest(outputs or paths.outputs(), OPTION + run)
    if not (path / layout.RESULT).is_file():
        raise UserError(f"{OPTION}{run}: holds no {layout.RESULT}, so it is no run folder; name one, or last")
    return path


def config(folder: Path, args: list[str]) -> tuple[Config, dict[str, Any]]:
    """The config that a run goes on with, and its record so far.

    Args:
        args: KEY=VALUE of the command line. They may repeat what the run has, and extend its epochs.

    Raises:
        UserError: something else differs, or the run's record is not what a run leaves.
    """
    place = f"{OPTION}{folder}"
    if flags := [arg for arg in args if arg.startswith("-")]:
        raise UserError(f"{flags[0]}: cannot go with resume=; the run's own config is used")
    past = manifest.load(folder, place)
    stored = past.get("config")
    given = compose.values(args)
    if not isinstance(stored, dict):
        raise UserError(f"{place}: its {layout.RESULT} holds no config, so it cannot go on")
    for key, value in given.items():
        if isinstance(stored.get(key), dict) and not isinstance(value, dict):
            raise UserError(f"{key}={value}: cannot be chosen again; leave it out, the run has it already")
    merged = OmegaConf.to_container(OmegaConf.merge({**stored, FREE: []}, given))
    assert isinstance(merged, dict)
    same(merged, stored)
    return compose.validate(merged, Config), past


def same(now: Mapping[Any, Any], then: Mapping[Any, Any]) -> None:
    """
    Raises:
        UserError: two configs differ in more than the number of epochs, or that has become smaller.
    """
    new, old = flatten(now), flatten(then)
    for key in {**old, **new}:
        if key == FREE or (key in new and key in old and new[key] == old[key]):
            continue
        if key not in old:
            raise UserError(f"{key}={new[key]}: unknown key; the run has none of this name")
        was = f"{key}={new.get(key)}: the run has {old[key]}"
        if key != EXTENDABLE:
            raise UserError(f"{was}, and a resumed run cannot change it; leave it out, or start a new run")
        if not isinstance(new[key], int) or new[key] < old[key]:
            raise UserError(f"{was}; a resumed run can only have more")
