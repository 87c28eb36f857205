"""`trainer.precision=auto` is decided once, when a run begins; a compiled network stays the same network."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import QUICK, Run, configure
from vggexp.config import precision
from vggexp.errors import UserError
from vggexp.inference import load as trained
from vggexp.runs import manifest
from vggexp.system import hardware
from vggexp.training.run import run


@pytest.mark.parametrize(("native", "meant"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_means_bf16_where_the_hardware_supports_it(
    native: bool, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda device: native)
    assert precision.resolved(configure("trainer.precision=auto")).trainer.precision == meant
    assert precision.resolved(configure("trainer.precision=32-true")).trainer.precision == "32-true"


@pytest.mark.linux
def test_a_cpu_supports_bf16_exactly_if_its_flags_say_so() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert hardware.multiplies_bf16("cpu") == bool({"avx512_bf16", "amx_bf16"} & set(flags))


def test_the_meaning_of_auto_is_printed_recorded_and_kept(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda device: True)
    done = train("trainer.precision=auto", "trainer.max_epochs=1")
    assert "trainer.precision=auto: bf16-mixed" in capsys.readouterr().out
    assert done.result["precision"] == "bf16-mixed"
    assert done.cfg.trainer.precision == "auto"
    manifest.write(done.folder, manifest.collect(done.cfg) | {"status": "completed"} | done.result)

    monkeypatch.setattr(hardware, "multiplies_bf16", lambda device: False)
    assert trained.load(str(done.folder), {"allowed_packages": ["synthetic"]}).cfg.trainer.precision == "bf16-mixed"
    longer = configure(*QUICK, "trainer.precision=auto", "trainer.max_epochs=2")
    assert run(longer, done.folder, resume=True)["precision"] == "bf16-mixed"
    assert "trainer.precision=auto: bf16-mixed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_under_the_same_names(train: Callable[..., Run]) -> None:
    """Needs a C++ compiler, which .ci/run installs; without one, the test fails with a message that says so."""
    # few layers and sizes of batches, as each takes seconds to compile
    short = ["trainer.max_epochs=1", "model.blocks=[[1,64]]", "model.hidden=64", "data.val_size=0"]
    short += ["trainer.limit_train_batches=3", "trainer.limit_test_batches=1"]
    plain, compiled = (train(*short, *more) for more in ([], ["trainer.compile=default"]))
    assert compiled.result["test/loss"] == pytest.approx(plain.result["test/loss"], rel=1e-2)
    names = [
        list(torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        for done in (plain, compiled)
    ]
    assert names[0] == names[1]


def test_without_a_compiler_nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"trainer\.compile=default: needs a C\+\+ compiler"):
        run(configure(*QUICK, "trainer.compile=default"), tmp_path)
