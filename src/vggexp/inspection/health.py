"""Is it healthy? Gradients, weights, memory and dead ReLUs; and which of all scalars share a chart in TensorBoard."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vggexp.data import DataModule
from vggexp.inspection import base
from vggexp.runs.metrics import SCORES
from vggexp.system import memory

SAMPLED, BINS = 50_000, 60  # values of a layer that its histogram counts at most, evenly spaced, and its bars
EXAMPLES = 200  # test images; a unit that is zero for all of them is dead
LINES = "Multiline"
CHARTS = {
    "1 training": {
        "loss": [LINES, [name for name in SCORES if name.endswith("/loss")]],
        "accuracy": [LINES, [name for name in SCORES if name.endswith("/acc")]],
        "learning rate": [LINES, ["lr"]],
    },
    "2 classes": {"accuracy of each class, validation": [LINES, ["val_class_acc/.*"]]},
    "3 health": {
        "gradient norm": [LINES, ["grad_norm"]],
        "dead ReLUs": [LINES, ["dead_relu/.*"]],
        "images a second": [LINES, ["images_per_second"]],
    },
}
"""Which scalars share a chart of TensorBoard, by section and title."""


class Gauges(base.Inspection):
    """Logs `grad_norm` at the steps that log `lr`, and `memory_gib`, the process's peak so far, after each epoch."""

    shows_scalars = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.board.add_custom_scalars(CHARTS)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / base.gradient_scale(trainer, optimizer)
        base.log(trainer, {"grad_norm": norm}, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.log("memory_gib", memory.peak() / 2**30, sync_dist=True, rank_zero_only=True)


class Distributions(base.Inspection):
    """Shows `weights/LAYER` and `gradients/LAYER` (of the last batch); logs `dead_relu/LAYER`, a share of units."""

    shows_scalars = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.is_last_batch and self.is_due(trainer):
            for layer, parameter in _weights(pl_module.net):
                if parameter.grad is not None:
                    values = sample(parameter.grad) / base.gradient_scale(trainer, optimizer)
                    self.board.add_histogram(f"gradients/{layer}", values, trainer.global_step, bins=BINS)

    def show(self, trainer: L.Trainer, net: nn.Module, data: DataModule, step: int) -> None:
        for layer, parameter in _weights(net):
            self.board.add_histogram(f"weights/{layer}", sample(parameter), step, bins=BINS)
        batch = base.images(trainer, data, base.examples(data, EXAMPLES))
        dead: dict[str, Tensor] = {}
        for part in batch.split(50):  # type: ignore[no-untyped-call]
            with base.watched(trainer, net, base.layers_of(net, nn.ReLU)) as outputs, torch.no_grad():
                base.forward(trainer, net, part)
            for key, output in outputs.items():
                dead[key] = silent(output) & dead.get(key, torch.tensor(True, device=output.device))
        shares = {f"dead_relu/{base.tag(key)}": float(units.float().mean()) for key, units in dead.items()}
        base.log(trainer, shares, step)


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
