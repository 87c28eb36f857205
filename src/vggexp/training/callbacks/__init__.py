"""What does a run do besides learning?

- `history`: each epoch's scores, and which epoch is the best
- `limits`: ends training after so many steps, or at a loss that is not finite
- `saver`: when a run saves, and how a signal ends it
- `start`: the last that is refused before training, and the moment at which it really begins or goes on
- `throughput`: `images_per_second`, `train_seconds`, and the learning rates
"""
