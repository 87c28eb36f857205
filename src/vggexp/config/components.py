"""The parts of a run that a `_target_` names: networks, data, optimizers, schedules and metrics, with their keys."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from vggexp.models import architecture

ALLOWED = {
    "model": ("vggexp.models.",),
    "data": ("vggexp.data.",),
    "optimizer": ("torch.optim.", "vggexp.training."),
    "scheduler": ("vggexp.training.schedules.",),
    "metrics": ("torchmetrics.",),
    "inspect": ("vggexp.inspection.",),
}
"""Where the `_target_` of a group may come from; `allowed_packages` adds packages of the user."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
Block = Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=2, max_length=2)]
"""The numbers of a block's convolutions and of its channels."""
MOST_LAYERS, LARGEST_NUMBER = 200, 2**40
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of the config: unknown keys, values of another type, nan and inf are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _one_zero(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"={value:.3g}: is too large a number")
        return 0.0 if isinstance(value, float) and value == 0 else value  # -0.0 is the same number


class Component(Section):
    """A class or function, named by `_target_`, with its keyword arguments."""

    target: str = Field(alias="_target_")

    def spec(self) -> dict[str, Any]:
        """Plain Python values, for `vggexp.config.instantiate.construct`."""
        return self.model_dump(by_alias=True)


class Model(Component):
    """Any network. Its image size, channels and classes are those of the data."""

    weights: str | None = None  # a file to start from
    freeze: Literal["none", "features"] = "none"  # what is not trained

    @property
    def smallest_image(self) -> int:
        """Pixels on a side that the network needs."""
        return 1


class VGG(Model):
    arch: str
    blocks: Annotated[list[Block], Field(min_length=1, max_length=16)] | None
    ratio: int = Field(ge=1)
    hidden: int = Field(ge=0)
    batch_norm: bool
    dropout: Fraction
    init: Literal["default", "kaiming", "xavier"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kernels, channels = architecture.vgg_blocks(self.arch, self.blocks)
        if sum(map(len, kernels)) > MOST_LAYERS:
            raise ValueError(f"blocks: has more than {MOST_LAYERS} convolutions; take fewer")
        architecture.check_ratio(self.ratio, [*channels, self.hidden])
        return self

    @property
    def smallest_image(self) -> int:
        return int(2 ** len(architecture.vgg_blocks(self.arch, self.blocks)[1]))  # each block halves its input


class AlexNet(Model):
    ratio: int = Field(ge=1)
    dropout: Fraction
    init: Literal["default", "kaiming", "xavier"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        architecture.check_ratio(self.ratio, [*architecture.ALEXNET_CHANNELS, architecture.ALEXNET_HIDDEN])
        return self

    @property
    def smallest_image(self) -> int:
        return architecture.ALEXNET_SMALLEST


def _check_size(size: int | float) -> int | float:
    if not (size >= 0 if isinstance(size, int) else 0 < size < 1):
        raise ValueError(f"={size}: must be a number of images, or a share of them between 0 and 1")
    return size


Size = Annotated[int | float, AfterValidator(_check_size)]
"""A number of images (an integer) or a share of them (a float)."""


def schedule(sizes: Mapping[Any, Any]) -> str:
    """Image sizes by epoch as text, such as {0:64,5:96}, which Hydra reads on a command line."""
    return "{" + ",".join(f"{epoch}:{size}" for epoch, size in sizes.items()) + "}"


def _sizes(resize: int | str) -> dict[int, int]:
    pairs = re.findall(r"(\d{1,9}):(\d{1,5})\b", resize) if isinstance(resize, str) else [(0, resize)]
    return {int(epoch): int(size) for epoch, size in pairs}


class Data(Component):
    """What every data set takes."""

    root: str | None
    cache_dir: str | None
    resize: int | str  # pixels on a side, or a schedule of them
    fit: Literal["stretch", "crop", "pad"] = "pad"
    normalize: Literal["none", "imagenet", "dataset"] = "none"
    batch_size: int = Field(ge=1)
    val_size: Size
    test_size: Size = 0.2
    train_size: Annotated[int, Field(ge=1)] | None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None  # of the splits; None: that of the run
    num_workers: int = Field(ge=0)
    test_each_epoch: bool
    flip: bool = False
    shift: int = Field(ge=0, le=1000, default=0)
    cutout: int = Field(ge=0, le=1000, default=0)
    rotate: float = Field(ge=0, le=180, default=0.0)
    resized_crop: Annotated[float, Field(ge=0.01, le=1)] | None = None
    color_jitter: Fraction = 0.0
    mixup: float = Field(ge=0, le=100, default=0.0)
    cutmix: float = Field(ge=0, le=100, default=0.0)

    @field_validator("resize", mode="plain")
    @classmethod
    def _pixels(cls, value: Any) -> int | str:
        value = schedule(value) if isinstance(value, Mapping) else value
        value = value.replace(" ", "") if isinstance(value, str) else value
        sizes = _sizes(value) if type(value) in (int, str) else {}
        whole = type(value) is int or schedule(sizes) == value
        if not sizes or not whole or not all(1 <= size <= 10_000 for size in sizes.values()):
            raise ValueError(f"={value}: must be an integer from 1 to 10000, or a schedule such as {{0:64,5:96}}")
        if min(sizes) or list(sizes) != sorted(sizes):
            raise ValueError(f"={value}: must begin at epoch 0, and its epochs must rise, such as {{0:64,5:96}}")
        return value  # type: ignore[no-any-return]

    @property
    def sizes(self) -> dict[int, int]:
        """Pixels on a side in training, by the epoch, counted from 0, at which they begin."""
        return _sizes(self.resize)

    @property
    def size(self) -> int:
        """Pixels on a side of the network's input: the last of `sizes`."""
        return list(self.sizes.values())[-1]

    @property
    def largest_size(self) -> int:
        """Pixels on a side at which pictures are stored; a square crop of the smallest share then has `resize`."""
        return min(10_000, math.ceil(max(self.sizes.values()) / (self.resized_crop or 1) ** 0.5))


class TorchvisionSet(Data):
    dataset: Literal["MNIST", "KMNIST", "CIFAR10", "CIFAR100"]


class Folder(Data):
    channels: Literal[1, 3]
    store_size: Annotated[int, Field(ge=1, le=10_000)] | None
    skip_bad: bool
    verify: Literal["stat", "full"]


class Optimizer(Component):
    """What every optimizer takes."""

    lr: Positive
    weight_decay: NotNegative


class Adam(Optimizer):
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: Positive
    fused: bool


class SGD(Optimizer):
    momentum: Fraction
    nesterov: bool
    fused: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs a momentum, for example optimizer.momentum=0.9")
        return self


class Muon(Optimizer):
    sgd_layers: list[str] | None
    momentum: Fraction
    sgd_lr: Positive
    sgd_momentum: Fraction
    sgd_weight_decay: NotNegative


class Scheduler(Component):
    """A learning rate as a function of the step."""


class Cosine(Scheduler):
    warmup: Fraction
    final: Fraction


class Triangular(Scheduler):
    warmup: Fraction
    initial: Annotated[float, Field(gt=0, le=1)]
    final: Fraction


class OneCycle(Scheduler):
    warmup: Annotated[float, Field(gt=0, lt=1)]
    initial: Annotated[float, Field(gt=0, le=1)]
    final: Annotated[float, Field(gt=0, le=1)]


class Metric(Component, extra="allow"):
    """A metric of torchmetrics, or one of an allowed package, with its arguments."""


SCHEMAS: dict[str, type[Component]] = {
    "vggexp.models.VGG": VGG,
    "vggexp.models.AlexNet": AlexNet,
    "vggexp.data.FashionMNIST": Data,
    "vggexp.data.Folder": Folder,
    "vggexp.data.TorchvisionSet": TorchvisionSet,
    "torch.optim.Adam": Adam,
    "torch.optim.AdamW": Adam,
    "torch.optim.SGD": SGD,
    "vggexp.training.muon.Muon": Muon,
    "vggexp.training.schedules.constant": Scheduler,
    "vggexp.training.schedules.cosine": Cosine,
    "vggexp.training.schedules.onecycle": OneCycle,
    "vggexp.training.schedules.triangular": Triangular,
}
for _kind in (Model, Data, Optimizer, Scheduler):  # one from elsewhere must have what all of its kind have in common
    _other = create_model(f"_{_kind.__name__}", __base__=_kind, __cls_kwargs__={"extra": "allow"})
    SCHEMAS[_kind.__name__.lower()] = _other
