"""Who starts, stops and repeats runs, here or on a cluster?

- `job`: one run: starts or resumes it, reports what goes wrong, keeps its `result.json`
- `launcher`: Hydra's launchers, and the one that a sweep uses by default: each job in a process of its own
- `preload`: what the jobs of a sweep inherit
- `sweep`: what a grid and a search share: a folder, jobs that are launched, watched and stopped
- `grid`: every combination of values, each completed exactly once
- `search`: Optuna chooses the configs
- `overview`: a sweep while it runs: progress, failures, the best so far
- `pruning`: stops a trial that is behind the others of its study
"""
