"""Exported files give the network's answers in other programs."""

import copy
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from conftest import Run, refusal, vggexp
from synthetic import FILES
from vggexp.checkpoints import pretrained as weights
from vggexp.config.instantiate import network
from vggexp.data import idx
from vggexp.data.preparation import Preparation
from vggexp.data.resize import prepared, resize
from vggexp.data.source import Fit
from vggexp.inference import export
from vggexp.inference import load as networks
from vggexp.runs import manifest

PIXELS = idx.parse(FILES[idx.TEST_IMAGES])[:, None]  # (N, 1, H, W)


@pytest.fixture
def found(trained: Run) -> networks.Network:
    return networks.load(str(trained.folder), {"allowed_packages": ["synthetic"]})


def ready(pixels: np.ndarray) -> torch.Tensor:
    return prepared(torch.from_numpy(pixels.copy()), 32)


@pytest.mark.slow
def test_a_network_with_test_time_flip_is_exported_with_it(train: Callable[..., Run], tmp_path: Path) -> None:
    run = train("step.test_time_flip=true", "trainer.max_epochs=1")
    manifest.write(run.folder, manifest.collect(run.cfg) | {"status": "completed"} | run.result)
    found = networks.load(str(run.folder), {"allowed_packages": ["synthetic"]})
    export.export(found, tmp_path, ["onnx", "safetensors"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": PIXELS[:5]})
    (mirrored,) = session.run(["logits"], {"images": PIXELS[:5, :, :, ::-1]})
    assert np.abs(logits - mirrored).max() < 1e-4
    assert "loaded 22 of 22" in weights.load(
        network(found.cfg.model.spec(), found.dimensions), str(tmp_path / "model.safetensors")
    )


@pytest.mark.slow
def test_the_command_writes_three_files_that_agree_with_the_network_for_any_batch(
    trained: Run, found: networks.Network, tmp_path: Path
) -> None:
    run = shutil.copytree(trained.folder, tmp_path / "run")
    done = vggexp("export", f"run={run}", "allowed_packages=[synthetic]")
    assert done.returncode == 0, done.stderr
    folder = run / "export"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.pt2", "model.safetensors"}

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(str(folder / "model.pt2")).module()
    for count in (1, 3, 130):
        pixels = PIXELS[:count]
        with torch.inference_mode():
            expected = found.module(ready(pixels)).numpy()
            again = program(torch.from_numpy(pixels.copy())).numpy()
        (logits,) = session.run(["logits"], {"images": pixels})
        assert logits.shape == (count, 10)
        assert np.abs(logits - expected).max() <= 1e-4
        assert np.abs(again - expected).max() <= 1e-5
    assert np.abs(expected).max() > 0.1

    net = network(found.cfg.model.spec(), found.dimensions)
    assert "loaded 22 of 22" in weights.load(net, str(folder / "model.safetensors"))
    assert all(torch.equal(value, found.module.state_dict()[key]) for key, value in net.state_dict().items())
    extra = dict.fromkeys(("model", "classes", "input", "run", "config_hash"), "")
    torch.export.load(str(folder / "model.pt2"), extra_files=extra)
    with safe_open(folder / "model.safetensors", "pt") as file:
        abouts = [file.metadata(), session.get_modelmeta().custom_metadata_map, extra]
    for about in abouts:
        assert json.loads(about["model"])["ratio"] == 16
        assert json.loads(about["classes"])[3] == "bar 3"
        assert json.loads(about["input"]) == "N×1×H×W uint8, any size, 0 to 255, light on black"
        assert (json.loads(about["run"]), json.loads(about["config_hash"])) == ("run", found.cfg.hash())
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


@pytest.mark.slow
@pytest.mark.parametrize(("fit", "channels"), [("stretch", 1), ("crop", 3), ("pad", 1)])
def test_raw_images_of_any_size_are_resized_and_normalized(
    found: networks.Network, fit: Fit, channels: int, tmp_path: Path
) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3, 2), torch.nn.Flatten(), torch.nn.Linear(900, 10))
    ready = Preparation(32, fit, (28, 28), [0.3] * channels, [0.2] * channels)
    raw = export._Raw(torch.nn.Sequential(ready.normalize, net), ready).eval()
    sample = torch.randint(0, 256, (3, channels, 28, 28), dtype=torch.uint8)
    trace = functools.cache(lambda: export._traced(raw, sample))
    export._onnx(found, trace, sample, tmp_path / "model.onnx")
    export._torch(found, trace, sample, tmp_path / "model.pt2")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(str(tmp_path / "model.pt2")).module()
    assert f"N×{channels}×H×W" in json.loads(session.get_modelmeta().custom_metadata_map["input"])
    for count in (1, 3):
        for size in [(28, 28), (32, 32), (45, 61), (300, 200)]:
            images = torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8)
            with torch.inference_mode():
                expected = net(ready(resize(images, ready.side, fit)))  # first as predict does
                assert (program(images) - expected).abs().max() <= 1e-4
            (logits,) = session.run(["logits"], {"images": images.numpy()})
            assert np.abs(logits - expected.numpy()).max() <= 1e-4


@pytest.mark.slow
def test_prepared_tensors_can_be_the_input(found: networks.Network, tmp_path: Path) -> None:
    differences = export.export(found, tmp_path, ["onnx"], "tensor")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": ready(PIXELS[:5]).numpy()})
    with torch.inference_mode():
        assert np.abs(logits - found.module(ready(PIXELS[:5])).numpy()).max() <= 1e-4
    assert 0 <= differences["onnx"] <= 1e-4


def test_large_logits_may_differ_by_more(
    found: networks.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last bits are worth more: what counts is the difference relative to the largest."""
    original = export._safetensors
    largest = float(found.module(ready(PIXELS[:256])).detach().abs().max())
    for factor in (0.5, 2.0):
        off = factor * export.TOLERANCE * max(1.0, 1000 * largest)
        monkeypatch.setattr(export, "_safetensors", lambda *args, off=off: original(*args) + off)
        scaled = replace(found, classifier=copy.deepcopy(found.classifier))
        with torch.no_grad():
            for weight in scaled.module.classifier[-1].parameters():
                weight *= 1000
        call = functools.partial(export.export, scaled, tmp_path / str(factor), ["safetensors"], "tensor")
        (tmp_path / str(factor)).mkdir()
        assert call() if factor < 1 else "its logits differ" in refusal(call)


@pytest.mark.slow
def test_a_file_that_does_not_agree_is_not_kept(
    found: networks.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((len(inputs["images"]), 10), np.nan, dtype=np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert "formats=onnx" in refusal(lambda: export.export(found, tmp_path, ["onnx"], "raw"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wrong_format_gives_one_line(tmp_path: Path) -> None:
    done = vggexp("export", "run=last", "formats=onnx,tflite", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "tflite" in done.stderr
