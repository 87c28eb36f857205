"""What a config may hold: every key with its type and range. The values themselves are in `conf/`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from vggexp.config import components
from vggexp.config.components import ALLOWED, SCHEMAS, Metric, Positive, Section

Batches = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
"""A number of batches (an integer) or a share of them (a float)."""


class Step(Section):
    """What happens in a step beside the network."""

    label_smoothing: components.Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    test_time_flip: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None


class EarlyStopping(Section):
    patience: Annotated[int, Field(ge=1)] | None
    min_delta: components.NotNegative


class Trainer(Section):
    """Arguments of Lightning's Trainer under Lightning's names; `compile`, `early_stopping` and `timeout` are ours."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] | Annotated[list[int], Field(min_length=1)]
    num_nodes: int = Field(ge=1)
    timeout: Positive = 60
    strategy: Literal["auto", "ddp"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    max_epochs: int = Field(ge=0)
    max_steps: Annotated[int, Field(ge=1)] | None
    max_time: Annotated[str, Field(pattern=r"^\d\d:\d\d:\d\d:\d\d$")] | None
    accumulate_grad_batches: int = Field(ge=1)
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Literal["norm", "value"]
    limit_train_batches: Batches
    limit_val_batches: Batches
    limit_test_batches: Batches
    check_val_every_n_epoch: int = Field(ge=1)
    num_sanity_val_steps: int = Field(ge=0)
    log_every_n_steps: int = Field(ge=1)
    enable_progress_bar: bool
    deterministic: bool
    benchmark: bool
    detect_anomaly: bool
    sync_batchnorm: bool
    profiler: Literal["simple", "advanced", "pytorch"] | None
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None
    early_stopping: EarlyStopping


class Checkpoint(Section):
    every_n_seconds: Positive


INSPECTIONS = {
    "gauges": "vggexp.inspection.health.Gauges",
    "distributions": "vggexp.inspection.health.Distributions",
    "predictions": "vggexp.inspection.predictions.Predictions",
    "pictures": "vggexp.inspection.pictures.Pictures",
    "gradcam": "vggexp.inspection.pictures.GradCAM",
    "description": "vggexp.inspection.description.Description",
    "projector": "vggexp.inspection.predictions.Projection",
}
"""What `inspect.show` may name, each with its class; a class of an allowed package is named in full."""


class Inspect(Section):
    """What a run shows beside its curves, and how often."""

    times: int = Field(ge=1, default=1)
    show: list[str] = Field(default_factory=list)

    def targets(self) -> list[str]:
        """The classes, as `package.module.Name`."""
        return [INSPECTIONS.get(name, name) for name in self.show]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if other := [name for name in self.show if name not in INSPECTIONS and "." not in name]:
            known = f"one of {', '.join(INSPECTIONS)}, or a class of your own as package.module.Name"
            raise ValueError(f"show={other[0]}: must be {known}")
        return self


class Logger(Section):
    """Where numbers and pictures go, beside `metrics.csv`."""

    name: Literal["tensorboard", "csv", "mlflow", "wandb"] = "tensorboard"
    project: str | None = None
    uri: str | None = None
    mode: Literal["offline", "online"] | None = None


class Search(Section):
    """How `search=optuna` looks for a config; not a part of the config itself."""

    n_trials: int = Field(ge=1)
    at_once: int = Field(ge=1)
    storage: str | None
    study: str | None
    seed: int = Field(ge=0)
    startup_trials: int = Field(ge=0)
    pruner: Literal["median", "hyperband"] | None
    warmup_epochs: int = Field(ge=1)
    space: dict[str, str]


REMARKS = ("tags", "note")  # what a user writes on a run, for a reader
GROUPS = ("model", "data", "optimizer", "scheduler")  # the parts of a run that a `_target_` names


class Config(Section):
    """One run."""

    seed: int = Field(ge=0, lt=2**32)
    allowed_packages: list[str]
    data: SerializeAsAny[components.Data]
    model: SerializeAsAny[components.Model]
    step: Step = Step()
    optimizer: SerializeAsAny[components.Optimizer]
    scheduler: SerializeAsAny[components.Scheduler]
    trainer: Trainer
    checkpoint: Checkpoint
    logger: Logger = Logger()
    inspect: Inspect = Inspect()
    metrics: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Metric] = Field(default_factory=dict)
    tags: list[str] = Field(default_factory=list)
    note: str = ""

    @field_validator(*GROUPS, mode="wrap")
    @classmethod
    def _by_target(cls, value: Any, handler: Any, info: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
            return handler(value)
        other = SCHEMAS[info.field_name]
        schema = SCHEMAS.get(value["_target_"], other)
        if not issubclass(schema, other.__bases__):
            raise ValueError(f"_target_={value['_target_']}: is not a {info.field_name}")
        return schema.model_validate(value)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        trusted = tuple(f"{package}." for package in self.allowed_packages)
        targets = {f"{name}._target_": getattr(self, name).target for name in GROUPS}
        targets |= {f"metrics.{name}._target_": metric.target for name, metric in self.metrics.items()}
        targets |= {f"inspect.show.{n}": target for n, target in enumerate(self.inspect.targets())}
        for key, target in targets.items():
            if not target.startswith((*ALLOWED[key.partition(".")[0]], *trusted)):
                trust = f"to trust it, set allowed_packages=[{target.split('.')[0]}]"
                raise ValueError(f"{key}={target}: not in an allowed package; {trust}")
        resize, smallest, trainer = self.data.resize, self.model.smallest_image, self.trainer
        if min(self.data.sizes.values()) < smallest:
            raise ValueError(f"data.resize={resize}: too small for this network; set data.resize={smallest} or more")
        if trainer.early_stopping.patience is not None and self.data.val_size == 0:
            nothing = "data.val_size=0 leaves no validation set; set data.val_size to more"
            raise ValueError(f"trainer.early_stopping.patience: watches val/acc, and {nothing}")
        clips = trainer.gradient_clip_val is not None
        if clips and trainer.precision == "16-mixed" and getattr(self.optimizer, "fused", False):
            raise ValueError("optimizer.fused=true: cannot clip gradients in 16-mixed; set optimizer.fused=false")
        return self

    def values(self) -> dict[str, Any]:
        """The keys as plain values, without those that only a reader needs."""
        return self.model_dump(by_alias=True, exclude=set(REMARKS))

    def hash(self) -> str:
        """The same for two runs that must give the same numbers: sha256 over `values`, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, each under its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def merged(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Plain values, of which those of `over` count where both have a key; nothing in them is interpolated."""
    both = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping):
            both[key] = merged(base[key], over[key])
    return both


def untrusted(stored: Mapping[Any, Any]) -> dict[Any, Any]:
    """A config that a file has kept, without what only the command line may grant: trust, and places to write to."""
    granted = {"allowed_packages": [], "data": {"cache_dir": None}}
    return merged(stored, granted) if isinstance(stored.get("data"), dict) else {**stored, "allowed_packages": []}
