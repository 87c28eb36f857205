"""What a run's first process has measured to be fastest; its folder keeps it, so that the run stays as it began."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from vggexp.config import choices
from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.models.cpu import compiler, tuning
from vggexp.runs import layout
from vggexp.system import files, terminal

PATIENCE = 120  # seconds that a further process waits for the first


def of_run(
    cfg: Config, folder: Path, dimensions: Mapping[str, int], before: str | None, first: bool, resume: bool
) -> tuple[Config, tuning.Found]:
    """The config with `auto` replaced, and all choices; the first process makes them and says so.

    Args:
        before: the precision that a checkpoint names; all that is known of a run which began without other choices.
        first: whether this is the first of several processes.
        resume: whether the run goes on.
    """
    path, end = folder / layout.CHOICES, time.monotonic() + PATIENCE
    while not first and not path.exists():
        if time.monotonic() > end:
            raise UserError(f"{path}: is missing; all processes of a run must share its folder", 1)
        time.sleep(0.05)
    kept: tuning.Found | None = None
    if path.exists() and (resume or not first):
        try:
            kept = tuning.checked(json.loads(files.content(path)))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read: {error}; train again in a new folder") from error
        if kept is None:
            raise UserError(f"{path}: is not what a run writes; train again in a new folder")
    elif before in tuning.CHOICES["precision"]:
        kept = {"precision": {"chosen": before, "seconds": {}}}
    exact, found = choices.resolved(cfg, dimensions, kept)
    if first and kept and tuning.options(kept).winograd and compiler.library("winograd") is None:
        terminal.say(
            "Winograd's convolutions, by which the run began, cannot be compiled here: torch's round otherwise"
        )
    if first:
        files.write_text(path, json.dumps(found, indent=2) + "\n")
        if (text := choices.line(found)) is not None:
            terminal.say(text)
    return exact, found
