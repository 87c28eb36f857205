"""How the network sees the clothes just before it names them: its penultimate features, for TensorBoard's projector."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vggexp.inspection.inspection import Inspection, call, examples, images, of_kind, step, watched

SHOWN = 1000
COMPONENTS = 50
"""Principal components that are kept of the features, so that the files stay small."""


class Projection(Inspection):
    """`features`: of 1,000 test images with labels and thumbnails; by the network that was tested."""

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._show(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.datamodule.validates == "test":  # type: ignore[attr-defined]  # no other test will follow
            self._show(trainer, pl_module)

    def _show(self, trainer: L.Trainer, pl_module: Any) -> None:
        net, data = pl_module.net, pl_module.trainer.datamodule
        linear = list(of_kind(net, nn.Linear).values())
        if not trainer.is_global_zero or not linear:
            return
        indices = examples(data, SHOWN)
        batches = (images(trainer, data, part) for part in indices.split(50))  # type: ignore[no-untyped-call]
        features = torch.cat([_features(trainer, net, linear[-1], batch) for batch in batches])
        stored, labels = data.sets["test"].tensors
        names = [data.classes[label] for label in labels.cpu()[indices].tolist()]
        self.board.projector("features", principal(features), names, stored.cpu()[indices], step(trainer))


def _features(trainer: L.Trainer, net: nn.Module, layer: nn.Module, batch: Tensor) -> Tensor:
    """(N, F) what goes into a layer."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0].float().cpu()))
    with watched(trainer, net, {}), torch.no_grad():
        call(trainer, net, batch)
    handle.remove()
    return found[0]


def principal(features: Tensor) -> Tensor:
    """(N, F) → (N, at most COMPONENTS), the directions of greatest variance first."""
    centred = features - features.mean(0)
    left, size, _ = torch.linalg.svd(centred, full_matrices=False)
    projected: Tensor = left * size
    return projected[:, :COMPONENTS]
