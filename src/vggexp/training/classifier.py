"""The LightningModule: one step for three stages, exact means over samples, no synchronization within a step.

N images of a batch, C channels, S pixels on a side, K classes.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.distributed import gather_all_tensors

from vggexp.config.instantiate import construct, locate, network
from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.models.cpu import tuning
from vggexp.models.layers import Mirrored
from vggexp.system.seeds import DROPOUT, seed_at
from vggexp.training.muon import Muon


class Classifier(L.LightningModule):
    """Trains and scores an image classifier by cross-entropy.

    Args:
        about: what a checkpoint says beside the config, as plain values.
        dimensions: `image_size`, `in_channels` and `num_classes`.
        counts: of the training images of each class.
    """

    class_weights: Tensor | None

    def __init__(
        self, cfg: Config, about: Mapping[str, Any], dimensions: Mapping[str, int], counts: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.cfg, self.about = cfg, {"config": cfg.values(), "dimensions": dict(dimensions), **about}
        self.validates = "test" if cfg.data.test_each_epoch else "val"  # the stage that validation scores
        self.net: nn.Module = network(cfg.model.spec(), dimensions).to(memory_format=torch.channels_last)
        tuning.apply(self.net, about.get("choices", {}))
        self._frozen = _frozen(self.net, cfg.model.freeze)
        balanced = [sum(counts) / (len(counts) * max(count, 1)) for count in counts]
        weights = torch.tensor(balanced) if balanced and cfg.step.class_weights == "balanced" else None
        self.register_buffer("class_weights", weights, persistent=False)
        self._sums: dict[str, dict[str, Tensor]] = {}
        self.images: dict[str, int] = {}  # how many each stage has scored
        more: dict[str, Mapping[str, Any]] = {"train": {}, "val": cfg.metrics, "test": cfg.metrics}
        # scores["train"] would be the method nn.ModuleDict.train, hence the longer names
        scores = {f"{stage}_scores": _scores(metrics, dimensions["num_classes"]) for stage, metrics in more.items()}
        self.scores = nn.ModuleDict(scores)
        self.train()

    def train(self, mode: bool = True) -> "Classifier":
        """As every module; a part that is not trained stays as it predicts, with the statistics that it has."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, S, S) images → (N, K) logits."""
        logits: Tensor = self.net(images) if self.training else self.predictor(images)
        return logits

    @property
    def predictor(self) -> nn.Module:
        """The network as it predicts."""
        return Mirrored(self.net) if self.cfg.step.test_time_flip else self.net

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Returns the loss, (), and the logits, (N, K), without gradient."""
        images, labels = batch
        logits = self(images)
        if len(labels) == 0:  # a batch smaller than the number of processes leaves some of them nothing
            return {"loss": logits.sum() * 0, "logits": logits.detach()}
        weights, smoothing = (self.class_weights, self.cfg.step.label_smoothing) if stage == "train" else (None, 0.0)
        if weights is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        else:  # a mean over images, however many of a rare class a batch or a process has
            loss = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing) / len(labels)
        if labels.ndim == 2:  # shares of the classes, where images are mixed
            labels = labels.argmax(1)
        for name, score in self._scores_of(stage).items():
            if name == "loss":
                score.update(loss.detach() * len(labels), len(labels))
            elif name == "acc":
                score.update((logits.detach().argmax(1) == labels).sum(), len(labels))
            else:
                score.update(logits.detach().float(), labels)
        return {"loss": loss, "logits": logits.detach()}

    def _finish(self, stage: str) -> None:
        scores = self._scores_of(stage)
        count: Tensor = scores["acc"].count  # type: ignore[assignment]
        self.images[stage] = int(self.trainer.strategy.reduce(count.clone(), reduce_op="sum"))
        values = {f"{stage}/{name}": value for name, value in scores.compute().items()}
        # torchmetrics has made them the same in all processes; unlike a mean, their maximum is never rounded
        self.log_dict(values, sync_dist=True, reduce_fx="max")
        scores.reset()

    def losses(self) -> tuple[float, int]:
        """The sum of the epoch's training losses so far and their number, over all processes; waits for the device."""
        loss, reduce = self._scores_of("train")["loss"], self.trainer.strategy.reduce
        total, count = (reduce(x.clone(), reduce_op="sum") for x in (loss.total, loss.count))  # type: ignore[operator]
        return float(total), int(count)

    def _scores_of(self, stage: str) -> MetricCollection:
        return self.scores[f"{stage}_scores"]  # type: ignore[return-value]

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Makes dropout a function of (seed, process, epoch, batch), so that a resumed run draws the same."""
        if self.cfg.trainer.compile:  # what the last step's CUDA graphs returned is no longer needed
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        seed = seed_at(self.cfg.seed, DROPOUT, self.trainer.global_rank, self.trainer.current_epoch, batch_idx)
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
        trained = [(name, weight) for name, weight in self.net.named_parameters() if weight.requires_grad]
        optimizer = construct(Optimizer, self.cfg.optimizer.spec(), trained)
        if isinstance(optimizer, Muon):
            optimizer.bf16 = self.trainer.precision == "bf16-mixed"
        steps = min(self.trainer.estimated_stepping_batches, self.cfg.trainer.max_steps or math.inf)
        scheduler = construct(LRScheduler, self.cfg.scheduler.spec(), optimizer, int(steps))
        if scheduler is None:
            return optimizer  # type: ignore[no-any-return]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips as Lightning does, which would refuse a fused optimizer in bf16-mixed as in 16-mixed, where it must."""
        if gradient_clip_val:
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip([weight for group in optimizer.param_groups for weight in group["params"]], gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the checkpoint is about, and each process's sums behind train/loss and train/acc."""
        checkpoint |= {**self.about, "precision": self.trainer.precision}
        if "optimizer_states" in checkpoint:
            of = {name: score.metric_state.items() for name, score in self._scores_of("train").items()}
            checkpoint["train_sums"] = {n: {key: self._gathered(x) for key, x in sums} for n, sums in of.items()}

    def _gathered(self, value: Any) -> Tensor:
        """(...) of each process → (processes, ...) on the CPU."""
        return torch.stack(gather_all_tensors(value) if self.trainer.world_size > 1 else [value]).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums = checkpoint.get("train_sums", {})
        for scheduler in checkpoint.get("lr_schedulers", ()):
            for key in ("total_steps", "_schedule_phases"):
                scheduler.pop(key, None)  # a longer run has more of OneCycleLR's

    def on_train_start(self) -> None:
        """Restores the sums of the epoch that is resumed, which may have had more or fewer processes."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for name, states in self._sums.items():
            score = self._scores_of("train")[name]
            score.update(*(states[key][rank::world].sum(0).to(self.device) for key in ("total", "count")))


def _frozen(net: nn.Module, name: str) -> list[nn.Module]:
    """The part of a network that is not trained, if there is one; in a list, so that it is registered only once."""
    if name == "none":
        return []
    try:
        return [net.get_submodule(name).requires_grad_(False)]
    except AttributeError:
        raise UserError(f"model.freeze={name}: {type(net).__name__} has no such part; set model.freeze=none") from None


class Average(Metric):
    """An exact mean over samples, from sums over batches.

    torchmetrics' MeanMetric either looks for NaN, which stops the device at each step, or loses its weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Adds a batch's sum, (), and its number of samples."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """() float32."""
        return self.total / self.count


def _scores(metrics: Mapping[str, Any], classes: int) -> MetricCollection:
    """Loss, accuracy, and metrics of torchmetrics; what needs the number of classes gets that of the data."""
    scores: dict[str, Metric | MetricCollection] = {"loss": Average(torch.float32), "acc": Average(torch.int64)}
    for name, metric in metrics.items():
        spec = metric.spec()
        wants = "num_classes" in inspect.signature(locate(spec["_target_"], Metric)).parameters
        scores[name] = construct(Metric, {"num_classes": classes, **spec} if wants else spec)
    return MetricCollection(scores, compute_groups=False)
