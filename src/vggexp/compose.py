"""From a command line to checked configs, or to one line that says what is wrong with it."""

import argparse
import difflib
import functools
import os
import secrets
import sys
import warnings
from collections.abc import Iterable, Iterator
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

from vggexp import trust
from vggexp.errors import UserError
from vggexp.launcher import Processes
from vggexp.schema import SCHEMAS, Config

_PACKAGED, _CHECKOUT = Path(__file__).parent / "conf", Path(__file__).parents[2] / "conf"
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
            trust.check_files(folder)
    trust.check_overrides(args.overrides)
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
        raise UserError(_one_line(error)) from None
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
        raise UserError(prefix + _explain(error, values, schema)) from None


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
        self.raw = _compose(args, [_text(o) for o in self.fixed], self.fixed)
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
        return [_text(o) for o in self.fixed if not _text(o).lstrip("+~").startswith(own)]

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
                raise UserError(f"{_text(override)}: has no end of values; name some, or: {SEARCHES}")
        return [self.job(job) for job in BasicSweeper.split_arguments(every, None)[0]]

    def launcher(self, task: TaskFunction, folder: Path) -> tuple[Launcher, DictConfig]:
        """Hydra's launcher as configured, and the config that goes with it.

        Args:
            task: to be called with the composed config of each job.
            folder: of the sweep.

        Raises:
            UserError: its package is not installed.
        """
        overrides = [_text(o) for o in self.fixed]
        config = self._hydra.compose_config(
            self.args.config_name or "config", [*overrides, place("hydra.sweep.dir", folder)], RunMode.MULTIRUN
        )
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(config))
        options: dict[str, Any] = {"hydra_context": context, "task_function": task, "config": config}
        if config.hydra.launcher._target_ == "vggexp.launcher.Processes":
            ours = Processes()  # Hydra would look for it among its plugins
            ours.setup(**options)
            return ours, config
        try:
            return Plugins.instance().instantiate_launcher(**options), config
        except (RuntimeError, ImportError, HydraException) as error:
            name = config.hydra.runtime.choices["hydra/launcher"]
            extra = name.partition("_")[0]
            raise UserError(f"hydra/launcher={name}: {_one_line(error)}; pip install 'vggexp[{extra}]'", 1) from None


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
        trust.check_hydra(raw.hydra, cfg.allowed_packages, multirun)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from None
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
        raise UserError(_diagnose(name, parsed, loader) or _one_line(error)) from None


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


def _text(override: Override) -> str:
    return override.input_line or ""


def _groups(loader: ConfigLoader, parent: str = "") -> Iterator[str]:
    for name in loader.list_groups(parent):
        path = f"{parent}/{name}" if parent else name
        yield path
        yield from _groups(loader, path)


def _diagnose(config_name: str, overrides: list[Override], loader: ConfigLoader) -> str | None:
    """Says which override Hydra could not place, with the names that would have fitted."""
    groups = list(_groups(loader))
    chosen = []
    for override in overrides:
        key = override.key_or_group
        if key in groups and not override.is_delete():
            choices = [c for c in loader.get_group_options(key) if c != "__init__"]
            value = override.value()
            for choice in value if isinstance(value, list) else [value]:
                if isinstance(choice, bool | int | float):
                    return f"{key}={choice}: must be one of {', '.join(choices)}"
                if choice is not None and str(choice) not in choices:
                    text = f"{key}={choice}: no such choice; {key} is one of {', '.join(choices)}"
                    return text + _nearest(str(choice), choices, f"{key}=")
            chosen.append(_text(override))
    try:
        base = compose(config_name, overrides=chosen, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None
    for override in overrides:
        if override.key_or_group in groups or override.is_add() or override.is_force_add():
            continue
        node: Any = base
        parts = override.key_or_group.split(".")
        for depth, part in enumerate(parts):
            if not OmegaConf.is_dict(node) or part not in node:
                where = ".".join(parts[:depth])
                names = sorted(str(n) for n in node) if OmegaConf.is_dict(node) else []
                names = [n for n in names if n not in ("hydra", "_target_")]
                if not where:
                    names = sorted({*names, *(g for g in groups if "/" not in g and g != "hydra")})
                return _unknown(".".join(parts), _value_text(override), where, part, names)
            node = node._get_node(part)
            if OmegaConf.is_interpolation(node):
                break
    return None


def _value_text(override: Override) -> str:
    return _text(override).partition("=")[2]


def _unknown(key: str, value: str, where: str, part: str, names: list[str]) -> str:
    prefix = f"{where}." if where else ""
    has = f"{where or 'the config'} has {', '.join(names)}" if names else f"{where} has no keys below it"
    return f"{key}={value}: unknown key; {has}" + _nearest(part, names, prefix)


def _nearest(word: str, names: Iterable[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{match[0]}?" if match else ""


def _explain(error: ValidationError, values: dict[Any, Any], schema: type[BaseModel]) -> str:
    """The first fault in one line: key, value, what is allowed. A union reports a fault per member; they are joined."""
    faults = error.errors()
    path = _key(faults[0]["loc"], values)
    same = [fault for fault in faults if _key(fault["loc"], values) == path]
    fault, key = same[0], ".".join(path)
    value = _show(fault["input"])
    if fault["type"] == "extra_forbidden":
        names = sorted(_fields(path[:-1], values, schema))
        return _unknown(key, value, ".".join(path[:-1]), path[-1], names)
    if fault["type"] == "missing":
        return f"{key}: missing; put it back, or choose its group's default"
    if fault["type"] == "value_error":
        return (f"{key}." if key else "") + str(fault["ctx"]["error"])  # begins with the rest of the key
    text = dict.fromkeys(f["msg"].replace("Input should be ", "").replace("Input should ", "") for f in same)
    hint = ""
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        hint = _nearest(fault["input"], fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "))
    return f"{key}={value}: must be {' or '.join(text)}{hint}"


def _key(loc: tuple[int | str, ...], values: Any) -> tuple[str, ...]:
    """The part of a fault's place that the config knows; behind it pydantic names the members of a union."""
    key: list[str] = []
    for part in loc:
        if isinstance(values, dict):
            key.append(str(part))
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            key.append(str(part))
            values = values[part]
        else:
            break
    return tuple(key)


def _fields(path: tuple[str, ...], values: Any, schema: Any) -> list[str]:
    """The names that the schema knows at a place of the config."""
    for part in path:
        values = values[part]
        target = values.get("_target_")
        schema = SCHEMAS[target] if target in SCHEMAS else schema.model_fields[part].annotation
    assert issubclass(schema, BaseModel)
    return [name for name in schema.model_fields if name != "target"]


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def fail(error: UserError) -> int:
    """Prints the line and returns the exit code."""
    print(f"vggexp: {error}", file=sys.stderr)
    return error.exit_code
