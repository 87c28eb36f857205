"""`resume=RUN_FOLDER`: the config that a run continues with, and whether it may."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggexp.config import compose
from vggexp.config.components import schedule
from vggexp.config.schema import REMARKS, Config, flatten, merged, untrusted
from vggexp.errors import UserError
from vggexp.runs import layout, manifest
from vggexp.system import terminal

EXTENDABLE = "trainer.max_epochs"  # the only key that may change, and only to a larger value

FREE = (
    *("data.root", "data.cache_dir", "data.num_workers", "checkpoint.every_n_seconds"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.profiler", "trainer.timeout"),
)
"""The keys that change no number: of data, the sha256 is checked, and their order does not depend on who loads them."""

CACHE = "data.cache_dir"  # holds copies of what is checked by sha256
TRUST = "allowed_packages"
"""Says whom the user trusts, not what the run is; so the run folder's own value does not count."""


def config(folder: Path, args: list[str]) -> tuple[Config, dict[str, Any]]:
    """The config that a run continues with, and its `result.json` so far."""
    place = f"resume={folder}"
    if flags := [arg for arg in args if arg.startswith("-")]:
        raise UserError(f"{flags[0]}: cannot be combined with resume=; the run's own config is used")
    past = manifest.load(folder, place)
    stored = past.get("config")
    given = compose.values(args)
    if not isinstance(stored, dict):
        raise UserError(f"{place}: its {layout.RESULT} holds no config, so it cannot be resumed")
    for key, value in given.items():
        if isinstance(stored.get(key), dict) and not isinstance(value, dict):
            raise UserError(f"{key}={value}: cannot be chosen again; leave it out, the run has it already")
    if isinstance(data := given.get("data"), dict) and isinstance(data.get("resize"), dict):
        data["resize"] = schedule(data["resize"])
    both = merged(untrusted(stored), given)
    check_same(both, stored)
    was, now = flatten(stored), flatten(both)
    if was.get(CACHE) != now.get(CACHE) and CACHE not in flatten(given):
        terminal.say(f"{CACHE}={was[CACHE]}: is not written to, for only the run's record names it; {CACHE}= does")
    if now.get("logger.uri") is not None and "logger.uri" not in flatten(given):
        raise UserError(f"logger.uri={now['logger.uri']}: only the run's record names it; give it again to send there")
    return compose.validate(both, Config), past


def check_same(now: Mapping[Any, Any], then: Mapping[Any, Any]) -> None:
    """Refuses two configs that differ in more than the number of epochs, or of which the newer has fewer."""
    new, old = flatten(now), flatten(then)
    for key in {**old, **new}:
        if key in (TRUST, CACHE, *REMARKS) or (key in new and key in old and new[key] == old[key]):
            continue
        if key in FREE and key in old and str(old.get("data._target_")).startswith("vggexp."):
            continue
        if key not in old:
            raise UserError(f"{key}={new[key]}: unknown key; the run has no such key")
        was = f"{key}={new.get(key)}: the run has {old[key]}"
        if key != EXTENDABLE:
            raise UserError(f"{was}, and a resumed run cannot change it; leave it out, or start a new run")
        if not isinstance(new[key], int) or new[key] < old[key]:
            raise UserError(f"{was}; a resumed run can only have more")


def nothing_left(cfg: Config, past: Mapping[str, Any]) -> str | None:
    """Why a completed run has nothing left to train; None if it has."""
    then = flatten(past["config"])
    early = past.get("epochs") != then.get(EXTENDABLE)
    for key in ("trainer.early_stopping.patience", "trainer.max_steps", "trainer.max_time"):
        if early and then.get(key) is not None:
            ended = f"{key}={then[key]} ended it after {past.get('epochs')} epochs"
            return f"has completed: {ended}, and more epochs do not change that; start a new run"
    longer = cfg.trainer.max_epochs != then.get(EXTENDABLE)
    return None if longer else "has completed; trainer.max_epochs=N with a larger N trains it further"
