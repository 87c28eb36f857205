"""The cost of a network: the chapter's shapes, counts that match a calculation by hand, and an accurate estimate."""

import csv
from pathlib import Path

import matplotlib.image
import pytest

from conftest import configure, vggexp
from vggexp.commands import summary
from vggexp.inspection import cost
from vggexp.inspection.cost import estimate
from vggexp.system import hardware


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_vgg11_has_the_chapters_shapes(tmp_path: Path) -> None:
    done = vggexp("summary", "data.batch_size=8", "trainer.precision=32-true", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    layers = rows(tmp_path / "outputs" / "summary" / "vgg11-ratio-1-224px.csv")
    shapes = {row["layer"]: row["output shape"] for row in layers}
    blocks = [shapes[name] for name in ("features.0.2", "features.1.2", "features.2.4", "features.3.4", "features.4.4")]
    assert blocks == ["1×64×112×112", "1×128×56×56", "1×256×28×28", "1×512×14×14", "1×512×7×7"]
    tail = [row["output shape"] for row in layers if row["layer"].startswith("classifier")]
    assert tail == ["1×25088", *["1×4096"] * 6, "1×10"]
    for text in ("features.0.0", "1×64×224×224", "924.84 M", "128.81 M"):
        assert text in done.stdout
    (total,) = rows(tmp_path / "outputs" / "summary" / "networks.csv")
    assert int(total["parameters"]) == sum(int(row["parameters"]) for row in layers) == 128_806_154
    assert int(total["MACs"]) == sum(int(row["MACs"]) for row in layers)


def test_counts_match_a_calculation_by_hand() -> None:
    options = ["model.blocks=[[1,4]]", "model.hidden=8", "data.resize=28", "data.batch_size=2", "model.batch_norm=true"]
    options.append("trainer.precision=32-true")
    found = {layer.name: layer for layer in estimate(configure(*options)).layers}
    conv, norm, pool, relu = (found[f"features.0.{n}"] for n in range(4))
    assert (conv.kind, norm.kind, pool.kind, relu.kind) == ("Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU")
    assert (conv.parameters, norm.parameters, pool.parameters) == (4 * 9 + 4, 8, 0)
    assert (conv.macs, norm.macs, pool.macs) == (28 * 28 * 9 * 4, 0, 0)
    assert found["classifier.1"].macs == 4 * 14 * 14 * 8
    pixels = 2 * 28 * 28
    assert conv.activation_bytes == 4 * pixels  # the image, which the gradient of the kernel needs
    assert norm.activation_bytes == 4 * 4 * pixels + 2 * 4 * 4  # its input, and the mean and deviation of each channel
    assert pool.activation_bytes == 4 * 4 * pixels + 8 * pixels  # its input, and an 8-byte index for each output
    assert relu.activation_bytes == 4 * pixels  # its output


@pytest.mark.slow
def test_several_networks_are_measured_and_compared(tmp_path: Path) -> None:
    args = ("model=vgg11,vgg16", "model.ratio=8", "model.batch_norm=true", "data.resize=64", "data.batch_size=64")
    args += ("optimizer=adamw", "trainer.accelerator=cpu", "trainer.precision=32-true")
    done = vggexp("summary", "--measure", "--output", "here", *args, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    table = rows(tmp_path / "here" / "networks.csv")
    assert [row["network"] for row in table] == ["vgg11 bn ratio 8 64px", "vgg16 bn ratio 8 64px"]
    assert int(table[0]["MACs"]) < int(table[1]["MACs"])
    for row in table:
        assert float(row["images per second"]) == pytest.approx(64 / float(row["measured seconds per step"]))
        measured = int(row["measured training bytes"])
        assert int(row["estimated training bytes"]) == pytest.approx(measured, rel=0.15)
    assert min(matplotlib.image.imread(tmp_path / "here" / "networks.png").shape[:2]) > 150
    assert {path.suffix for path in (tmp_path / "here").iterdir()} == {".csv", ".png"}


def test_a_network_that_does_not_fit_into_memory_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 2**24)
    monkeypatch.setattr(cost, "measure", lambda cfg: pytest.fail("it was measured"))
    args = ("model.ratio=8", "data.resize=64", "data.batch_size=256", "trainer.accelerator=cpu")
    assert summary.main(["--measure", f"--output={tmp_path}", *args]) == 0
    out = capsys.readouterr().out
    assert "not measured: needs" in out
    assert "0.0 GiB are free" in out
    assert "data.batch_size" in out


def test_a_network_that_fits_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 2**40)
    monkeypatch.setattr(cost, "measure", lambda cfg: cost.Measured(0.5, 2**20))
    assert summary.main(["--measure", f"--output={tmp_path}", "model.ratio=16", "data.resize=32"]) == 0
    assert "not measured" not in capsys.readouterr().out
    assert rows(tmp_path / "networks.csv")[0]["measured seconds per step"] == "0.5"


@pytest.mark.slow
def test_a_mistake_gives_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    done = vggexp("summary", "model=alexnet,vgg12", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "vgg12" in done.stderr
