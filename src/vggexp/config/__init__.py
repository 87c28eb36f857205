"""What is asked for, is it valid, is it allowed?

Only `instantiate` imports torch, so that a mistake is reported before it is loaded.

- `schema`: every key with its type and range
- `components`: the same of networks, data sets, optimizers, schedules and metrics
- `compose`: from a command line to checked configs
- `alike`: the configs of a grid, which differ in single values
- `messages`: what is wrong with a config, in one line
- `policy`: what a config may not do, though Hydra would let it
- `instantiate`: from `_target_` to an object
- `choices`: what is fastest here, and so what `trainer.precision=auto` means
"""
