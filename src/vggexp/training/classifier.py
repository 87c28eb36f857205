"""The LightningModule: one step for three stages, exact means over samples, no synchronisation within a step.

N images of a batch, C channels, S pixels, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from vggexp.config.instantiate import construct, network
from vggexp.errors import UserError
from vggexp.models.layers import Mirrored
from vggexp.system.seeds import DROPOUT, seed_at


class Classifier(L.LightningModule):
    """Trains and scores an image classifier by cross-entropy.

    Its hyperparameters are plain Python values, so that a checkpoint explains itself.

    Args:
        config: of the run, as `vggexp.config.schema.Config` dumps it.
        classes: their names, by label.
    """

    def __init__(self, config: dict[str, Any], classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config, "classes": list(classes)}, logger=False)
        self.config = config
        self.validates = "test" if config["data"]["test_each_epoch"] else "val"
        self.net: nn.Module = network(config["model"]).to(memory_format=torch.channels_last)
        # scores["train"] would be the method nn.ModuleDict.train, hence the longer names
        self._sums: dict[str, dict[str, Tensor]] = {}
        num_classes = config["model"]["num_classes"]
        self.scores = nn.ModuleDict({f"{stage}_scores": _scores(num_classes) for stage in ("train", "val", "test")})

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, S, S) images in [0, 1] → (N, K) logits."""
        logits: Tensor = self.net(images) if self.training else self.predictor(images)
        return logits

    @property
    def predictor(self) -> nn.Module:
        """The network as it predicts."""
        return Mirrored(self.net) if self.config["step"]["test_time_flip"] else self.net

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Returns the loss, (), and the logits, (N, K), without gradient."""
        images, labels = batch
        logits = self(images)
        if len(labels) == 0:  # of a batch smaller than the number of processes, some get nothing
            return {"loss": logits.sum() * 0, "logits": logits.detach()}
        smoothing = self.config["step"]["label_smoothing"] if stage == "train" else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
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

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Makes dropout a function of (seed, process, epoch, batch), so that a resumed run draws what it would have."""
        if self.config["trainer"]["compile"] is not None:
            # what the last step's CUDA graphs have returned is no longer needed
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        trainer = self.trainer
        seed = seed_at(self.config["seed"], DROPOUT, trainer.global_rank, trainer.current_epoch, batch_idx)
        # torch.manual_seed would also note each call, with its stack, for a GPU that is not in use
        generator = torch.default_generator if self.device.type == "cpu" else torch.get_device_module(self.device)
        generator.manual_seed(seed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        step = self._step(batch, "train")
        if self.trainer.world_size > 1:
            # the processes' gradients are averaged: a share counts by its size, so that the batch's mean comes out
            share = torch.tensor(float(len(batch[1])), device=self.device)
            step["loss"] = step["loss"] * (share / self.trainer.strategy.reduce(share.clone(), reduce_op="mean"))
        return step

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._step(batch, self.validates)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._step(batch, "test")

    def on_train_epoch_end(self) -> None:
        self._finish("train")

    def on_validation_epoch_end(self) -> None:
        self._finish(self.validates)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = construct(Optimizer, self.config["optimizer"], self.parameters())
        steps = min(self.trainer.estimated_stepping_batches, self.config["trainer"]["max_steps"] or math.inf)
        scheduler = construct(LRScheduler, self.config["scheduler"], optimizer, int(steps))
        if scheduler is None:
            return optimizer  # type: ignore[no-any-return]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `auto` has meant for the precision, and each process's sums behind train/loss and train/acc."""
        checkpoint["precision"] = self.trainer.precision
        if "optimizer_states" in checkpoint:
            world = self.trainer.world_size
            checkpoint["train_sums"] = {
                name: {key: _gathered(self, value, world) for key, value in metric.metric_state.items()}
                for name, metric in self._scores_of("train").items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums = checkpoint.get("train_sums", {})
        for scheduler in checkpoint.get("lr_schedulers", ()):
            for key in ("total_steps", "_schedule_phases"):
                scheduler.pop(key, None)  # of OneCycleLR: a longer run has more

    def on_train_start(self) -> None:
        """
        Raises:
            UserError: the run goes on with another number of processes.
        """
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for name, states in self._sums.items():
            metric = self._scores_of("train")[name]
            for key, rows in states.items():
                if len(rows) != world:
                    raise UserError(
                        f"trainer.devices: the run had {len(rows)} processes, now there are {world}; "
                        "resume it with as many"
                    )
                setattr(metric, key, rows[rank].to(metric.device))
            metric._update_count = 1  # else torchmetrics warns that nothing has been added


def _gathered(module: L.LightningModule, value: Any, processes: int) -> Tensor:
    """(...) of each process → (processes, ...) on the CPU."""
    gathered = module.all_gather(value)
    assert isinstance(gathered, Tensor)
    return gathered.reshape(processes, *value.shape).cpu()


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
