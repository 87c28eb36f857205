"""What is fastest here for a config, as `models/cpu/tuning` measures it; `trainer.precision=auto` is a part of it."""

from collections.abc import Mapping

import torch

from vggexp.config.instantiate import datamodule, network
from vggexp.config.schema import Config
from vggexp.models.cpu import tuning
from vggexp.models.cpu.tuning import Found
from vggexp.system import hardware


def resolved(
    cfg: Config, dimensions: Mapping[str, int] | None = None, kept: Found | None = None, again: bool = False
) -> tuple[Config, Found]:
    """The config with `auto` replaced, and the choices, by name.

    Args:
        dimensions: of the data; by default, they are asked for them.
        kept: what was chosen when a run began; only what it lacks is chosen now.
        again: measures even if that was done before.
    """
    given = None if cfg.trainer.precision == "auto" else cfg.trainer.precision
    if kept is not None and (given or "precision" in kept):
        found = kept
    elif (device := hardware.device(cfg.trainer.accelerator).type) != "cpu":
        native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        found = {"precision": {"chosen": "bf16-mixed" if native else "32-true", "seconds": {}}} if not given else {}
    else:
        dimensions = dimensions or datamodule(cfg).dimensions
        with torch.device("meta"):
            net = network(cfg.model.spec(), dimensions)
        shape = (dimensions["in_channels"], dimensions["image_size"], dimensions["image_size"])
        found = tuning.find(net, shape, cfg.data.batch_size, given, again)
    precision = given or found["precision"]["chosen"]
    return cfg.model_copy(update={"trainer": cfg.trainer.model_copy(update={"precision": precision})}), found


def with_precision(cfg: Config) -> Config:
    """The config with `auto` replaced."""
    return resolved(cfg)[0] if cfg.trainer.precision == "auto" else cfg


def line(found: Found) -> str | None:
    """Says what was measured and by how much the chosen candidates are faster; None if nothing was."""
    parts = []
    for choice in found.values():
        others = dict(choice["seconds"])
        if (own := others.pop(choice["chosen"], None)) is not None:
            other = min(others, key=others.__getitem__)
            parts.append(f"{choice['chosen']}: {others[other] / own:.3g} × {other}")
    return f"measured on this machine: {'; '.join(parts)}" if parts else None
