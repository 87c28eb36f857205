"""A loss that is not finite ends training before it changes a weight, at once or, as on a GPU, one batch later."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from conftest import QUICK, configure, refusal
from vggexp.config.instantiate import datamodule
from vggexp.training.callbacks.limits import FiniteLoss
from vggexp.training.classifier import Classifier


class Spoiled(Classifier):
    """A module whose third loss is NaN; it keeps a copy of the weights from before."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        step = super().training_step(batch, batch_idx)
        if batch_idx == 2:
            self.before = {name: value.clone() for name, value in self.net.state_dict().items()}
            step["loss"] = step["loss"] * torch.nan
        return step


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("batches", [3, 5], ids=["the epoch's last", "one of several"])
def test_the_weights_do_not_change_after_a_loss_that_is_not_finite(
    optimizer: str, late: bool, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FiniteLoss, "on_train_start", lambda self, *_: setattr(self, "_late", late))
    cfg = configure(*QUICK, f"optimizer={optimizer}", f"data.root={os.environ['VGGEXP_TEST_ROOT']}")
    data = datamodule(cfg)
    module = Spoiled(cfg, {}, data.dimensions)
    seen: list[int] = []

    class Count(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch_idx)

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=batches,
        callbacks=[FiniteLoss(), Count()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    )
    line = refusal(lambda: trainer.fit(module, data))
    assert "train/loss: not finite in epoch 1, batch 3" in line
    assert seen == ([0, 1, 2] if late else [0, 1])
    for name, value in module.net.state_dict().items():
        assert torch.equal(value, module.before[name])
