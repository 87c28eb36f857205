"""The last that is refused before training, and the moment at which it really begins or goes on."""

from collections.abc import Callable
from typing import Any

import lightning as L

from vggexp.errors import UserError


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

    def on_train_batch_start(self, *_: Any) -> None:
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()
