"""From a command line to checked configs, or to one line that says what is wrong with it."""

import argparse
import functools
import os
import secrets
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra import compose, version
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from vggexp.config import policy
from vggexp.config.messages import explain, misplaced, one_line, text_of
from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.jobs.launcher import Processes

_PACKAGED, _CHECKOUT = Path(__file__).parents[1] / "conf", Path(__file__).parents[3] / "conf"
CONF = str(_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT)
"""The folder of the YAML files: inside an installed package, at the top of a checkout."""


S = TypeVar("S", bound=BaseModel)


@functools.cache
def run_name() -> str:
    """A name for this process's run or sweep that no other process has, in the order of time.

    Processes that torchrun or SLURM start together share theirs.

    Raises:
        UserError: they have nothing in common to make one from.
    """
    if started := os.environ.get("TORCHELASTIC_RUN_ID"):
        if started == "none":
            raise UserError(
                "torchrun: its processes need a folder in common; add --standalone, on several machines "
                "--rdzv-id=NAME, or name it: hydra.run.dir=outputs/NAME"
            )
        return f"torchrun_{started}"
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        return f"slurm_{os.environ['SLURM_JOB_ID']}"
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """Hydra's own flags; `overrides` holds the rest."""
    args = get_args_parser().parse_args(argv)
    if getattr(args, "experimental_rerun", None):
        raise UserError("--experimental-rerun: refused, it runs code from a pickle; repeat the command instead")
    for name in ("config_path", "config_dir"):
        folder = getattr(args, name)
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"--{name.replace('_', '-')} {folder}: no such folder")
        if folder is not None:
            policy.check_files(folder)
    policy.check_overrides(args.overrides)
    args.config_path = str(Path(args.config_path).resolve()) if args.config_path else CONF
    return args


def check(raw: DictConfig) -> Config:
    """The typed form of a composed config.

    Raises:
        UserError: a key or a value is not what the schema allows.
    """
    job = OmegaConf.masked_copy(raw, [str(key) for key in raw if key not in ("hydra", "search")])
    try:
        values = OmegaConf.to_container(job, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None
    return validate(values, Config)


def validate(values: Any, schema: type[S], prefix: str = "") -> S:
    """The typed form of plain values.

    Args:
        prefix: of all keys, for the message.

    Raises:
        UserError: a key or a value is not what the schema allows.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(prefix + explain(error, values, schema)) from None


class Job(NamedTuple):
    """One of the configs that a command line asks for."""

    cfg: Config
    overrides: list[str]
    """The arguments that compose it; Hydra's own are not among them."""
    hydra: DictConfig

    def subdir(self, number: int) -> str:
        """The name of its folder in that of its sweep."""
        OmegaConf.update(self.hydra, "job.num", number)
        return str(self.hydra.sweep.subdir)


class Session:
    """Hydra, for the time of one command line.

    Args:
        args: as `parse` gives them.
    """

    def __init__(self, args: argparse.Namespace, hydra: Hydra) -> None:
        self.args, self.loader = args, hydra.config_loader
        self.overrides = _parse_overrides(args.overrides, self.loader)
        self._hydra = hydra
        self.fixed = [o for o in self.overrides if not (args.multirun and o.is_sweep_override())]
        self.raw = _compose(args, [text_of(o) for o in self.fixed], self.fixed)
        self.search = OmegaConf.select(self.raw, "search")
        if not (args.multirun or self.search is None):
            raise UserError("search: tries many configs; add --multirun (-m)")

    def job(self, overrides: list[str]) -> Job:
        """
        Raises:
            UserError: a key or a value is not what the schema allows.
        """
        raw = _compose(self.args, overrides, _parse_overrides(overrides, self.loader))
        return Job(_checked(raw, self.args.multirun), overrides, raw.hydra)

    def parse(self, overrides: list[str]) -> list[Override]:
        """
        Raises:
            UserError: one is not KEY=VALUE.
        """
        return _parse_overrides(overrides, self.loader)

    def task_overrides(self) -> list[str]:
        """What the command line sets of the job itself, sweeps left out."""
        own = ("hydra.", "hydra/", "search.", "search=")
        return [text_of(o) for o in self.fixed if not text_of(o).lstrip("+~").startswith(own)]

    def grid(self) -> list[Job]:
        """Every combination of the values that the command line names, each checked.

        Raises:
            UserError: nothing may start.
        """
        hydra = self.raw.hydra
        if not str(hydra.sweeper._target_).endswith(".BasicSweeper"):
            raise UserError(f"hydra/sweeper={hydra.runtime.choices['hydra/sweeper']}: leave it out; {SEARCHES}")
        params = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
        every = [*_parse_overrides(params, self.loader), *self.overrides]
        for override in every:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(f"{text_of(override)}: has no end of values; name some, or: {SEARCHES}")
        return [self.job(job) for job in BasicSweeper.split_arguments(every, None)[0]]

    def launcher(self, task: TaskFunction, folder: Path) -> tuple[Launcher, DictConfig]:
        """Hydra's launcher as configured, and the config that goes with it.

        Args:
            task: to be called with the composed config of each job.
            folder: of the sweep.

        Raises:
            UserError: its package is not installed.
        """
        overrides = [text_of(o) for o in self.fixed]
        config = self._hydra.compose_config(
            self.args.config_name or "config", [*overrides, place("hydra.sweep.dir", folder)], RunMode.MULTIRUN
        )
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(config))
        options: dict[str, Any] = {"hydra_context": context, "task_function": task, "config": config}
        if config.hydra.launcher._target_ == "vggexp.jobs.launcher.Processes":
            ours = Processes()  # Hydra would look for it among its plugins
            ours.setup(**options)
            return ours, config
        try:
            return Plugins.instance().instantiate_launcher(**options), config
        except (RuntimeError, ImportError, HydraException) as error:
            name = config.hydra.runtime.choices["hydra/launcher"]
            extra = name.partition("_")[0]
            raise UserError(f"hydra/launcher={name}: {one_line(error)}; pip install 'vggexp[{extra}]'", 1) from None


# conf/hydra/launcher names what the launchers' own packages name, on purpose
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

SEARCHES = "search=optuna searches among values"


def place(key: str, folder: Path | str) -> str:
    """The argument that sets a key to a path, whatever characters it has."""
    text = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{text}'"


@contextmanager
def session(args: argparse.Namespace) -> Iterator[Session]:
    """As `hydra.main` starts, which offers no way to compose and check first.

    Raises:
        UserError: nothing may start.
    """
    version.setbase("1.3")
    search_path = create_config_search_path(args.config_path)
    if args.config_dir:
        search_path.prepend("command-line", f"file://{Path(args.config_dir).resolve()}", SearchPathQuery("schema"))
    hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=search_path)
    try:
        yield Session(args, hydra)
    finally:
        GlobalHydra.instance().clear()


def configs(args: argparse.Namespace) -> tuple[list[Config], DictConfig]:
    """Every config that a command line asks for, checked: one, or with `--multirun` one per job.

    Returns:
        The configs in the order of the jobs, and Hydra's own config.

    Raises:
        UserError: nothing may start.
    """
    with session(args) as hydra:
        if args.multirun:
            return [job.cfg for job in hydra.grid()], hydra.raw.hydra
        return [_checked(hydra.raw, multirun=False)], hydra.raw.hydra


def _checked(raw: DictConfig, multirun: bool) -> Config:
    cfg = check(raw)
    try:
        policy.check_hydra(raw.hydra, cfg.allowed_packages, multirun)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None
    return cfg


def values(overrides: list[str]) -> dict[str, Any]:
    """What `KEY=VALUE` arguments set, as a tree, where no config is composed from them.

    Raises:
        UserError: one is not KEY=VALUE.
    """
    tree = OmegaConf.create()
    for override in _parse_overrides(overrides, None):
        OmegaConf.update(tree, override.key_or_group, override.value(), force_add=True)
    return OmegaConf.to_container(tree)  # type: ignore[return-value]


def _compose(args: argparse.Namespace, overrides: list[str], parsed: list[Override]) -> DictConfig:
    name = args.config_name or "config"
    try:
        return compose(name, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        loader = GlobalHydra.instance().config_loader()
        raise UserError(misplaced(name, parsed, loader) or one_line(error)) from None


def _parse_overrides(overrides: list[str], loader: ConfigLoader | None) -> list[Override]:
    parser = OverridesParser.create(loader)
    parsed = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{override}: is not KEY=VALUE ({reason}); a value with = , [ or {{ needs quotes") from None
    return parsed


def fail(error: UserError) -> int:
    """Prints the line and returns the exit code."""
    print(f"vggexp: {error}", file=sys.stderr)
    return error.exit_code
