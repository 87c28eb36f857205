"""How weights and gradients are distributed, and which units never speak."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vggexp.inspection.board import name
from vggexp.inspection.inspection import Inspection, call, examples, images, of_kind, scale, step, watched

LARGEST = 50_000
"""Values that a histogram looks at, evenly taken from a layer."""

LOOKED_AT = 200
"""Test images in which a unit must speak at least once."""


class Distributions(Inspection):
    """`weights/LAYER`, `gradients/LAYER` (of the last batch); `dead_relu/LAYER`: the share of silent units."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and self.is_due(trainer):
            for layer, parameter in _weights(pl_module.net):
                if parameter.grad is not None:
                    values = some(parameter.grad) / scale(trainer, optimizer)
                    self.board.histogram(f"gradients/{layer}", values, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.is_due(trainer):
            return
        net, data = pl_module.net, pl_module.trainer.datamodule
        for layer, parameter in _weights(net):
            self.board.histogram(f"weights/{layer}", some(parameter), step(trainer))
        batch = images(trainer, data, examples(data, LOOKED_AT))
        units: dict[str, Tensor] = {}
        for part in batch.split(50):  # type: ignore[no-untyped-call]
            with watched(trainer, net, of_kind(net, nn.ReLU)) as outputs, torch.no_grad():
                call(trainer, net, part)
            for key, output in outputs.items():
                units[key] = silent(output) & units.get(key, torch.tensor(True, device=output.device))
        shares = {f"dead_relu/{name(key)}": float(found.float().mean()) for key, found in units.items()}
        for logger in trainer.loggers:
            logger.log_metrics(shares, step(trainer))


def _weights(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Of each layer, without its bias."""
    for key, parameter in net.named_parameters():
        if parameter.ndim > 1:
            yield name(key.removesuffix(".weight")), parameter


def silent(output: Tensor) -> Tensor:
    """(N, C, …) of a ReLU → (C,) which units are zero for all images, everywhere."""
    return (output.reshape(*output.shape[:2], -1) <= 0).all(2).all(0)


def some(values: Tensor) -> Tensor:
    """At most LARGEST of them, (n,) float32 on the CPU."""
    flat = values.detach().flatten()
    return flat[:: -(-len(flat) // LARGEST)].float().cpu()
