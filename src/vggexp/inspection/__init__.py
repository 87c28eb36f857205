"""What a run shows of itself: pictures, distributions, curves and tables, each by one small callback.

None of them changes a number of the run: they look between epochs, at images that no one trains on, without dropout.

N images, C channels, H×W pixels, K classes.
"""

from pathlib import Path

from lightning import Callback
from lightning.pytorch.loggers import Logger

from vggexp.config.schema import Config


def callbacks(cfg: Config, folder: Path, logger: Logger | None) -> list[Callback]:
    """The inspections that a config asks for.

    Args:
        folder: of the run.
        logger: that shows them; without one there are scalars alone, in `metrics.csv`.
    """
    from vggexp.inspection.board import Board, board
    from vggexp.inspection.description import Description
    from vggexp.inspection.distributions import Distributions
    from vggexp.inspection.gauges import Gauges
    from vggexp.inspection.pictures import GradCAM, Pictures
    from vggexp.inspection.predictions import Predictions
    from vggexp.inspection.projection import Projection

    place, how = Board() if logger is None else board(logger), cfg.inspect
    every: dict[str, Callback] = {
        "gauges": Gauges(place),
        "distributions": Distributions(place, how.times),
        "predictions": Predictions(place, how.times),
    }
    if logger is not None:
        every |= {
            "pictures": Pictures(place, how.times),
            "gradcam": GradCAM(place, how.times),
            "description": Description(place, cfg, folder),
            "projector": Projection(place),
        }
    return [callback for name, callback in every.items() if getattr(how, name)]
