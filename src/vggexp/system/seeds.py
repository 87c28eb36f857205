"""Where a training run stands: all that is random in it follows from this and the seed."""

from typing import cast

import lightning as L
import numpy as np
from lightning.pytorch.loops.progress import _ProcessedTracker

DROPOUT, AUGMENTATION = 1, 2
"""What draws random numbers at a place, each from a stream of its own."""


def position(trainer: L.Trainer) -> tuple[int, int]:
    """As training begins or goes on: the epoch, counted from 0, and how many of its batches are done."""
    epoch = cast(_ProcessedTracker, trainer.fit_loop.epoch_progress.current)
    within = epoch.started > epoch.processed
    return epoch.processed, trainer.fit_loop.epoch_loop.batch_progress.current.ready if within else 0


def seed_at(seed: int, stream: int, process: int, epoch: int, batch: int) -> int:
    """A seed for one stream of random numbers at one place of a run, the same however often the run was stopped."""
    return int(np.random.SeedSequence(seed, spawn_key=(stream, process, epoch, batch)).generate_state(1)[0])
