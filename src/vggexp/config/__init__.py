"""What is asked for, is it valid, is it allowed?

- `schema`: every key with its type and range
- `compose`: from a command line to checked configs
- `messages`: what is wrong with a config, in one line
- `policy`: what a config may not do, though Hydra would let it
- `instantiate`: from `_target_` to an object
- `precision`: what `trainer.precision=auto` means here
"""
