"""What a config may not do, though Hydra would let it: run code, write outside the output folder, grow without end."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from vggexp.errors import UserError
from vggexp.system import paths
from vggexp.system.paths import outputs

LARGEST_FILE, LARGEST_TREE = 2**20, 10**5
PLUGINS = ("hydra_plugins.", "vggexp.jobs.")  # launchers and sweepers: what Hydra looks into, and this project's
HANDLERS = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FOLDER, LOG_NAME = "${hydra.runtime.output_dir}/", "${hydra.job.name}"


def check_folder(path: str, key: str, typed: bool = False) -> None:
    """Refuses the output folder itself, and a folder outside of it unless the user has `typed` it."""
    root, place = outputs().resolve(), Path(path).resolve()
    if place == root or not (typed or root in place.parents):
        remedy = f"name a folder in it, type {key} on the command line, or set VGGEXP_OUTPUTS"
        raise UserError(f"{key}={path}: is {'' if place == root else 'outside '}{outputs()}/; {remedy}")


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of YAML files, which checks each file that is not the project's own before it is composed."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        if paths.CONF in path.parents:
            return super().load_config(config_path)
        try:
            _check_file(path)
            return super().load_config(config_path)
        except yaml.YAMLError as error:
            raise UserError(f"{path}: is not plain YAML: {' '.join(str(error).split())}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}") from error
        except RecursionError as error:
            raise UserError(f"{path}: is nested too deeply, or within itself") from error


def check_files() -> None:
    """Has Hydra read every file by FileConfigSource; its `register` would keep its own reader."""
    SourcesRegistry.instance().types["file"] = FileConfigSource


def _check_file(path: Path) -> None:
    """Refuses what is too large, what would import a package, and numbers that are not what they look like."""
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path}: is larger than {LARGEST_FILE:,} bytes, too large for a config")
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, yaml.SafeLoader)  # type: ignore[no-untyped-call]
    if root is None:
        return
    if _size(root, {}) > LARGEST_TREE:
        raise UserError(f"{path}: its aliases expand to more than {LARGEST_TREE:,} values")
    for node in _scalars(root):
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


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node after its aliases are expanded."""
    if id(node) not in known:
        known[id(node)] = LARGEST_TREE + 1  # for a node that contains itself
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        leaf = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 if leaf else 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def check_overrides(overrides: list[str]) -> None:
    """Refuses an argument that would make Hydra import a package."""
    for override in overrides:
        if "hydra.searchpath" in override and ("pkg:" in override or "${" in override):
            raise UserError(f"{override}: only file:// is allowed")


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
        if logging and name == "filename" and (not value.startswith(LOG_FOLDER) or ".." in value):
            raise UserError(f"{key}={value}: is outside the run's folder; begin it with {LOG_FOLDER}")
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
