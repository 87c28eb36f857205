"""Turns `{"_target_": "package.module.Name", **options}` into an object."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from vggexp.config.components import ALLOWED, Data, Model
from vggexp.config.schema import Config
from vggexp.data import DataModule, Source
from vggexp.errors import UserError

SCHEDULES = "vggexp.training.schedules"
OURS = {prefix.split(".")[0] for prefixes in ALLOWED.values() for prefix in prefixes}


def locate(target: str, kind: type) -> Any:
    """The class or function that `_target_` names.

    The caller has checked that `target` is in an allowed package; the object must also be defined there, so that a
    module's imports do not lead out of the package.
    """
    module, _, name = target.rpartition(".")
    package = module.split(".")[0]
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_={target}: cannot be loaded: {error}") from error
    if not callable(found) or getattr(found, "__module__", "").split(".")[0] != package:
        raise UserError(f"_target_={target}: is not a class or function of {package}")
    function = kind is LRScheduler and inspect.isfunction(found) and (module == SCHEDULES or package not in OURS)
    if not function and (not isinstance(found, type) or not issubclass(found, kind) or inspect.isabstract(found)):
        raise UserError(f"_target_={target}: is not a {kind.__name__}")
    return found


def construct(kind: type, spec: Mapping[str, Any], *args: Any, **extra: Any) -> Any:
    """Calls what `_target_` names with `args`, the spec's other entries and `extra`."""
    options = dict(spec)
    target = options.pop("_target_")
    factory = locate(target, kind)
    try:
        inspect.signature(factory).bind(*args, **options, **extra)
    except TypeError as error:
        raise UserError(f"_target_={target}: {error}; it takes {inspect.signature(factory)}") from error
    try:
        return factory(*args, **options, **extra)
    except ValueError as error:
        raise UserError(f"_target_={target}: {error}") from error


def network(model: Mapping[str, Any], dimensions: Mapping[str, int]) -> Any:
    """The network of a model config."""
    aside = Model.model_fields.keys() - {"target"}  # what is done with a network, not an argument of it
    return construct(nn.Module, {key: value for key, value in model.items() if key not in aside}, **dimensions)


def datamodule(cfg: Config) -> DataModule:
    """The data of a run: what all data sets have in common goes to the module, everything else to the source."""
    spec, data = cfg.data.spec(), cfg.data
    common = {key: spec.pop(key) for key in Data.model_fields if key in spec.keys() - Source.__dataclass_fields__}
    source = construct(Source, spec, size=data.largest_size)
    return DataModule(source=source, **common | {"resize": data.sizes, "seed": cfg.seed, "split_seed": data.seed})
