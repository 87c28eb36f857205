"""What the inspections have in common: when they look, and at which images and layers.

N images, C channels, S pixels, K classes.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from vggexp.config.schema import Config
from vggexp.data import DataModule
from vggexp.models.cpu.fused import layer_by_layer


class Inspection(L.Callback):
    """Looks at a run between its epochs, in the first process."""

    shows_scalars: ClassVar[bool] = False
    """Whether it also logs scalars, so that it is useful without a logger that shows pictures."""

    def __init__(self, board: Any, cfg: Config, folder: Path) -> None:
        self.board, self.cfg, self.folder = board, cfg, folder  # `board` takes the calls of torch's SummaryWriter

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether pictures are shown after this epoch: after `inspect.times` epochs at most, always after the last."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        every = max(1, -(-epochs // self.cfg.inspect.times))
        return trainer.is_global_zero and ((epochs - epoch) % every == 0 or trainer.should_stop)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.is_due(trainer):
            self.show(trainer, pl_module.net, pl_module.trainer.datamodule, last_step(trainer))

    def show(self, trainer: L.Trainer, net: nn.Module, data: DataModule, step: int) -> None:
        """Shows a network after an epoch that is due."""


def last_step(trainer: L.Trainer) -> int:
    """The step of the last batch, under which Lightning logs its own values."""
    return max(0, trainer.global_step - 1)


def log(trainer: L.Trainer, scalars: Mapping[str, float], step: int) -> None:
    """Logs outside of the hooks in which `LightningModule.log` may be called."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step)


def gradient_scale(trainer: L.Trainer, optimizer: Optimizer) -> float:
    """The factor that gradients still have before a step: in 16-mixed, fused optimizers divide by it later."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return float(scaler.get_scale()) if scaler is not None and fused else 1.0


def examples(data: DataModule, count: int) -> Tensor:
    """Positions of test images, the same in every run: the first of each class, then the second of each, and so on."""
    labels = data.labels("test")
    nth = F.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]
    return torch.argsort(nth * (len(labels) + 1) + labels, stable=True)[:count]


def images(trainer: L.Trainer, data: DataModule, positions: Tensor) -> Tensor:
    """The test images at these positions as the network gets them: (N, C, S, S) on the device."""
    return data.preparation(data.stored("test", positions).to(trainer.strategy.root_device))


@contextmanager
def watched(trainer: L.Trainer, net: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that gets the layers' outputs by name when the network is called, as in evaluation."""
    outputs: dict[str, Tensor] = {}

    def keep(key: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[key] = output

    handles = [layer.register_forward_hook(partial(keep, key)) for key, layer in layers.items()]
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        # a CPU would otherwise run several layers at once, and some outputs would never exist
        with trainer.precision_plugin.forward_context(), layer_by_layer(net) if layers else nullcontext():
            yield outputs
    finally:
        for module, training in modes.items():  # of which some may not be trained
            module.training = training
        for handle in handles:
            handle.remove()


def forward(trainer: L.Trainer, net: nn.Module, batch: Tensor) -> Tensor:
    """The logits, (N, K) float32, of the network as written, not as compiled, so that its layers can be watched."""
    logits: Tensor = net.forward(trainer.precision_plugin.convert_input(batch))
    return logits.float()


def tag(text: str) -> str:
    """The text as a part of a tag, without the characters that tags may not have."""
    return re.sub(r"[^\w.-]+", "_", text)


def layers_of(net: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """The layers of some kinds, in order, by name."""
    return {key: layer for key, layer in net.named_modules() if isinstance(layer, kinds)}
