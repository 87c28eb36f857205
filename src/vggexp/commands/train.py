"""python -m vggexp.train [GROUP=CHOICE ...] [KEY=VALUE ...]      trains a network

python -m vggexp.train --multirun data.resize=32,64 optimizer.lr=1e-3,3e-4      trains every combination
python -m vggexp.train --multirun search=optuna      searches among values
python -m vggexp.train resume=RUN_FOLDER      goes on where a run was stopped; resume=last: the last one
python -m vggexp.train sweep=SWEEP_FOLDER      goes on with a sweep; sweep=last: the last one
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import hydra

from vggexp.config import compose
from vggexp.errors import UserError
from vggexp.jobs import grid, job, sweep
from vggexp.runs import layout, manifest, resume
from vggexp.system import paths
from vggexp.system.signals import Interrupted


def main() -> int:
    """Checks every config that the command line asks for, then trains; returns the exit code."""
    try:
        run, rest = resume.option(sys.argv[1:])
        if run is not None:
            return _resume(run, rest)
        if any(arg.startswith(sweep.OPTION) for arg in rest):
            return _start_sweep(sweep.option(rest), again=True)
        args = compose.parse(rest)
        if args.help or args.hydra_help or args.info or args.shell_completion:
            return _hydra()
        if args.multirun and not args.cfg:
            return _start_sweep(rest)
        return _start(args)
    except UserError as error:
        return compose.fail(error)
    except Interrupted as stop:
        return stop.exit_code


def _start(args: argparse.Namespace) -> int:
    """Starts one run, or shows its config."""
    (cfg, *_), settings = compose.configs(args)
    folder = Path(settings.run.dir)
    if job.is_started_again() and (folder / layout.RESULT).exists() and not args.cfg:
        return job.go_on(cfg, folder, manifest.load(folder, f"hydra.run.dir={folder}"))
    if not args.cfg and not job.is_worker():
        manifest.claim(folder, manifest.collect(cfg), "hydra.run.dir")
    return _hydra()


def _start_sweep(argv: list[str], again: bool = False) -> int:
    """Starts many runs, or goes on with them."""
    args = compose.parse(argv)
    args.multirun = True
    with compose.session(args) as session:
        if session.search is None:
            return grid.start(session, argv, again)
        if find_spec("optuna") is None:
            raise UserError("search=optuna: Optuna is not installed; pip install 'vggexp[search]'", 1)
        from vggexp.jobs import search

        return search.start(session, argv)


def _hydra() -> int:
    """Lets Hydra do what the command line asks for; the run's exit code."""
    codes: list[int] = []
    main = hydra.main(version_base="1.3", config_path=paths.CONF, config_name="config")
    main(lambda raw: codes.append(job.first(raw)))()
    return max(codes, default=0)


def _resume(run: str, args: list[str]) -> int:
    """Goes on with a run in its folder."""
    folder = resume.find(run)
    cfg, past = resume.config(folder, args)
    if past["status"] == "completed" and cfg.trainer.max_epochs == past["config"]["trainer"]["max_epochs"]:
        print(f"{folder}: has completed; trainer.max_epochs=N with a larger N trains it further")
        return 0
    sys.argv[1:] = [f"{resume.OPTION}{folder.resolve()}", *args]  # for the further processes of trainer=ddp
    return job.go_on(cfg, folder, past)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before a run has begun
        sys.exit(130)
