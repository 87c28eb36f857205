"""Training begins on smaller images: the size follows from the epoch, everything else is done at the last size."""

import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from conftest import QUICK, configure, refusal
from vggexp.checkpoints import file
from vggexp.inference.load import load
from vggexp.models import VGG, AlexNet
from vggexp.runs import resume, tables
from vggexp.system.signals import Interrupted, Signals
from vggexp.training.run import run

SIZES = {0: 32, 1: 40, 2: 48}
OPTIONS = (*QUICK, "data.resize={0:32,1:40,2:48}", "trainer.max_epochs=3", "model.blocks=[[1,64],[1,64],[1,64]]")


class Watch(L.Callback):
    """Notes the size of each batch, and may stop the run at a step."""

    def __init__(self, signals: Signals | None = None, step: int | None = None) -> None:
        self.signals, self.step = signals, step
        self.trained: list[tuple[int, int]] = []
        self.validated: set[int] = set()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        self.trained.append((trainer.current_epoch, batch[0].shape[-1]))
        if self.signals and trainer.global_step == self.step:
            self.signals.received = signal.SIGTERM

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        self.validated.add(batch[0].shape[-1])


def test_a_run_that_is_stopped_within_an_epoch_resumes_at_its_size_to_the_same_weights(tmp_path: Path) -> None:
    cfg, signals, watch = configure(*OPTIONS), Signals(), Watch()
    whole = run(cfg, tmp_path / "whole", callbacks=[watch])
    assert watch.trained == [(epoch, size) for epoch, size in SIZES.items() for _ in range(5)]
    assert watch.validated == {48}

    with pytest.raises(Interrupted):
        run(cfg, tmp_path / "stopped", signals=signals, callbacks=[Watch(signals, 7)])  # of 5 steps in each epoch
    rest = Watch()
    resumed = run(cfg, tmp_path / "stopped", resume=True, callbacks=[rest])
    assert rest.trained == watch.trained[8:]
    names = ("train/loss", "val/loss", "test/loss", "test/acc")
    assert [resumed[name] for name in names] == [whole[name] for name in names]
    one, other = (file.read(tmp_path / name / "checkpoints" / "last.ckpt", "") for name in ("whole", "stopped"))
    assert all(torch.equal(weight, other["state_dict"][name]) for name, weight in one["state_dict"].items())

    network = load(str(tmp_path / "whole" / "checkpoints" / "best.ckpt"), {"allowed_packages": ["synthetic"]})
    assert (network.dimensions["image_size"], network.preparation.size, network.cfg) == (48, 48, cfg)


@pytest.mark.parametrize("kind", [VGG, AlexNet])
def test_in_training_maps_of_other_sizes_are_averaged_to_those_of_the_network(kind: Any) -> None:
    net = kind(ratio=16, image_size=160, dropout=0.0)
    images = torch.rand(2, 1, 128, 128)
    maps = net.features(images)
    side = net.classifier[0].side
    assert maps.shape[-1] not in (1, side)
    expected = net.classifier[1:](F.adaptive_avg_pool2d(maps, side).flatten(1))
    assert torch.equal(net(images), expected)
    assert torch.equal(net(torch.ones(2, 1, 160, 160)), net.eval()(torch.ones(2, 1, 160, 160)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(images)


def test_a_network_that_takes_one_size_only_is_refused(tmp_path: Path) -> None:
    options = [argument for argument in QUICK if not argument.startswith("model.")]
    own = ["model={_target_: synthetic.Linear}", "data.resize={0:16,1:32}"]
    cfg = configure(*options, *own)
    text = refusal(lambda: run(cfg, tmp_path))
    assert text.startswith("data.resize={0:16,1:32}: Linear is built for 32 px and takes no others, such as 16; set ")


def test_a_schedule_is_a_key_like_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg = configure(*OPTIONS)
    tables.announce(cfg, tmp_path)
    assert ", 32→40→48 px, " in capsys.readouterr().out
    assert (cfg.data.size, configure("data.resize={0:96,2:64}").data.largest_size) == (48, 96)
    assert type(cfg).model_validate(cfg.values()) == cfg
    past = {"config": cfg.values()}
    monkeypatch.setattr(resume.manifest, "load", lambda *_: past)
    same = ["allowed_packages=[synthetic]", "data.resize={0: 32, 1: 40, 2: 48}"]
    assert resume.config(tmp_path, same)[0] == cfg
    text = refusal(lambda: resume.config(tmp_path, [same[0], "data.resize={0:32}"]))
    assert text.startswith("data.resize={0:32}: the run has {0:32,1:40,2:48}, and a resumed run cannot change it")
