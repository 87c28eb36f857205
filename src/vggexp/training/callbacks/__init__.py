"""What does a run do besides learning?

- `averaging`: an exponential moving average of the weights
- `history`: each epoch's scores, and which epoch is the best
- `limits`: the last that is refused before training, and what ends it early
- `saver`: when a run saves, and how a signal ends it
- `throughput`: `images_per_second`, `train_seconds`, and within an epoch the loss and the learning rates
"""
