"""What the inspections have in common: when they look, and at what."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vggexp.data.resize import prepared
from vggexp.inspection.board import Board


class Inspection(L.Callback):
    """Looks between epochs, in the first of the processes.

    Args:
        board: to show it on.
        times: in a run, at most; the last epoch is always one of them.
    """

    def __init__(self, board: Board, times: int = 1) -> None:
        self.board, self.times = board, times

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether the epoch that ends is one to be shown."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        every = max(1, -(-epochs // self.times))
        return trainer.is_global_zero and ((epochs - epoch) % every == 0 or trainer.should_stop)


def step(trainer: L.Trainer) -> int:
    """Of what is shown now: that of the last batch, as Lightning counts for its own."""
    return max(0, trainer.global_step - 1)


def scale(trainer: L.Trainer, optimizer: Optimizer) -> float:
    """What the gradients are multiplied by: in 16-mixed, fused optimizers take it away themselves, later."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def examples(data: Any, count: int) -> Tensor:
    """Indices of test images, the same in every run: the first of each class, then the second, and so on."""
    labels = data.sets["test"].tensors[1].cpu()
    nth = torch.stack([(labels == label).cumsum(0) for label in labels.unique()]).gather(0, _rank(labels)[None])[0]
    return torch.argsort(nth * (len(labels) + 1) + labels, stable=True)[:count]


def _rank(labels: Tensor) -> Tensor:
    rank: Tensor = torch.unique(labels, return_inverse=True)[1]
    return rank


def images(trainer: L.Trainer, data: Any, indices: Tensor) -> Tensor:
    """The test images of some indices as the network gets them: (N, 1, S, S) on the device."""
    stored = data.sets["test"].tensors[0]
    return prepared(stored[indices.to(stored.device)].to(trainer.strategy.root_device), data.resize)


@contextmanager
def watched(trainer: L.Trainer, net: nn.Module, layers: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The outputs of some layers when the network is called within, by the layers' names; as in evaluation."""
    outputs: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(key, output)

    handles = [layer.register_forward_hook(keep(key)) for key, layer in layers.items()]
    training = net.training
    net.eval()
    try:
        with trainer.precision_plugin.forward_context():
            yield outputs
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()


def call(trainer: L.Trainer, net: nn.Module, batch: Tensor) -> Tensor:
    """The logits, (N, K) float32; the network as written, not as compiled, so that its layers can be watched."""
    logits: Tensor = net.forward(trainer.precision_plugin.convert_input(batch))
    return logits.float()


def of_kind(net: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """A network's layers of some kinds, in order, by name."""
    return {key: layer for key, layer in net.named_modules() if isinstance(layer, kinds)}
