"""A finished network, loaded without trusting what its file says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggexp.config import compose
from vggexp.config.schema import Config, flatten, merged, untrusted
from vggexp.errors import UserError
from vggexp.runs import layout, read, select
from vggexp.system.text import clean

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from vggexp.data.preparation import Preparation
    from vggexp.inference.predict import Predictions
    from vggexp.training.classifier import Classifier

OVERRIDABLE = ("data.", "trainer.", "allowed_packages")
"""What may differ between training a network and using it: where the data are and what it runs on."""

DIMENSIONS = {"image_size", "in_channels", "num_classes"}
LONGEST_NAME = 2000  # characters of a class, whose folder's name may be spelled out
BEFORE: dict[str, Any] = {"fit": "pad", "stored": [28, 28], "mean": [], "std": []}
"""How images were prepared before checkpoints said so."""


@dataclass(frozen=True)
class Network:
    """What a run has made."""

    path: Path  # of the checkpoint
    cfg: Config
    classes: tuple[str, ...]
    dimensions: dict[str, int]  # of the data: `image_size`, `in_channels` and `num_classes`
    preparation: "Preparation"  # from stored images to the network's input
    classifier: "Classifier"  # in evaluation mode, on the CPU
    result: dict[str, Any] | None  # what the run stored, where the checkpoint is the one that it tested

    @property
    def module(self) -> "nn.Module":
        """The plain network: prepared images, (N, C, S, S) float32, to logits, (N, K)."""
        return self.classifier.net

    @property
    def config(self) -> dict[str, Any]:
        """What the network was trained with, as a tree."""
        return self.cfg.values()

    def predict(
        self, images: "Tensor | np.ndarray | str | Path | Sequence[str | Path]", invert: bool = False
    ) -> "Predictions":
        """The most probable class and the probabilities of each image.

        Args:
            images: (N, C, H, W) or, of gray images, (N, H, W) uint8; or files, as `vggexp predict input=` names them.
            invert: for files that show dark things on light ground.

        Raises:
            UserError: if a file cannot be read, or the images are of another kind.
        """
        from vggexp.inference import predict

        return predict.of_images(self, images, invert)

    @property
    def folder(self) -> Path:
        """The run's folder; where there is none, the checkpoint's."""
        parent = self.path.parent
        return parent.parent if (parent.parent / layout.RESULT).exists() else parent


def load(run: str, overrides: Mapping[str, Any] | None = None) -> Network:
    """The network that `run` means: a run folder, a checkpoint file, or `last`.

    A checkpoint names the classes that it is built from; they must come from allowed packages, of which those beyond
    the project's own count only if the caller names them in `overrides`, a tree; see OVERRIDABLE.
    """
    path = select.checkpoint(run, "run")
    from vggexp.checkpoints import file  # torch and Lightning: only now, when the file is known to exist

    place = f"run={path}"
    content = file.read(path, "run")
    about: list[Any] = [content.get(key) for key in ("config", "classes", "dimensions", "state_dict")]
    stored, classes, dimensions, weights = about
    if not _is_checkpoint(*about):
        advice = f"to start from bare weights, train with model.weights={path}"
        raise UserError(f"{place}: is not a checkpoint of a run; {advice}")
    file.check_finite(weights, place)
    config = untrusted(stored)
    if isinstance(config.get("trainer"), dict) and config["trainer"].get("precision") == "auto":
        config["trainer"] = {**config["trainer"], "precision": content.get("precision", "auto")}
    try:
        cfg = compose.validate(merged(config, overrides or {}), Config)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    folder = path.parent.parent
    if (found := read.read(folder)).status == "unreadable":
        raise UserError(f"{place}: {found.reason}")
    here = flatten({"model": stored["model"]})
    there = {key: value for key, value in found.config.items() if key.startswith("model.")} or here
    for key in {**there, **here}:
        if here.get(key) != there.get(key):
            others = f"{key}={here.get(key)} in the checkpoint, {there.get(key)} in {layout.RESULT}"
            raise UserError(f"{place}: holds another network than its run: {others}")

    import torch

    from vggexp.data.preparation import Preparation
    from vggexp.models.cpu import tuning
    from vggexp.training.classifier import Classifier

    about_data = {"classes": classes, "preparation": content.get("preparation", {**BEFORE, "size": cfg.data.size})}
    about_data["choices"] = tuning.checked(content.get("choices")) or {}
    try:
        preparation = Preparation.read(about_data["preparation"], dimensions["in_channels"])
        if preparation.size != dimensions["image_size"]:
            raise ValueError(f"it prepares images of {preparation.size} pixels for {dimensions['image_size']}")
        with torch.device("meta"):  # takes no memory, however large the file says that its network is
            Classifier(cfg, about_data, dimensions).load_state_dict(weights, assign=True)
        module = Classifier(cfg, about_data, dimensions)
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        first = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"{place}: its weights do not fit the network that it names: {first}") from error
    tested = found.status == "completed" and path.resolve() == found.tested_checkpoint().resolve()
    result = found.result if tested else None
    return Network(path, cfg, tuple(map(clean, classes)), dimensions, preparation, module.eval(), result)


def _is_checkpoint(config: Any, classes: Any, dimensions: Any, weights: Any) -> bool:
    """Whether a file describes a network in the form that a run writes; its values are checked later."""
    import torch

    return (
        all(isinstance(part, dict) for part in (config, dimensions, weights))
        and dimensions.keys() == DIMENSIONS
        and all(isinstance(value, int) and value > 0 for value in dimensions.values())
        and isinstance(classes, list)
        and len(classes) == dimensions["num_classes"]
        and all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in classes)
        and all(isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in weights.items())
    )
