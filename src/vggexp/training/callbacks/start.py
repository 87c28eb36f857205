"""The last that is refused before training, and the moment at which it really begins or goes on."""

from collections.abc import Callable
from typing import Any

import lightning as L
from torch import Tensor

from vggexp.errors import UserError

SINGLE = ("step", "eta", "mu", "mu_product")  # what torch's optimizers keep as one number for each weight


class Start(L.Callback):
    """Calls a function once, before the first step."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a share of batches that is none: in testing, it would be noticed only when all is trained."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        stages = dict.fromkeys(("train", data.validates, "test")) if stage == "fit" else ()
        for stage in filter(None, stages):
            limit, batches = getattr(trainer, f"limit_{stage}_batches"), len(data.loader(stage))
            if isinstance(limit, float) and batches and int(limit * batches) < 1:
                key = f"trainer.limit_{stage}_batches"
                raise UserError(f"{key}={limit}: is none of {batches} batches; set {key}=1 or more")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses a state that does not fit its weights: torch's fused optimizers would read and write beyond it."""
        for optimizer in trainer.optimizers:
            known = type(optimizer).__module__.startswith(("torch.optim.", "vggexp."))
            for weight, state in optimizer.state.items() if known else ():
                for name, value in state.items():
                    single = isinstance(value, Tensor) and value.ndim == 0 and name in SINGLE
                    if isinstance(value, Tensor) and not single and value.shape != weight.shape:
                        has, needs = tuple(value.shape), tuple(weight.shape)
                        raise UserError(f"resume: the optimizer's {name} is {has} where its weight is {needs}")

    def on_train_batch_start(self, *_: Any) -> None:
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()
