"""python -m vggexp.train [GROUP=CHOICE ...] [KEY=VALUE ...]      trains a network

python -m vggexp.train --multirun data.resize=32,64 optimizer.lr=1e-3,3e-4      trains every combination
"""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vggexp import compose, record, tables
from vggexp.errors import UserError

INTERRUPTED = 130


def main() -> int:
    """Checks every config that the command line asks for, then trains; returns the exit code."""
    try:
        args = compose.parse(sys.argv[1:])
        runs = not (args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)
        folder = None
        if runs or args.cfg:
            configs, settings = compose.configs(args)
        if runs and not _is_worker():
            folder = Path(settings.sweep.dir if args.multirun else settings.run.dir)
            if args.multirun:
                content = {"command": sys.argv, "config_hashes": [cfg.hash() for cfg in configs]}
                record.claim(folder, record.SWEEP, content, "hydra.sweep.dir")
            else:
                record.claim(folder, record.RESULT, record.manifest(configs[0]), "hydra.run.dir")
    except UserError as error:
        return compose.fail(error)
    codes: list[int] = []
    hydra.main(version_base="1.3", config_path=compose.CONF, config_name="config")(
        lambda raw: codes.append(_job(raw))
    )()
    if args.multirun and folder is not None:
        tables.show_sweep(folder)
    return max(codes, default=0)


def _job(raw: DictConfig) -> int:
    """Trains one config into the folder that Hydra made for it; what goes wrong is told and recorded.

    An exception or SystemExit would end a whole sweep, so neither leaves here.
    """
    cfg = compose.check(raw)
    folder = Path(HydraConfig.get().runtime.output_dir)
    manifest = record.manifest(cfg)
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            record.claim(folder, record.RESULT, manifest, "hydra.sweep.dir")
        if not _is_worker():
            tables.announce(cfg, folder)
        from vggexp.run import run  # torch and Lightning: only now, when nothing is left to refuse

        result = run(cfg, folder)
    except UserError as error:
        _record(folder, manifest | {"status": "failed", "reason": str(error)})
        return compose.fail(error)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into SystemExit(1)
        _record(folder, manifest | {"status": "interrupted", "reason": "Ctrl-C"})
        raise KeyboardInterrupt from stop
    except Exception as error:
        _record(folder, manifest | {"status": "failed", "reason": f"{type(error).__name__}: {error}"})
        traceback.print_exc()
        return 1
    manifest = manifest | {"status": "completed"} | result
    _record(folder, manifest)
    if not _is_worker():
        tables.show_result(manifest, folder)
    return 0


def _record(folder: Path, content: dict[str, object]) -> None:
    if not _is_worker():
        record.write(folder, content)


def _is_worker() -> bool:
    """Whether this is one of the further processes that trainer=ddp starts: the first one keeps the record."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
