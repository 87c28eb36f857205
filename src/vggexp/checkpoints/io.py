"""Where a run's checkpoints lie, and how they get there: whole or not at all, the last but one kept."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from rich.console import Console

from vggexp.checkpoints import file as checkpoint
from vggexp.errors import NON_FINITE, UserError

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


def folder(run: Path) -> Path:
    """Of the checkpoints of a run."""
    return run / "checkpoints"


class Store(CheckpointIO):
    """How Lightning's Trainer writes and reads checkpoints.

    A new file is written beside the old one, onto the disk, and read again; only then does it take the old one's
    name. A new `last.ckpt` makes the old one `previous.ckpt`.
    """

    def save_checkpoint(self, content: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """
        Raises:
            UserError: a weight is not finite, or the file could not be written; what was there before is there still.
        """
        path = Path(path)
        _refuse_non_finite(content["state_dict"])
        temporary = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write(content, temporary)
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
            _sync(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):  # the next save writes over it
                temporary.unlink()
            raise UserError(
                f"{path}: cannot be written: {error.strerror or error}; what was saved before is intact: make room, "
                f"then resume={path.parent.parent}",
                1,
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """On the CPU; nothing that a file holds is ever run, whatever `weights_only` says."""
        return checkpoint.read(Path(path), "checkpoint")

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def newest(run: Path, console: Console) -> Path | None:
    """The newest checkpoint that a run can go on from; None if it has none yet.

    A damaged one is named and set aside, and the one before it is used.

    Raises:
        UserError: there are some, and all are damaged.
    """
    paths = [path for name in (LAST, PREVIOUS) if (path := folder(run) / name).exists()]
    damaged: list[Path] = []
    for path in paths:
        if (found := checkpoint.damage(path)) is None:
            for other in damaged:
                os.replace(other, other.with_suffix(".damaged"))  # else it would push out the good one
            return path
        damaged.append(path)
        if path != paths[-1]:
            console.print(f"{path}: {found}; the one before it is used", soft_wrap=True)
    if damaged:
        names = " and ".join(path.name for path in damaged)
        raise UserError(f"resume={run}: {names} cannot be read; train again in a new folder", 1)
    return None


def _refuse_non_finite(weights: dict[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise UserError(
                f"{name}: holds values that are not finite, so it is not saved; try a smaller optimizer.lr", NON_FINITE
            )


def _sync(folder: Path) -> None:
    """Makes the names in a folder outlast a loss of power."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
