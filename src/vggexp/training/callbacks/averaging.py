"""An exponential moving average of the weights: what is validated, tested and kept in place of those in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaging(L.Callback):
    """Averages the weights after each step, and the running statistics of batch norm; its counters are copied.

    The decay begins smaller, as (1 + n) / (10 + n) after n steps, so that short runs forget their initial weights.

    Lightning's WeightAveraging falls short where a run may stop anywhere: what it saves within validation has the two
    sets exchanged, a file of weights alone has the set in training, and a run's last file has the average twice. On a
    GPU, it averages on the CPU unless told otherwise, and waits for the device at each step.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self._average: nn.Module | None = None  # while it is applied, this network holds the weights in training
        self._is_applied = False

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.decay is not None:
            self._average = deepcopy(pl_module.net)  # Lightning has loaded the averaged weights
            pl_module.load_state_dict(checkpoint["current_model_state"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.decay is not None:
            average = deepcopy(pl_module.net) if self._average is None else self._average
            self._average = average.to(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._steps = trainer.global_step
        if self._average is not None:
            pairs = list(zip(_tensors(self._average), _tensors(pl_module.net), strict=True))
            self._averages, self._weights = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
            self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.decay is None or trainer.global_step == self._steps:  # gradients are still being accumulated
            return
        self._steps = trainer.global_step
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        get_ema_multi_avg_fn(decay)(self._averages, self._weights, 0)  # type: ignore[no-untyped-call]
        for average, count in self._counts:
            average.copy_(count)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._apply(pl_module, True)

    on_fit_end = on_validation_start  # for the test, also where no epoch was left to train

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._apply(pl_module, False)

    @contextmanager
    def applied(self, pl_module: Any) -> Iterator[None]:
        """The network has the averaged weights for a while, if there are any; a checkpoint is saved within."""
        before = self._is_applied
        self._apply(pl_module, True)
        try:
            yield
        finally:
            self._apply(pl_module, before)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the weights in training, under Lightning's name for them."""
        if self._average is not None:
            checkpoint["current_model_state"] = self._average.state_dict(prefix="net.")

    def _apply(self, pl_module: Any, applied: bool) -> None:
        """Exchanges the two sets of weights, unless they are where they are wanted."""
        if self._average is None or applied == self._is_applied:
            return
        self._is_applied = applied
        for average, weight in zip(_tensors(self._average), _tensors(pl_module.net), strict=True):
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)


def _tensors(net: nn.Module) -> list[Tensor]:
    """The weights and statistics of a network, each once, sharing its memory."""
    return [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]
