"""A compiled network stays the same network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import QUICK, Run, configure
from vggexp.errors import UserError
from vggexp.training.run import run


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


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.compile=default: needs a C\+\+ compiler"):
        run(configure(*QUICK, "trainer.compile=default"), tmp_path)
