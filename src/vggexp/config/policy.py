"""What a config may not do, though Hydra would let it: run code, write outside the output folder, grow without end."""

import os
import re
from collections.abc import Iterator, Mapping
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

from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.system import files, paths
from vggexp.system.paths import outputs

LARGEST_FILE, LARGEST_TREE, DEEPEST, MOST_DEFAULTS = 2**16, 10**4, 50, 2000
LONGEST_INTERPOLATION, INTERPOLATIONS, LONGEST_RESULT = 1000, 2000, 10**6
PLUGINS = ("hydra_plugins.", "vggexp.jobs.")  # launchers and sweepers: what Hydra looks into, and this project's
HANDLERS = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler")
LOG_KEYS = ("class", "filename", "formatter", "format", "datefmt", "stream", "mode", "level")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FOLDER, LOG_NAME = "${hydra.runtime.output_dir}/", "${hydra.job.name}"


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
        except RecursionError as error:
            raise UserError(f"{path}: is nested too deeply, or within itself") from error


def check_files() -> None:
    """Has Hydra read every file by FileConfigSource; its `register` would keep its own reader."""
    SourcesRegistry.instance().types["file"] = FileConfigSource


class Bounded:
    """Bounds of how many defaults a config is composed, how often its values are interpolated, how long they become.

    Each may stand for several others, so that a short file could stand for more than there are atoms.

    Raises:
        UserError: a config stands for more than that.
    """

    def __enter__(self) -> None:
        resolve_parse_tree, load_config = Container.resolve_parse_tree, CachingConfigRepository.load_config
        self._originals = resolve_parse_tree, load_config
        root: Container | None = None  # of the config whose values were counted last
        values = characters = 0

        def resolve(container: Container, *args: Any, **options: Any) -> Any:
            nonlocal root, values, characters
            if root is not (root := container._get_root()):
                values = characters = 0
            values += 1
            if values > INTERPOLATIONS or characters > LONGEST_RESULT:
                raise UserError(f"interpolations stand for more than {INTERPOLATIONS:,} values; use fewer")
            found = resolve_parse_tree(container, *args, **options)
            characters += len(found) if isinstance(found, str) else 0
            return found

        def load(repository: Any, config_path: str) -> Any:  # which Hydra makes anew for each config
            repository.loads = getattr(repository, "loads", 0) + 1
            if repository.loads > MOST_DEFAULTS:
                raise UserError(f"{config_path}: more than {MOST_DEFAULTS:,} defaults make one config; use fewer")
            return load_config(repository, config_path)

        Container.resolve_parse_tree = resolve  # type: ignore[assignment, method-assign]
        CachingConfigRepository.load_config = load  # type: ignore[assignment, method-assign]

    def __exit__(self, *_: object) -> None:
        Container.resolve_parse_tree, CachingConfigRepository.load_config = self._originals  # type: ignore[method-assign]


def _check_file(path: Path) -> None:
    """Refuses what is too large, what would import a package, and numbers that are not what they look like."""
    try:
        text = files.content(path, LARGEST_FILE).decode()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; use a plain YAML file") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{path}: begins with a byte order mark; save it as UTF-8 without one")
    root = yaml.compose(text, yaml.SafeLoader)  # type: ignore[no-untyped-call]
    if root is None:
        return
    if _size(root, {}) > LARGEST_TREE:
        raise UserError(f"{path}: stands for more than {LARGEST_TREE:,} values, or is nested more than {DEEPEST} deep")
    for node in _scalars(root):
        if "${" in node.value and len(node.value) > LONGEST_INTERPOLATION:
            raise UserError(f"{path}: has an interpolation of more than {LONGEST_INTERPOLATION:,} characters")
        if node.tag.endswith((":int", ":float")) and re.match(r"[-+]?0[0-7_]|.*:", node.value):
            read = yaml.safe_load(node.value)  # type: ignore[no-untyped-call]
            raise UserError(f"{path}: {node.value}: YAML reads {read}; write that, or '{node.value}' in quotes")
    for key, value in _strings(yaml.safe_load(text), ""):  # type: ignore[no-untyped-call]
        # Hydra imports the packages of pkg:// while it composes, before the result can be checked
        if "searchpath" in key.split(".") and not value.startswith("file://"):
            raise UserError(f"{path}: hydra.searchpath={value}: only file:// is allowed")


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """The values of a tree that `_size` has found small enough."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    else:
        for part in node.value:
            for each in part if isinstance(part, tuple) else (part,):
                yield from _scalars(each)


def _size(node: yaml.Node, known: dict[int, int], depth: int = 0) -> int:
    """The number of values in a node after its aliases are expanded."""
    if id(node) not in known:
        known[id(node)] = LARGEST_TREE + 1  # for a node that contains itself
        if depth > DEEPEST:
            return LARGEST_TREE + 1
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        leaf = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 if leaf else 1 + sum(_size(child, known, depth + 1) for child in children)
    return known[id(node)]


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
    tree = OmegaConf.to_container(settings, resolve=False)
    assert isinstance(tree, dict)
    for key, value in _strings(tree, "hydra"):
        name = key.rpartition(".")[2]
        logging = key.startswith(("hydra.job_logging.", "hydra.hydra_logging."))
        if name == "_target_" and not value.startswith(trusted):
            trust = f"to trust it, set allowed_packages=[{value.split('.')[0]}]"
            raise UserError(f"{key}={value}: not in an allowed package; {trust}")
        if logging and (
            name == "()"
            or (name == "class" and value not in HANDLERS)
            or (value.startswith(("ext://", "cfg://")) and value not in STREAMS)
            or "${" in value.removeprefix(LOG_FOLDER).replace(LOG_NAME, "")
        ):
            raise UserError(f"{key}={value}: would run code; a log takes {', '.join(HANDLERS)} and {STREAMS[0]}")
        if logging and ((name not in LOG_KEYS and not name.isdecimal()) or ".." in key):
            raise UserError(f"{key}={value}: a log has no such key; it has {', '.join(LOG_KEYS)}")
        if logging and name == "level" and value.upper() not in getLevelNamesMapping():
            raise UserError(f"{key}={value}: is no level of a log; INFO is one")
        if logging and name == "filename" and (not value.startswith(LOG_FOLDER) or ".." in value):
            raise UserError(f"{key}={value}: is outside the run's folder; begin it with {LOG_FOLDER}")
    for part in ("job_logging", "hydra_logging"):
        for key in ("formatters", "handlers", "loggers"):
            found = (tree[part] or {}).get(key) or {}
            if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
                raise UserError(f"hydra.{part}.{key}={found}: must be a mapping of mappings")
    if not isinstance(tree.get("verbose"), bool | str | list):
        raise UserError(f"hydra.verbose={tree['verbose']}: must be true, false, or the names of loggers")
    if tree["job"].get("env_set"):
        raise UserError(f"hydra.job.env_set={tree['job']['env_set']}: refused; set variables before the command")
    if tree.get("callbacks"):
        raise UserError(f"hydra.callbacks={tree['callbacks']}: not supported; inspect.show takes classes of your own")
    if tree.get("output_subdir") not in (None, ".hydra"):
        raise UserError(f"hydra.output_subdir={tree['output_subdir']}: must be .hydra or null")
    if "/" in settings.job.name:
        raise UserError(f"hydra.job.name={settings.job.name}: names the log file; leave out the /")
    if multirun:
        check_folder(settings.sweep.dir, "hydra.sweep.dir", "hydra.sweep.dir" in typed)
        OmegaConf.update(settings, "job.num", 0)  # Hydra numbers the jobs later
        subdir = str(settings.sweep.subdir)
        if ".." in Path(subdir).parts or Path(subdir).is_absolute():
            raise UserError(f"hydra.sweep.subdir={subdir}: is outside the sweep's folder; name a folder in it")
    else:
        check_folder(settings.run.dir, "hydra.run.dir", "hydra.run.dir" in typed)


def _strings(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    """The text values of a tree, each with its key."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _strings(value, f"{key}.{name}")
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _strings(value, f"{key}.{number}")
    elif isinstance(tree, str | bytes):
        yield key, str(tree)
