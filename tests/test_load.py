"""`run=` finds the right network, and checks everything in its file."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Run, refusal
from vggexp.checkpoints import file as checkpoint
from vggexp.config.schema import Config
from vggexp.inference import load as networks
from vggexp.runs import manifest, select

TRUST = {"allowed_packages": ["synthetic"]}


@pytest.fixture
def copy(trained: Run, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may damage."""
    return shutil.copytree(trained.folder, tmp_path / "copy")


def load(path: Path | str) -> networks.Network:
    return networks.load(str(path), TRUST)


def test_a_run_folder_stands_for_the_checkpoint_that_was_tested(copy: Path) -> None:
    found = load(copy)
    assert found.path == copy / "checkpoints" / "best.ckpt"
    assert found.classes[3] == "bar 3"
    assert found.result is not None
    assert not found.module.training
    assert load(copy / "checkpoints" / "last.ckpt").result is None
    (copy / "checkpoints" / "best.ckpt").unlink()
    assert load(copy).path == copy / "checkpoints" / "last.ckpt"


def test_a_checkpoint_alone_is_enough(copy: Path, tmp_path: Path) -> None:
    alone = shutil.move(copy / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    found = load(alone)
    assert isinstance(found.cfg, Config)
    assert (found.folder, found.result) == (tmp_path, None)


@pytest.mark.slow
def test_last_is_the_run_that_started_last_on_its_own_or_in_a_sweep(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = manifest.load(copy, "")
    for name, started in (("b", "2026-01-01T00:00:01+00:00"), ("sweep/1", "2026-01-01T00:00:02+00:00"), ("c", "2025")):
        folder = shutil.copytree(copy, tmp_path / "outputs" / name)
        manifest.write(folder, content | {"started": started})
    monkeypatch.setenv("VGGEXP_OUTPUTS", str(tmp_path / "outputs"))
    assert select.checkpoint("last", "run").parent.parent.name == "1"
    monkeypatch.setenv("VGGEXP_OUTPUTS", str(tmp_path / "nowhere"))
    assert "start one" in refusal(lambda: select.checkpoint("last", "run"))


@pytest.mark.parametrize(
    ("status", "shown", "reason"),
    [("running", "interrupted", "killed"), ("interrupted", "interrupted", "Ctrl-C"), ("failed", "failed", "Ctrl-C")],
)
def test_an_unfinished_run_is_named_with_what_to_do(status: str, shown: str, reason: str, copy: Path) -> None:
    manifest.write(copy, manifest.load(copy, "") | {"status": status, "reason": "Ctrl-C"})
    message = refusal(lambda: load(copy))
    for word in (str(copy), shown, reason, f"run={copy / 'checkpoints' / 'best.ckpt'}"):
        assert word in message
    assert load(copy / "checkpoints" / "best.ckpt").result is None


def test_folders_without_a_network_are_named(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no such file or folder" in refusal(lambda: load(tmp_path / "nowhere"))
    assert "result.json" in refusal(lambda: load(tmp_path / "empty"))
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint" in refusal(lambda: load(copy))
    (copy / "result.json").write_text("{")
    assert "cannot be read" in refusal(lambda: load(copy))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.1, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named(keep: float, copy: Path) -> None:
    path = copy / "checkpoints" / "best.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    message = refusal(lambda: load(copy))
    assert str(path) in message
    assert "intact" in message or "weights file" in message or "tensors alone" in message


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_that_has_lost_its_checksum_is_refused(name: str, copy: Path) -> None:
    path = copy / "checkpoints" / name
    os.truncate(path, path.stat().st_size - 78)
    assert "has lost the checksum at its end" in refusal(lambda: networks.load(str(path)))


def test_code_in_a_checkpoint_is_not_run(copy: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = copy / "checkpoints" / "best.ckpt"
    for save in (lambda: torch.save({"state_dict": Evil()}, path), lambda: path.write_bytes(pickle.dumps(Evil()))):
        save()
        assert "a file of tensors alone" in refusal(lambda: load(copy))
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_of_another_network_is_refused(copy: Path, train: Callable[..., Run]) -> None:
    other = train("model.ratio=32", "trainer.max_epochs=1")
    shutil.copy(other.folder / "checkpoints" / "best.ckpt", copy / "checkpoints" / "best.ckpt")
    message = refusal(lambda: load(copy))
    assert "model.ratio=32" in message
    assert "16" in message


def test_weights_that_do_not_fit_the_named_network_are_refused(copy: Path) -> None:
    path = copy / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["net.features.1.0.weight"] = torch.zeros(3)
    checkpoint.write(content, path)
    assert "features.1.0.weight" in refusal(lambda: load(copy))
    del content["state_dict"]["net.features.1.0.weight"]
    checkpoint.write(content, path)
    assert "features.1.0.weight" in refusal(lambda: load(copy))
    torch.save(content["state_dict"], path)
    assert f"model.weights={path}" in refusal(lambda: load(copy))
    torch.save([1], path)
    assert "list" in refusal(lambda: load(copy))


def test_classes_named_by_a_checkpoint_must_be_allowed_by_the_caller(copy: Path) -> None:
    assert "allowed_packages=[synthetic]" in refusal(lambda: networks.load(str(copy), {}))
    path = copy / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["config"]["model"]["_target_"] = "os.system"
    content["config"]["allowed_packages"] = ["os"]
    checkpoint.write(content, path)
    (copy / "result.json").unlink()
    assert "os.system" in refusal(lambda: load(path))


def test_a_url_is_refused() -> None:
    assert "download" in refusal(lambda: checkpoint.read(Path("https://example.org/x.ckpt"), "run"))


@pytest.mark.parametrize(
    "change",
    [
        *({"size": size} for size in ("x", 0, True, 64)),
        *(
            {"mean": [float("nan")], "std": [1.0]},
            {"mean": [0.5], "std": [float("inf")]},
            {"mean": [0.5], "std": [0.0]},
        ),
        *({"stored": [20000, 20000]}, {"stored": [28]}, {"fit": "x"}, {"mean": [0.5]}, {"more": 1}),
    ],
)
def test_how_images_are_prepared_is_checked(change: dict[str, object], trained: Run, tmp_path: Path) -> None:
    content = checkpoint.read(trained.folder / "checkpoints" / "best.ckpt", "run")
    content["preparation"] |= change
    if "more" in change:
        content["preparation"] = ["size"]
    checkpoint.write(content, tmp_path / "other.ckpt")
    text = refusal(lambda: networks.load(str(tmp_path / "other.ckpt"), TRUST))
    assert "prepare" in text


def test_a_place_in_the_data_under_an_older_name_is_found(trained: Run, tmp_path: Path) -> None:
    content = checkpoint.read(trained.folder / "checkpoints" / "last.ckpt", "run")
    content["FashionMNIST"] = {"position": content.pop("DataModule")["position"]}
    checkpoint.write(content, tmp_path / "older.ckpt")
    assert checkpoint.read(tmp_path / "older.ckpt", "run")["DataModule"] == content["FashionMNIST"]
