"""The LightningModule: one step for three stages, exact means over samples, no synchronisation within a step.

N images of a batch, C channels, S pixels, K classes.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from vggexp.build import construct, network


class Classifier(L.LightningModule):
    """Trains and scores an image classifier by cross-entropy.

    Its hyperparameters are plain Python values, so that a checkpoint explains itself.

    Args:
        config: of the run, as `vggexp.schema.Config` dumps it.
        classes: their names, by label.
    """

    def __init__(self, config: dict[str, Any], classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config, "classes": list(classes)}, logger=False)
        self.config = config
        self.validates = "test" if config["data"]["test_each_epoch"] else "val"
        self.net: nn.Module = network(config["model"]).to(memory_format=torch.channels_last)
        # scores["train"] would be the method nn.ModuleDict.train, hence the longer names
        num_classes = config["model"]["num_classes"]
        self.scores = nn.ModuleDict({f"{stage}_scores": _scores(num_classes) for stage in ("train", "val", "test")})

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, S, S) images in [0, 1] → (N, K) logits."""
        logits: Tensor = self.net(images)
        return logits

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Returns the loss, (), and the logits, (N, K), without gradient."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        scores = self._scores_of(stage)
        scores["loss"].update(loss.detach(), len(labels))
        scores["acc"].update(logits.detach(), labels)
        return {"loss": loss, "logits": logits.detach()}

    def _finish(self, stage: str) -> None:
        scores = self._scores_of(stage)
        self.log_dict({f"{stage}/{name}": value for name, value in scores.compute().items()})
        scores.reset()

    def _scores_of(self, stage: str) -> MetricCollection:
        scores = self.scores[f"{stage}_scores"]
        assert isinstance(scores, MetricCollection)
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, self.validates)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._step(batch, "test")

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True  # so that an epoch cut short by max_steps is validated too

    def on_train_epoch_end(self) -> None:
        self._finish("train")

    def on_validation_epoch_end(self) -> None:
        self._finish(self.validates)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = construct(self.config["optimizer"], self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = construct(self.config["scheduler"], optimizer, steps)
        if scheduler is None:
            return optimizer  # type: ignore[no-any-return]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class SampleMean(Metric):
    """Exact mean over samples of what comes as means over batches.

    torchmetrics' MeanMetric either looks for NaN, which stops the device at each step, or loses its weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, count: int) -> None:
        """Takes a batch's mean, () float32, and its number of samples."""
        self.total += mean * count
        self.count += count

    def compute(self) -> Tensor:
        """() float32."""
        return self.total / self.count


def _scores(num_classes: int) -> MetricCollection:
    accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)  # checking would stop too
    return MetricCollection({"loss": SampleMean(), "acc": accuracy}, compute_groups=False)
