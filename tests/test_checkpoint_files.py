"""A checkpoint is written completely or not at all, the one before it is kept, and a damaged one is skipped."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import refusal
from vggexp.checkpoints import file as checkpoint
from vggexp.checkpoints.io import CheckpointFiles, newest
from vggexp.errors import NON_FINITE, UserError


@pytest.fixture
def save(tmp_path: Path) -> Callable[[float], Path]:
    """Returns a function that saves a checkpoint with the given weight as last.ckpt."""
    files = CheckpointFiles({"last.ckpt": "previous.ckpt"})

    def call(weight: float) -> Path:
        path = tmp_path / "checkpoints" / "last.ckpt"
        files.save_checkpoint({"state_dict": {"net.x": torch.tensor(weight)}}, path)
        return path

    return call


def weight(path: Path) -> float:
    return checkpoint.read(path, "key")["state_dict"]["net.x"].item()


def test_the_old_file_is_renamed_to_previous(save: Callable[[float], Path]) -> None:
    assert [path.name for path in save(1).parent.iterdir()] == ["last.ckpt"]
    save(2)
    last = save(3)
    previous = last.with_name("previous.ckpt")
    assert (weight(last), weight(previous)) == (3, 2)
    CheckpointFiles({}).save_checkpoint({"state_dict": {"net.x": torch.tensor(4.0)}}, last)
    assert (weight(last), weight(previous)) == (4, 2)


def test_leftovers_of_a_killed_process_are_removed(save: Callable[[float], Path]) -> None:
    abandoned = save(1).with_name(".last.ckpt.123.0")
    abandoned.write_bytes(b"half of it")
    assert sorted(path.name for path in save(2).parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("step", ["write", "fsync", "verify", "rename"])
def test_a_failed_write_keeps_the_files_before_it(
    step: str, save: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)
    last = save(2)

    def fail(*args: object) -> None:
        if step != "rename" or str(args[0]).rpartition("/")[2].startswith("."):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(checkpoint._Sink, "write", fail)
        elif step == "verify":
            patch.setattr(checkpoint, "damage", lambda path: "has been altered")
        else:
            patch.setattr(os, "fsync" if step == "fsync" else "replace", fail)
        with pytest.raises(UserError, match=r"cannot be written: .*resume=") as error:
            save(3)
    assert error.value.exit_code == 1
    assert (weight(last), weight(last.with_name("previous.ckpt"))) == (2, 1)
    assert len(list(last.parent.iterdir())) == 2


def test_a_network_that_is_not_finite_is_not_saved(save: Callable[[float], Path]) -> None:
    last = save(1)
    with pytest.raises(UserError, match=r"net\.x: holds values that are not finite") as error:
        save(float("nan"))
    assert error.value.exit_code == NON_FINITE
    assert weight(last) == 1


def test_the_newest_intact_checkpoint_is_found(
    save: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save(1)
    last = save(2)
    run, paths = last.parent.parent, [last, last.with_name("previous.ckpt")]
    assert newest(paths, run) == last
    last.write_bytes(last.read_bytes()[:-100])
    assert newest(paths, run) == paths[1]
    assert "last.ckpt: is cut short or not a checkpoint of vggexp; the checkpoint before it is used" in (
        capsys.readouterr().out.replace("\n", "")
    )
    assert last.with_suffix(".damaged").exists()
    paths[1].write_bytes(b"")
    assert f"resume={run}: previous.ckpt cannot be read" in refusal(lambda: newest(paths, run))
    paths[1].unlink()
    assert newest(paths, run) is None
