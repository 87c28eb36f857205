"""What does a run show of itself? Pictures, distributions, scalars and tables, each by one small callback.

No inspection changes a number of the run: it looks between epochs, at test images, without dropout. A new one is a
subclass of `base.Inspection` in a file of its own, and its name in `vggexp.config.schema.INSPECTIONS`.

- `base`: when an inspection looks, and at which images and layers
- `health`, `predictions`, `pictures`, `description`: the inspections
- `loggers`, `csvlog`: where it all goes: the chosen logger, and `metrics.csv`
- `figures`: confusion matrices, galleries and bars, drawn by matplotlib
- `cost`, `dry_run`, `networks`: what networks cost: per layer, as a peak estimated without a run, side by side
- `profile`: where the time of a training step goes
"""

from pathlib import Path

import vggexp.system.torchmetrics  # noqa: F401

# isort: split
from lightning import Callback
from lightning.pytorch.loggers import Logger

from vggexp.config.instantiate import locate
from vggexp.config.schema import Config
from vggexp.inspection.base import Inspection
from vggexp.inspection.loggers import Board


def callbacks(cfg: Config, folder: Path, logger: Logger | None) -> list[Callback]:
    """The inspections that `inspect.show` names, in its order."""
    kinds = [locate(target, Inspection) for target in cfg.inspect.targets()]
    return [kind(logger or Board(), cfg, folder) for kind in kinds if logger is not None or kind.shows_scalars]
