"""From a command line to checked configs, or to one line that says what is wrong with it."""

import argparse
import functools
import itertools
import math
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from vggexp.config import messages, policy
from vggexp.config.messages import explain, explain_hydra, key_of, one_line, quote, text_of
from vggexp.config.schema import Config, flatten
from vggexp.errors import UserError
from vggexp.system import paths

S = TypeVar("S", bound=BaseModel)
SEARCH = "search=optuna"
MOST_JOBS = 20_000  # combinations of a sweep

# conf/hydra/launcher names what the launchers' own packages name, on purpose
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


def launched() -> str | None:
    """What the processes have in common that torchrun or SLURM starts as one run, and starts again after a fault."""
    if started := os.environ.get("TORCHELASTIC_RUN_ID"):
        return f"torchrun_{started}"
    job = os.environ.get("SLURM_JOB_ID")
    return f"slurm_{job}" if job else None


@functools.cache
def run_name() -> str:
    """A name for this process's run or sweep that no other process has, in the order of time.

    Processes that torchrun or SLURM start together share theirs.
    """
    if os.environ.get("TORCHELASTIC_RUN_ID") == "none":
        remedy = "add --standalone, on several machines --rdzv-id=NAME, or set hydra.run.dir=outputs/NAME"
        raise UserError(f"torchrun: its processes need a common folder; {remedy}")
    several = int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ
    if (started := launched()) and (several or "TORCHELASTIC_RUN_ID" in os.environ):
        return started
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag = message.removeprefix("unrecognized arguments: ")
        remedy = "--hydra-help lists the flags"
        if flag != message:
            message = f"{flag}: no such flag"
            remedy = f"keys take no dashes, such as optimizer.lr=0.01; {remedy}" if "=" in flag else remedy
        raise UserError(f"{message}; {remedy}")


def parse(argv: list[str]) -> argparse.Namespace:
    """Hydra's flags; `overrides` holds the other arguments, `shows` says that nothing is to be trained."""
    parser = _Parser(add_help=False)
    shows = (("--help", "-h"), ("--hydra-help",), ("--version",), ("--shell-completion", "-sc"))
    for names in (*shows, ("--multirun", "-m"), ("--run", "-r"), ("--resolve",)):
        parser.add_argument(*names, action="store_true")
    for names in (("--config-path", "-cp"), ("--config-name", "-cn"), ("--config-dir", "-cd"), ("--package", "-p")):
        parser.add_argument(*names)
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=messages.INFO)
    parser.add_argument("--experimental-rerun")
    parser.add_argument("overrides", nargs="*")
    flags = parser.parse_intermixed_args(argv)
    if flags.experimental_rerun:
        raise UserError("--experimental-rerun: refused, because it runs code from a pickle; repeat the command instead")
    modes = {"--run": flags.run, "--multirun": flags.multirun, "--cfg": flags.cfg, "--info": flags.info}
    modes["--shell-completion"] = flags.shell_completion
    if len(given := [mode for mode, value in modes.items() if value]) > 1:
        raise UserError(f"{given[0]}: cannot be combined with {given[1]}; leave one of them out")
    for name, value in (("--resolve", flags.resolve), ("--package", flags.package)):
        if value and not (flags.cfg or flags.help):
            raise UserError(f"{name}: goes with --cfg job; add that")
    for name in ("config_path", "config_dir"):
        if (folder := getattr(flags, name)) is not None and not Path(folder).is_dir():
            raise UserError(f"--{name.replace('_', '-')} {folder}: no such folder")
    policy.check_overrides(flags.overrides)
    flags.shows = any((flags.help, flags.hydra_help, flags.version, flags.shell_completion, flags.cfg, flags.info))
    return flags


class Job(NamedTuple):
    """One of the configs that a command line asks for."""

    cfg: Config
    overrides: list[str]  # the arguments that compose it; Hydra's own are not among them
    raw: DictConfig  # the config as Hydra composed it, with its own part under `hydra`

    def subdir(self, number: int) -> str:
        """The name of the job's folder within the folder of its sweep."""
        OmegaConf.update(self.raw.hydra, "job.num", number)
        return str(self.raw.hydra.sweep.subdir)


class Session:
    """Hydra, for the time of one command line; see `session`."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.loader: ConfigLoader = GlobalHydra.instance().config_loader()
        self.overrides = self.parse(flags.overrides)
        self.fixed = [text_of(o) for o in self.overrides if not (flags.multirun and o.is_sweep_override())]
        self.raw = self._compose(self.fixed)
        self.search = OmegaConf.select(self.raw, "search")
        if not (flags.multirun or self.search is None):
            raise UserError("search: tries many configs; add --multirun (-m)")

    def job(self, overrides: list[str] | None = None) -> Job:
        """The checked config of some arguments; by default that of the command line."""
        raw = self.raw if overrides is None else self._compose(overrides)
        cfg = check(raw)
        try:
            typed = {override.get_key_element().lstrip("+") for override in self.overrides}
            policy.check_trust(cfg, typed)
            policy.check_hydra(raw.hydra, cfg.allowed_packages, self.flags.multirun, typed)
        except OmegaConfBaseException as error:
            raise UserError(one_line(error)) from None
        return Job(cfg, list(self.fixed) if overrides is None else overrides, raw)

    def grid(self) -> list[Job]:
        """Every combination of the values that the command line names, each checked."""
        from vggexp.config.alike import choices, composer

        typed, job = choices(self.overrides), composer(self)
        chosen = [n for n, key in enumerate(typed) if len(typed[key]) > 1 and self.loader.get_group_options(key)]
        configs: dict[tuple[str, ...], DictConfig] = {}  # by what is chosen of groups
        jobs: list[Job] = []
        if (count := math.prod(map(len, typed.values()))) > MOST_JOBS:
            raise UserError(f"--multirun: {count:,} combinations are more than {MOST_JOBS:,}; name fewer values")
        for combination in itertools.product(*typed.values()):
            group = tuple(combination[n] for n in chosen)
            if group not in configs:
                configs[group] = self._compose(list(combination)) if chosen else self.raw
            raw = configs[group]  # each experiment brings its own parameters
            params = [f"{key}={value}" for key, value in (raw.hydra.sweeper.params or {}).items()]
            own = {key: texts for key, texts in choices(self.parse(params)).items() if key not in typed}
            jobs += [job([*more, *combination]) for more in itertools.product(*own.values())]
        return jobs

    def parse(self, overrides: list[str]) -> list[Override]:
        """Arguments in Hydra's parsed form."""
        return _parse_overrides(overrides, self.loader)

    def task_overrides(self) -> list[str]:
        """What the command line sets of the job itself, sweeps left out."""
        own = ("hydra.", "hydra/", "search.", "search=")
        return [argument for argument in self.fixed if not argument.lstrip("+~").startswith(own)]

    def sweep_config(self, folder: Path) -> DictConfig:
        """The config that Hydra's launchers begin with, for a sweep in a folder."""
        return self._compose([*self.fixed, quote("hydra.sweep.dir", folder), "hydra.mode=MULTIRUN"])

    def _compose(self, overrides: list[str]) -> DictConfig:
        name = self.flags.config_name or "config"
        try:
            return compose(name, overrides=overrides, return_hydra_config=True)
        except messages.FAULTS as error:
            raise UserError(explain_hydra(error, self.parse(overrides), self.loader)) from None


class ConfigDir(SearchPathPlugin):
    """Has Hydra look into the folder of `--config-dir`, after its own of the project."""

    folder: ClassVar[str | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.append("command-line", f"file://{Path(self.folder).resolve()}")


@contextmanager
def session(flags: argparse.Namespace) -> Iterator[Session]:
    """Has Hydra compose the configs of a command line."""
    conf = Path(flags.config_path).resolve() if flags.config_path else paths.CONF
    Plugins.instance().register(ConfigDir)
    policy.check_files()
    ConfigDir.folder = flags.config_dir
    try:
        with initialize_config_dir(str(conf), job_name="train", version_base="1.3"), policy.bounded():
            yield Session(flags)
    except RecursionError as error:
        raise UserError("the config is nested too deeply, or within itself; simplify it") from error
    finally:
        ConfigDir.folder = None


def config(*arguments: str) -> Config:
    """The one checked config that arguments ask for."""
    with session(parse(list(arguments))) as hydra:
        return hydra.job().cfg


def configs(*arguments: str) -> list[Config]:
    """Every config that arguments ask for, in which KEY=A,B names several values."""
    with session(parse(["--multirun", *arguments])) as hydra:
        return [job.cfg for job in hydra.grid()]


def check(raw: DictConfig) -> Config:
    """The typed form of a composed config."""
    return validate(plain_values(raw), Config)


def plain_values(raw: DictConfig) -> Any:
    """The plain values of a composed config, without Hydra's part."""
    if others := [key for key in raw if not isinstance(key, str)]:
        raise UserError(f"{others[0]!r}: is no key, for it is not a text; put it in quotes, or leave it out")
    job = OmegaConf.masked_copy(raw, [str(key) for key in raw if key not in ("hydra", "search")])
    try:
        values: Any = OmegaConf.to_container(job, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None
    texts = flatten(OmegaConf.to_container(job))  # type: ignore[arg-type]
    return _decoded(values, {key for key in texts if str(texts[key]).startswith("${oc.env:")})


def _decoded(values: Any, keys: set[str]) -> Any:
    """The values, in which the text of an environment variable is a number or the like where its key wants one."""
    try:
        if keys:
            Config.model_validate(values)
    except ValidationError as error:
        for fault in error.errors():
            if (key := ".".join(key_of(fault["loc"], values))) in keys:
                with suppress(YAMLError, OmegaConfBaseException):  # then the key will be refused as it is
                    read = OmegaConf.from_dotlist([f"{key}={fault['input']}"])
                    values = OmegaConf.to_container(OmegaConf.merge(values, read))
    return values


def validate(values: Any, schema: type[S], prefix: str = "") -> S:
    """The typed form of plain values, whose keys begin with `prefix` in a message."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(prefix + explain(error, values, schema)) from None


def values(overrides: list[str]) -> dict[str, Any]:
    """What `KEY=VALUE` arguments set, as a tree, where no config is composed from them."""
    tree = OmegaConf.create()
    for override in _parse_overrides(overrides, None):
        if override.is_sweep_override():
            raise UserError(f"{text_of(override)}: takes one value; leave out the others")
        OmegaConf.update(tree, override.key_or_group, override.value(), force_add=True)
    return OmegaConf.to_container(tree)  # type: ignore[return-value]


_parser = functools.lru_cache(maxsize=1)(OverridesParser.create)  # making one takes as long as parsing ten arguments


def _parse_overrides(overrides: list[str], loader: ConfigLoader | None) -> list[Override]:
    parser = _parser(loader)
    parsed = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            key, _, value = override.partition("=")
            quoted = f"""{key}='"{value}"'""" if value else "KEY='\"VALUE\"'"
            remedy = f"a value with other characters than letters, digits and /-\\+.$%*@?| needs quotes: {quoted}"
            raise UserError(f"{override}: is not KEY=VALUE ({reason}); {remedy}") from None
    return parsed
