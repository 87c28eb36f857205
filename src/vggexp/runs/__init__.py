"""What is in a run folder, which run is meant, what made it?

- `layout`: the names of the files in the folder of a run and of a sweep
- `metrics`: the numbers of a run: names, directions, formats, what is best
- `manifest`: what made a run, kept in `result.json`; the lock of its folder
- `code`: the code that made a run, by hash and, where no commit holds it, in full
- `choices`: what was measured to be fastest when the run began
- `read`: what run folders hold, whatever state they are in
- `query`: `where=` and `sort=`: which runs, in which order
- `select`: which run, sweep or checkpoint a word on the command line means
- `resume`: whether a run may continue with the arguments given
- `tables`: what a run and a sweep print on the terminal
"""
