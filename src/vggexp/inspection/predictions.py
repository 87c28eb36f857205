"""Where the network fails: by class, by pair of classes, by image; and how it sees images before it classifies them."""

from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vggexp.data.resize import prepared
from vggexp.inspection import figures
from vggexp.inspection.base import Inspection, examples, forward, images, last_step, layers_of, log, tag, watched

MISTAKES, COLUMNS = 16, 4  # a card of TensorBoard is a few hundred pixels wide
EXAMPLES, THUMBNAIL = 1000, 56  # test images in the projector, and the pixels of each on a side, at most
COMPONENTS = 50  # principal components that are kept of the features, so that the files stay small


class Predictions(Inspection):
    """Logs `val_class_acc/CLASS` and shows `confusion/val`; of the test set the same, `mistakes/test`, `pr/CLASS`."""

    shows_scalars = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._logits.append(outputs["logits"].float())
        self._labels.append(batch[1])

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels = self._gathered(trainer)
        if not trainer.sanity_checking and trainer.is_global_zero:
            last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
            self._show(pl_module, pl_module.validates, logits, labels, draw=self.is_due(trainer))
            if pl_module.validates == "test" and last:
                self._show_test(pl_module, logits, labels)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels = self._gathered(trainer)
        if trainer.is_global_zero:
            self._show(pl_module, "test", logits, labels, draw=True)
            self._show_test(pl_module, logits, labels)

    def _gathered(self, trainer: L.Trainer) -> tuple[Tensor, Tensor]:
        """(N, K) and (N,) of all processes, on the CPU of the first."""
        pair = (torch.cat(self._logits).cpu(), torch.cat(self._labels).cpu())
        self._logits, self._labels = [], []
        parts = [pair] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(parts, pair)
        # a batch's images have been dealt out one by one
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _show(self, pl_module: Any, stage: str, logits: Tensor, labels: Tensor, *, draw: bool) -> None:
        names, step = pl_module.trainer.datamodule.classes, last_step(pl_module.trainer)
        count = len(names)
        table = torch.bincount(labels * count + logits.argmax(1), minlength=count**2).view(count, count)
        shares = zip(names, table.diagonal() / table.sum(1), strict=True)
        scalars = {f"{stage}_class_acc/{tag(name)}": float(share) for name, share in shares if share.isfinite()}
        log(pl_module.trainer, scalars, step)
        if draw:
            picture = figures.pixels(figures.confusion, table, names)
            self.board.add_image(f"confusion/{stage}", picture, step, dataformats="HWC")

    def _show_test(self, pl_module: Any, logits: Tensor, labels: Tensor) -> None:
        data, step = pl_module.trainer.datamodule, last_step(pl_module.trainer)
        probabilities = logits.softmax(1)
        for k, name in enumerate(data.classes):
            self.board.add_pr_curve(f"pr/{tag(name)}", labels == k, probabilities[:, k], step)
        if pl_module.trainer.world_size > 1:
            return  # the gathered images are in another order than the stored ones
        worst, captions, title = figures.mistakes(probabilities, labels, data.classes, MISTAKES)
        if len(worst):
            draw, shown = partial(figures.gallery, columns=COLUMNS), data.stored("test", worst).cpu()
            picture = figures.pixels(draw, shown, captions, title)
            self.board.add_image("mistakes/test", picture, step, dataformats="HWC")


class Projection(Inspection):
    """Shows `features` of 1,000 test images in TensorBoard's projector, by the network that is tested."""

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
