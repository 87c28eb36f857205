"""Seeds of all random numbers in a run, from its seed and its position alone, so that a resumed run draws the same."""

import numpy as np

DROPOUT, AUGMENTATION, TRANSFORMS = 1, 2, 3  # what draws random numbers, each from a stream of its own


def seed_at(seed: int, stream: int, process: int, epoch: int, batch: int) -> int:
    """The seed of one stream at one batch of a run."""
    return int(np.random.SeedSequence(seed, spawn_key=(stream, process, epoch, batch)).generate_state(1)[0])
