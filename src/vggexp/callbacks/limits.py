"""Where training ends before its epochs do: after so many steps, or at a loss that is not a number."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from vggexp.errors import NON_FINITE, UserError


class MaxSteps(L.Callback):
    """Ends training after so many optimizer steps; the epoch that is cut short is validated, too.

    Lightning's own `max_steps` would count epochs otherwise and could not go on between two of them.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class FiniteLoss(L.Callback):
    """Ends the run before a loss that is infinite or not a number can reach the weights.

    On a GPU the loss is looked at when backward has been queued, so that the device never waits.
    """

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        broken = (~loss.detach().isfinite()).float()
        if trainer.world_size > 1:
            broken = trainer.strategy.reduce(broken, reduce_op="max")  # all processes end together
        self._event = None
        if broken.is_cuda:
            self._broken = torch.empty((), pin_memory=True).copy_(broken, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._broken = broken
            self._check(trainer)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._event is not None:
            self._event.synchronize()
            self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if self._broken:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            raise UserError(
                f"train/loss: not finite in epoch {trainer.current_epoch + 1}, batch "
                f"{trainer.fit_loop.epoch_loop.batch_idx + 1}, at lr {lr:g}; the weights before it are kept; "
                "try a smaller optimizer.lr, scheduler=onecycle or trainer.gradient_clip_val=1",
                NON_FINITE,
            )
