"""Where a training run stands: everything random in it, order and dropout, follows from this and the seed."""

from typing import cast

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker


def position(trainer: L.Trainer) -> tuple[int, int]:
    """As training begins or goes on: the epoch, counted from 0, and how many of its batches are done."""
    epoch = cast(_ProcessedTracker, trainer.fit_loop.epoch_progress.current)
    within = epoch.started > epoch.processed
    return epoch.processed, trainer.fit_loop.epoch_loop.batch_progress.current.ready if within else 0
