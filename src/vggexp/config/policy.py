"""What a config may not do, though Hydra would let it: run code, write outside the output folder, grow without end."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLevelNamesMapping
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Container

from vggexp.config.schema import Config, flatten
from vggexp.errors import UserError
from vggexp.system import files, paths
from vggexp.system.paths import outputs

LARGEST_FILE, MOST_DEFAULTS = 2**16, 2000
LONGEST_INTERPOLATION, INTERPOLATIONS = 1000, 2000
PLUGINS = ("hydra_plugins.", "vggexp.jobs.")  # launchers and sweepers: what Hydra looks into, and this project's
LOG = {
    "class": r"logging\.(Stream|File|Null)Handler",
    "stream": r"ext://sys\.std(out|err)",
    "filename": r"\$\{hydra\.runtime\.output_dir\}/(\$\{hydra\.job\.name\}|[\w-])[\w-]*\.log",
    "level": "|".join([*getLevelNamesMapping(), r"\d+"]),
    "handlers": r"\[[^$]*\]",
    **dict.fromkeys(("formatter", "format", "datefmt", "mode"), r"(?!ext:|cfg:)[^$]*"),
    **dict.fromkeys(("version", "propagate", "disable_existing_loggers", "root"), r"\w+"),
}
"""What a log may be told: it neither runs code nor leaves the run's folder."""

SETTINGS = {
    "verbose": (r"True|False|\[.*\]|[^-\d{].*", "must be true, false, or the names of loggers"),
    "job.env_set": (r"None|\{\}", "refused; set variables before the command"),
    "job.name": (r"[^/]*", "names the log file; leave out the /"),
    "callbacks": (r"None|\{\}", "not supported; inspect.show takes classes of your own"),
    "output_subdir": (r"None|\.hydra", "must be .hydra or null"),
}
"""What Hydra's own part of a config may be, with what is said of anything else."""


def check_folder(path: str, key: str, typed: bool = False) -> None:
    """Refuses the output folder itself, and a folder outside of it unless the user has `typed` it."""
    if not path.strip() or "\0" in path:
        raise UserError(f"{key}={path}: is no folder; name one")
    root, place = outputs().resolve(), Path(path).resolve()
    if place == root or not (typed or root in place.parents):
        remedy = f"name a folder in it, type {key} on the command line, or set VGGEXP_OUTPUTS"
        raise UserError(f"{key}={path}: is {'' if place == root else 'outside '}{outputs()}/; {remedy}")


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of YAML files, which checks each file that is not the project's own before it is composed."""

    def load_config(self, config_path: str) -> ConfigResult:
        inside, place = os.path.normpath(self.path), Path(self.path, self._normalize_file_name(config_path))
        if not os.path.normpath(place).startswith(f"{inside}{os.sep}"):
            raise UserError(f"{config_path}: is outside of {inside}; name a config in it")
        path = place.resolve()
        if paths.CONF in path.parents:
            return super().load_config(config_path)
        try:
            _check_file(path)
            return super().load_config(config_path)
        except yaml.YAMLError as error:
            raise UserError(f"{path}: is not plain YAML: {' '.join(str(error).split())}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {error}") from error


def check_files() -> None:
    """Has Hydra read every file by FileConfigSource; its `register` would keep its own reader."""
    SourcesRegistry.instance().types["file"] = FileConfigSource


@contextmanager
def bounded() -> Iterator[None]:
    """Bounds of how many defaults a config is composed and how often its values are interpolated.

    Each may stand for several others, so that a short file could stand for more than there are atoms.
    """
    resolve_parse_tree, load_config = Container.resolve_parse_tree, CachingConfigRepository.load_config
    root: Container | None = None  # of the config whose values were counted last
    values = 0

    def resolve(container: Container, *args: Any, **options: Any) -> Any:
        nonlocal root, values
        values = values + 1 if root is container._get_root() else 1
        root = container._get_root()
        if values > INTERPOLATIONS:
            raise UserError(f"interpolations stand for more than {INTERPOLATIONS:,} values; use fewer")
        return resolve_parse_tree(container, *args, **options)

    def load(repository: Any, config_path: str) -> Any:  # which Hydra makes anew for each config
        repository.loads = getattr(repository, "loads", 0) + 1
        if repository.loads > MOST_DEFAULTS:
            raise UserError(f"{config_path}: more than {MOST_DEFAULTS:,} defaults make one config; use fewer")
        return load_config(repository, config_path)

    Container.resolve_parse_tree, CachingConfigRepository.load_config = resolve, load  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Container.resolve_parse_tree, CachingConfigRepository.load_config = resolve_parse_tree, load_config  # type: ignore[method-assign]


def _check_file(path: Path) -> None:
    """Refuses what is too large, what would import a package, and numbers that are not what they look like."""
    try:
        text = files.content(path, LARGEST_FILE).decode()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; use a plain YAML file") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{path}: begins with a byte order mark; save it as UTF-8 without one")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):  # type: ignore[no-untyped-call]
        raise UserError(f"{path}: has an alias (*name), which could stand for any number of values; write ${{key}}")
    for node in _scalars(yaml.compose(text, yaml.SafeLoader)):  # type: ignore[no-untyped-call]
        if "searchpath" in node.value:  # Hydra imports the packages of pkg:// before the result can be checked
            raise UserError(f"{path}: {node.value}: a file cannot add a searchpath; use --config-dir")
        if "${" in node.value and len(node.value) > LONGEST_INTERPOLATION:
            raise UserError(f"{path}: has an interpolation of more than {LONGEST_INTERPOLATION:,} characters")
        if node.tag.endswith((":int", ":float")) and re.match(r"[-+]?0[0-7_]|.*:", node.value):
            read = yaml.safe_load(node.value)  # type: ignore[no-untyped-call]
            raise UserError(f"{path}: {node.value}: YAML reads {read}; write that, or '{node.value}' in quotes")


def _scalars(node: yaml.Node | tuple[yaml.Node, yaml.Node] | None) -> Iterator[yaml.ScalarNode]:
    """The keys and values of a tree."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif node is not None:
        for part in node if isinstance(node, tuple) else node.value:
            yield from _scalars(part)


def check_overrides(overrides: list[str]) -> None:
    """Refuses an argument that would make Hydra import a package."""
    for override in overrides:
        if "hydra.searchpath" in override and ("pkg:" in override or "${" in override):
            raise UserError(f"{override}: only file:// is allowed")


def check_trust(cfg: Config, typed: set[str]) -> None:
    """Refuses what only the user may grant, where it is not among the keys that are `typed` but comes from a file."""
    trust = {
        "allowed_packages": cfg.allowed_packages,
        "data.cache_dir": cfg.data.cache_dir,
        "logger.uri": cfg.logger.uri,
    }
    for key, value in trust.items():
        if value and key not in typed:
            raise UserError(f"{key}={value}: was read from a file, which grants no trust; type it on the command line")


def check_hydra(settings: DictConfig, allowed: list[str], multirun: bool, typed: set[str]) -> None:
    """Checks Hydra's own part of a composed config before Hydra acts on it; `typed` are the keys that the user set."""
    trusted = (*PLUGINS, *(f"{package}." for package in allowed))
    tree: Any = OmegaConf.to_container(settings, resolve=False)
    for key, value in _targets(tree, "hydra"):
        if not value.startswith(trusted):
            trust = f"to trust it, set allowed_packages=[{value.split('.')[0]}]"
            raise UserError(f"{key}={value}: not in an allowed package; {trust}")
    for key, value in flatten({part: tree[part] for part in ("job_logging", "hydra_logging")}).items():
        name = key.rpartition(".")[2]
        if name not in LOG:
            raise UserError(f"hydra.{key}={value}: a log has no such key; it has {', '.join(LOG)}")
        if not re.fullmatch(LOG[name], str(value)):
            raise UserError(f"hydra.{key}={value}: could run code or leave the run's folder, or is none; leave it out")
    for key, (pattern, fault) in SETTINGS.items():
        if not re.fullmatch(pattern, str(value := OmegaConf.select(settings, key))):
            raise UserError(f"hydra.{key}={value}: {fault}")
    if multirun:
        check_folder(settings.sweep.dir, "hydra.sweep.dir", "hydra.sweep.dir" in typed)
        OmegaConf.update(settings, "job.num", 0)  # Hydra numbers the jobs later
        subdir = str(settings.sweep.subdir)
        if ".." in Path(subdir).parts or Path(subdir).anchor:
            raise UserError(f"hydra.sweep.subdir={subdir}: is outside the sweep's folder; name a folder in it")
    else:
        check_folder(settings.run.dir, "hydra.run.dir", "hydra.run.dir" in typed)


def _targets(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every `_target_` of a tree, with its key."""
    for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        if name == "_target_":
            yield f"{key}._target_", str(value)
        elif isinstance(value, Mapping | list):
            yield from _targets(value, f"{key}.{name}")
