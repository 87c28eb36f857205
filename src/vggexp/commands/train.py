"""vggexp train [GROUP=CHOICE ...] [KEY=VALUE ...]      trains a network

vggexp train --multirun data.resize=32,64 optimizer.lr=1e-3,3e-4      trains every combination
vggexp train --multirun search=optuna      searches among values
vggexp train resume=RUN_FOLDER      continues a run that was stopped; resume=last: the last one
vggexp train sweep=SWEEP_FOLDER      continues a sweep; sweep=last: the last one
                                     code=any keeps the runs that other code has made, code=now trains them again
"""

import os
import sys
from argparse import Namespace

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vggexp.commands import options
from vggexp.config import compose
from vggexp.config.messages import one_line
from vggexp.errors import UserError
from vggexp.jobs import job, sweep
from vggexp.system import paths, terminal


def main(args: list[str]) -> int:
    """Checks every config that the arguments ask for, then trains; returns the exit code."""
    run, args = options.take("resume", args)
    if run is not None:
        terminal.outlive_readers()
        return job.resume_run(run, args)
    folder, args = options.take("sweep", args)
    code, args = options.take("code", args)
    if folder is not None:
        args = ["--multirun", *sweep.arguments(folder, args)]
    flags = compose.parse(args)
    if code is not None and not (flags.multirun and code in sweep.CODE):
        raise UserError(f"code={code}: is for a sweep that other code has begun, and must be {' or '.join(sweep.CODE)}")
    if flags.shows and not flags.cfg:
        return _show(flags, args)
    if not flags.shows:
        terminal.outlive_readers()
    with compose.session(flags) as session:
        if flags.cfg:
            session.job()
        elif flags.multirun:
            return sweep.start(session, args, folder is not None, code)
        else:
            return job.start(session)
    return _show(flags, args)


def _show(flags: Namespace, args: list[str]) -> int:
    """Has Hydra print what flags such as --help and --cfg ask for; it wants them before the other arguments."""
    others = [arg for arg in args if arg not in (*flags.overrides, flags.info)]
    others = [f"--info={flags.info}" if arg in ("--info", "-i") else arg for arg in others]
    sys.argv = [sys.argv[0], *others, *flags.overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra would print a mistake with its stack, and end the process
    try:
        hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name="config")(lambda cfg: None)()
    except (HydraException, OmegaConfBaseException, ValueError, LookupError) as error:
        raise UserError(f"{' '.join(args)}: {one_line(error)}") from error
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    return 0
