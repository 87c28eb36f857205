"""How weights and gradients are distributed, and which units are never active."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vggexp.inspection import base

SAMPLED, BINS = 50_000, 60  # values of a layer that its histogram counts at most, evenly spaced, and its bars
EXAMPLES = 200  # test images; a unit that is zero for all of them is dead


class Distributions(base.Inspection):
    """Shows `weights/LAYER` and `gradients/LAYER` (of the last batch); logs `dead_relu/LAYER`, a share of units."""

    shows_scalars = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.is_last_batch and self.is_due(trainer):
            for layer, parameter in _weights(pl_module.net):
                if parameter.grad is not None:
                    values = sample(parameter.grad) / base.gradient_scale(trainer, optimizer)
                    self.board.add_histogram(f"gradients/{layer}", values, trainer.global_step, bins=BINS)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.is_due(trainer):
            return
        net, data = pl_module.net, pl_module.trainer.datamodule
        for layer, parameter in _weights(net):
            self.board.add_histogram(f"weights/{layer}", sample(parameter), base.last_step(trainer), bins=BINS)
        batch = base.images(trainer, data, base.examples(data, EXAMPLES))
        dead: dict[str, Tensor] = {}
        for part in batch.split(50):  # type: ignore[no-untyped-call]
            with base.watched(trainer, net, base.layers_of(net, nn.ReLU)) as outputs, torch.no_grad():
                base.forward(trainer, net, part)
            for key, output in outputs.items():
                dead[key] = silent(output) & dead.get(key, torch.tensor(True, device=output.device))
        shares = {f"dead_relu/{base.tag(key)}": float(units.float().mean()) for key, units in dead.items()}
        base.log(trainer, shares, base.last_step(trainer))


def _weights(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The weight of each layer, without its bias."""
    for key, parameter in net.named_parameters():
        if parameter.ndim > 1:
            yield base.tag(key.removesuffix(".weight")), parameter


def silent(output: Tensor) -> Tensor:
    """(N, C, …) of a ReLU → (C,) which units are zero for all images, everywhere."""
    return (output.reshape(*output.shape[:2], -1) <= 0).all(2).all(0)


def sample(values: Tensor) -> Tensor:
    """At most SAMPLED of the values, (n,) float32 on the CPU."""
    flat = values.detach().flatten()
    return flat[:: -(-len(flat) // SAMPLED)].float().cpu()
