"""What is refused before the first step, and what ends training early: so many steps, or a loss that is not finite."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vggexp.errors import NON_FINITE, UserError

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


class MaxSteps(L.Callback):
    """Ends training after so many optimizer steps; the epoch that is cut short is validated, too.

    Lightning's own `max_steps` would count epochs differently and could not resume between two of them.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class FiniteLoss(L.Callback):
    """Ends the run before a loss that is infinite or not a number can reach the weights.

    On a GPU with a fused optimizer, the device itself skips the optimizer's step, and the loss is checked when the next
    one has been queued: neither ever waits for the other.
    """

    def __init__(self) -> None:
        self._broken: Tensor | None = None
        self._late = False
        self._batch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        fused = trainer.optimizers[0].param_groups[0].get("fused")
        # in 16-mixed, the scaling of the loss already has the device skip steps
        self._late = trainer.strategy.root_device.type == "cuda" and bool(fused) and trainer.precision != "16-mixed"

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batch = batch_idx + 1

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._check()
        broken = (~loss.detach().isfinite()).float()
        if trainer.world_size > 1:
            broken = trainer.strategy.reduce(broken, reduce_op="max")  # all processes end together
        self._where = (trainer.current_epoch + 1, self._batch, trainer.optimizers[0].param_groups[0]["lr"])
        self._broken, self._event = broken, None
        if broken.is_cuda:
            self._broken = torch.empty((), pin_memory=True).copy_(broken, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        if self._late:
            trainer.optimizers[0].found_inf = broken  # type: ignore[attr-defined]  # fused kernels look at it
        elif self._event is None:
            self._check()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._late:
            self._check()

    def _check(self, *_: Any, **__: Any) -> None:
        """Checks the last loss, once."""
        broken, self._broken = self._broken, None
        if broken is None:
            return
        if self._event is not None:
            self._event.synchronize()
        if broken:
            epoch, batch, lr = self._where
            advice = "try a smaller optimizer.lr, scheduler=onecycle or trainer.gradient_clip_val=1"
            where = f"in epoch {epoch}, batch {batch}, at lr {lr:g}"
            raise UserError(f"train/loss: not finite {where}; the weights before it are kept; {advice}", NON_FINITE)

    on_train_epoch_end = on_save_checkpoint = _check
