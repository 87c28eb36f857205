"""How the network sees the test images just before it classifies them, for TensorBoard's projector."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vggexp.data.resize import prepared
from vggexp.inspection import figures
from vggexp.inspection.base import Inspection, examples, forward, images, last_step, layers_of, watched

EXAMPLES = 1000
THUMBNAIL = 56  # pixels on a side, at most
COMPONENTS = 50  # principal components that are kept of the features, so that the files stay small


class Projection(Inspection):
    """Shows `features` of 1,000 test images with labels and thumbnails, by the network that is tested."""

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._show(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.validates == "test":  # no other test will follow
            self._show(trainer, pl_module)

    def _show(self, trainer: L.Trainer, pl_module: Any) -> None:
        net, data = pl_module.net, pl_module.trainer.datamodule
        linear = list(layers_of(net, nn.Linear).values())
        if not trainer.is_global_zero or not linear:
            return
        indices = examples(data, EXAMPLES)
        found: list[Tensor] = []
        handle = linear[-1].register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0].float().cpu()))
        with watched(trainer, net, {}), torch.no_grad():
            for part in indices.split(50):  # type: ignore[no-untyped-call]
                forward(trainer, net, images(trainer, data, part))
        handle.remove()
        names = [data.classes[label] for label in data.labels("test")[indices].tolist()]
        stored = data.stored("test", indices).cpu()
        shown = figures.rgb(prepared(stored, min(THUMBNAIL, *stored.shape[2:]), data.source.fit))
        if stored.shape[1] != 3:
            shown = 1 - shown  # dark on light, as the page
        self.board.add_embedding(principal(torch.cat(found)), names, shown, last_step(trainer), "features")


def principal(features: Tensor) -> Tensor:
    """(N, F) → (N, at most COMPONENTS), the directions of greatest variance first."""
    left, size, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    projected: Tensor = left * size
    return projected[:, :COMPONENTS]
