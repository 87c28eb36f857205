"""python -m vggexp.train [GROUP=CHOICE ...] [KEY=VALUE ...]      trains a network

python -m vggexp.train --multirun data.resize=32,64 optimizer.lr=1e-3,3e-4      trains every combination
python -m vggexp.train resume=RUN_FOLDER      goes on where a run was stopped; resume=last: the last one
"""

import errno
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vggexp import compose, record, resume, tables
from vggexp.errors import UserError
from vggexp.schema import Config
from vggexp.signals import Interrupted, Signals, reason

COMMAND = "python -m vggexp.train"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a full, broken or protected disk answers."""


def main() -> int:
    """Checks every config that the command line asks for, then trains; returns the exit code."""
    try:
        run, rest = resume.option(sys.argv[1:])
        return _start(rest) if run is None else _resume(run, rest)
    except UserError as error:
        return compose.fail(error)
    except Interrupted as stop:
        return stop.exit_code


def _start(argv: list[str]) -> int:
    """Starts one run, or with --multirun one after the other."""
    args = compose.parse(argv)
    runs = not (args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)
    folder = None
    if runs or args.cfg:
        configs, settings = compose.configs(args)
    if runs and args.multirun:
        for cfg in configs:
            _refuse_processes(cfg)
    if runs and not _is_worker():
        folder = Path(settings.sweep.dir if args.multirun else settings.run.dir)
        if args.multirun:
            content = {"command": sys.argv, "config_hashes": [cfg.hash() for cfg in configs]}
            record.claim(folder, record.SWEEP, content, "hydra.sweep.dir")
        else:
            record.claim(folder, record.RESULT, record.manifest(configs[0]), "hydra.run.dir")
    codes: list[int] = []
    try:
        hydra.main(version_base="1.3", config_path=compose.CONF, config_name="config")(
            lambda raw: codes.append(_job(raw))
        )()
    except Interrupted:
        if args.multirun:
            left = len(configs) - len(codes) - 1
            print(f"vggexp: the sweep stopped in job {len(codes)}; {left} more had not begun", file=sys.stderr)
        raise
    finally:
        if args.multirun and folder is not None:
            tables.show_sweep(folder)
    return max(codes, default=0)


def _resume(run: str, args: list[str]) -> int:
    """Goes on with a run in its folder."""
    folder = resume.find(run)
    cfg, past = resume.config(folder, args)
    if past["status"] == "completed" and cfg.trainer.max_epochs == past["config"]["trainer"]["max_epochs"]:
        print(f"{folder}: has completed; trainer.max_epochs=N with a larger N trains it further")
        return 0
    sys.argv[1:] = [f"{resume.OPTION}{folder.resolve()}", *args]  # for the further processes of trainer=ddp
    manifest = record.manifest(cfg)
    old, new = dict(past.get("versions") or {}), manifest["versions"]
    if changed := [f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]]:
        print(f"{folder}: goes on with {', '.join(changed)}: the last bits may differ", file=sys.stderr)
    manifest |= {"started": past.get("started"), "resumed": [*past.get("resumed", []), manifest["started"]]}
    return _train(cfg, folder, manifest, again=True)


def _job(raw: DictConfig) -> int:
    """Trains one config into the folder that Hydra made for it."""
    cfg = compose.check(raw)
    folder = Path(HydraConfig.get().runtime.output_dir)
    manifest = record.manifest(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        try:
            record.claim(folder, record.RESULT, manifest, "hydra.sweep.dir")
        except UserError as error:
            return compose.fail(error)
    return _train(cfg, folder, manifest)


def _train(cfg: Config, folder: Path, manifest: dict[str, Any], again: bool = False) -> int:
    """Trains into a folder; what goes wrong is told and recorded.

    An exception or SystemExit would end a whole sweep, so neither leaves here; Interrupted does.
    """

    def interrupted(signum: int) -> None:
        if manifest["status"] == "running":
            _record(folder, manifest | {"status": "interrupted", "reason": reason(signum)})

    parent = os.getppid()
    if cfg.trainer.strategy == "ddp":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would advise against our choice in each process
    try:
        lock = nullcontext() if _is_worker() else record.hold(folder, f"{resume.OPTION}{folder}")
        with lock, Signals(interrupted) as signals:
            try:
                if not _is_worker():
                    record.write(folder, manifest)
                    tables.announce(cfg, folder)
                from vggexp.run import run  # torch and Lightning: only now, when nothing is left to refuse

                result = run(cfg, folder, resume=again, signals=signals)
            except Interrupted as stop:
                interrupted(stop.signum)
                if _is_worker():
                    return 0  # else Lightning would kill the first process before it has recorded its end
                place = tables.short(folder)
                print(f"vggexp: stopped by {stop}; to go on: {COMMAND} {resume.OPTION}{place}", file=sys.stderr)
                raise
            except Exception as error:
                if _is_worker() and os.getppid() != parent:
                    return 1  # the first process has ended and said why
                mistake = error if isinstance(error, UserError) else _known(error, cfg, folder)
                text = str(mistake or f"{type(error).__name__}: {error}")
                _record(folder, manifest | {"status": "failed", "reason": text})
                if mistake is not None:
                    return mistake.exit_code if _is_worker() else compose.fail(mistake)
                traceback.print_exc()
                return 1
            manifest |= {"status": "completed"} | result
            _record(folder, manifest)
    except UserError as error:  # of the lock
        return compose.fail(error)
    if not _is_worker():
        tables.show_result(manifest, folder)
    return 0


def _known(error: Exception, cfg: Config, folder: Path) -> UserError | None:
    """The mistake behind an exception of the system; None if it is not known."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return UserError(
            f"data.batch_size={cfg.data.batch_size}: out of memory; try half of it with "
            "trainer.accumulate_grad_batches=2, a smaller data.resize, a larger model.ratio, or "
            "trainer.precision=bf16-mixed",
            1,
        )
    if isinstance(error, OSError) and error.errno in DISK:
        return UserError(
            f"{error.filename or folder}: {error.strerror}; make it writable or make room, then "
            f"{resume.OPTION}{folder}",
            1,
        )
    return None


def _refuse_processes(cfg: Config) -> None:
    """
    Raises:
        UserError: a job of a sweep would start further processes, and each of them would run the sweep.
    """
    devices = cfg.trainer.devices
    if devices == "auto" and cfg.trainer.accelerator != "cpu":
        import torch

        devices = max(1, torch.cuda.device_count())
    if (len(devices) if isinstance(devices, list) else devices) not in ("auto", 1) or cfg.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: several processes cannot train within --multirun; set "
            "trainer.devices=1, or start the combinations one by one without --multirun"
        )


def _record(folder: Path, content: dict[str, Any]) -> None:
    if not _is_worker():
        try:
            record.write(folder, content)
        except OSError as error:
            print(f"vggexp: {folder / record.RESULT}: {error.strerror}: not written", file=sys.stderr)


def _is_worker() -> bool:
    """Whether this is one of the further processes that trainer=ddp starts: the first one keeps the record."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before a run has begun
        sys.exit(130)
