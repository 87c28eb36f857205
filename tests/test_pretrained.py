"""`model.weights=FILE` loads everything that fits, reports what does not, and refuses another network's file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import Run, refusal, vggexp
from vggexp.checkpoints import pretrained
from vggexp.models import VGG, AlexNet

SMALL = {"ratio": 32, "image_size": 32}


def torchvisions(net: VGG, path: Path) -> str:
    """Saves a network as torchvision does."""
    names = net.torchvision_names()
    torch.save({names[key]: value for key, value in net.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_torchvisions_file_fits_a_gray_network_of_ten_classes(batch_norm: bool, tmp_path: Path) -> None:
    source = VGG("vgg13", in_channels=3, num_classes=1000, batch_norm=batch_norm, **SMALL).eval()
    net = VGG("vgg13", batch_norm=batch_norm, **SMALL).eval()
    last = net.classifier[-1].weight.clone()
    line = pretrained.load(net, torchvisions(source, tmp_path / "w.pth"))
    gray = torch.rand(4, 1, 32, 32)
    assert torch.allclose(net.features(gray), source.features(gray.expand(-1, 3, -1, -1)), atol=1e-5)
    for n in (1, 4):
        assert torch.equal(net.classifier[n].weight, source.classifier[n].weight)
    assert torch.equal(net.classifier[-1].weight, last)
    count = len(net.state_dict())
    assert f"loaded {count - 2} of {count}" in line
    assert "adapted features.0.0.weight (summed over 3 channels)" in line
    assert "left out classifier.7 (classifier.7.weight is 1000×128 there, 10×128 here)" in line


def test_with_images_of_another_size_the_classifier_starts_fresh(tmp_path: Path) -> None:
    source, net = VGG(ratio=32, image_size=64), VGG(ratio=32, image_size=32)
    before = net.classifier[4].weight.clone()
    line = pretrained.load(net, torchvisions(source, tmp_path / "w.pth"))
    assert torch.equal(net.features[4][2].weight, source.features[4][2].weight)
    assert torch.equal(net.classifier[4].weight, before)
    assert "left out classifier.1, classifier.4, classifier.7" in line


@pytest.mark.parametrize("make", [lambda: VGG("vgg11", **SMALL), lambda: AlexNet(ratio=32, image_size=65)])
def test_safetensors_and_our_own_names_are_accepted(make: Callable[[], torch.nn.Module], tmp_path: Path) -> None:
    source, net = make(), make()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    line = pretrained.load(net, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())
    assert line.endswith(f": loaded {len(net.state_dict())} of {len(net.state_dict())} entries")


@pytest.mark.parametrize(
    ("prefix", "dtype"),
    [
        ("", torch.float32),
        ("module.", torch.float16),
        ("_orig_mod.module.", torch.bfloat16),
        ("model.net.", torch.float32),
        ("network.", torch.float32),
    ],
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "ema", "model_ema", "params"])
def test_what_a_training_loop_wraps_around_the_weights_is_taken_off(
    wrapper: str | None, prefix: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source, net = VGG(**SMALL), VGG(**SMALL)
    weights = {f"{prefix}{name}": value.to(dtype) for name, value in source.state_dict().items()}
    content = weights if wrapper is None else {wrapper: weights | {"n_averaged": torch.tensor(3)}, "epoch": 4}
    torch.save(content, tmp_path / "w.pth")
    line = pretrained.load(net, str(tmp_path / "w.pth"))
    for name, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[name], value.to(dtype).float())
    assert (f"its {wrapper}" in line) == (wrapper is not None)
    assert (f"without the prefix {prefix}" in line) == bool(prefix)


@pytest.mark.parametrize("prefix", ["", "net.", "module.net."])
def test_a_network_whose_own_names_begin_like_a_prefix_keeps_them(prefix: str, tmp_path: Path) -> None:
    source, net = (torch.nn.ModuleDict({"model": torch.nn.Linear(3, 2)}) for _ in range(2))
    torch.save({f"{prefix}{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    pretrained.load(net, str(tmp_path / "w.pth"))
    assert torch.equal(net["model"].weight, source["model"].weight)


def test_of_several_state_dicts_the_one_whose_names_fit_is_taken(tmp_path: Path) -> None:
    source, net = VGG(**SMALL), VGG(**SMALL)
    torch.save({"state_dict": {"other.weight": torch.zeros(2)}, "ema": source.state_dict()}, tmp_path / "w.pth")
    assert "taken from its ema" in pretrained.load(net, str(tmp_path / "w.pth"))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())


def test_torchvisions_own_batch_norm_files_lack_a_counter(tmp_path: Path) -> None:
    source, net = VGG(batch_norm=True, **SMALL), VGG(batch_norm=True, **SMALL)
    content = torch.load(torchvisions(source, tmp_path / "w.pth"))
    torch.save({name: value for name, value in content.items() if "num_batches" not in name}, tmp_path / "w.pth")
    pretrained.load(net, str(tmp_path / "w.pth"))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())


def test_timms_names_and_convolutions_over_all_that_is_left_are_understood(tmp_path: Path) -> None:
    source, net = VGG(in_channels=3, **SMALL), VGG(in_channels=3, **SMALL)
    content = torch.load(torchvisions(source, tmp_path / "w.pth"))
    channels = source.features[-1][0].out_channels
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    timms = {}
    for name, value in content.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in ("classifier.0", "classifier.3"):
            value = value.reshape(len(value), channels if layer == "classifier.0" else -1, 1, 1)
        timms[f"{names.get(layer, layer)}.{kind}"] = value
    torch.save(timms, tmp_path / "w.pth")
    pretrained.load(net, str(tmp_path / "w.pth"))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())


def test_a_flipped_bit_in_a_foreign_file_is_noticed(tmp_path: Path) -> None:
    path, net = tmp_path / "w.pth", VGG(**SMALL)
    torch.save(net.state_dict(), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "has been altered: the checksum of w/data/" in refusal(lambda: pretrained.load(net, str(path)))
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(net.state_dict(), path)  # without checksums
    finally:
        torch.serialization.set_crc32_options(True)
    assert "loaded 22 of 22" in pretrained.load(net, str(path))


@pytest.mark.parametrize(
    ("source", "first"),
    [
        (lambda: VGG("vgg13", **SMALL), "features.1.0.weight is 4×2×3×3 here, the file lacks it"),
        (lambda: VGG("vgg11", ratio=16, image_size=32), "features.0.0.weight is 2×1×3×3 here, the file has 4×1×3×3"),
        (lambda: VGG("vgg11", batch_norm=True, **SMALL), "features.1.0.weight is 4×2×3×3 here, the file lacks it"),
    ],
)
def test_another_networks_file_is_refused_naming_the_first_mismatch(
    source: Callable[[], VGG], first: str, tmp_path: Path
) -> None:
    path = torchvisions(source(), tmp_path / "w.pth")
    message = refusal(lambda: pretrained.load(VGG("vgg11", **SMALL), path))
    assert message == f"model.weights={path}: belongs to another network: {first}"


def test_entries_that_the_network_does_not_have_are_refused(tmp_path: Path) -> None:
    net = VGG(**SMALL)
    torch.save(net.state_dict() | {"features.9.weight": torch.zeros(1)}, tmp_path / "w.pth")
    assert "features.9.weight" in refusal(lambda: pretrained.load(net, str(tmp_path / "w.pth")))


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 half a zip file"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_without_weights_are_named(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"model.weights={tmp_path / name}" in refusal(lambda: pretrained.load(VGG(**SMALL), str(tmp_path / name)))
    assert "no such file" in refusal(lambda: pretrained.load(VGG(**SMALL), str(tmp_path / "nowhere")))


def test_training_starts_from_a_checkpoint_and_says_so(
    trained: Run, train: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained.folder / "checkpoints" / "best.ckpt"
    again = train(f"model.weights={path}", "trainer.max_epochs=0")
    assert again.result["test/loss"] == trained.result["test/loss"]
    assert f"weights from {path}: loaded 22 of 22 entries" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
def test_the_command_refuses_a_missing_file_in_one_line(tmp_path: Path) -> None:
    done = vggexp("train", "model.weights=nowhere.pth", "hydra.run.dir=outputs/run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "vggexp: model.weights=nowhere.pth: no such file\n"


@pytest.mark.parametrize(
    ("place", "prefix", "more"),
    [
        (("net",), "", {}),
        (("weights",), "", {}),
        (("ema_state_dict",), "backbone.", {}),
        (("model", "state_dict"), "", {}),
        (("app", "model"), "encoder.", {}),
        ((), "model.vgg.", {}),
        (("state_dict",), "model.", {"criterion.weight": torch.ones(10), "val_acc.total": torch.tensor(1)}),
    ],
)
def test_weights_are_found_wherever_they_are(
    place: tuple[str, ...], prefix: str, more: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Under any name, behind any prefix, among other tensors, which are counted."""
    source, net = VGG(**SMALL), VGG(**SMALL)
    content: dict = {f"{prefix}{name}": value for name, value in source.state_dict().items()} | more
    for key in reversed(place):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    line = pretrained.load(net, str(tmp_path / "w.pth"))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())
    assert ("2 of its tensors are not the network's" in line) == bool(more)


def test_an_average_may_share_what_it_has_not_changed(tmp_path: Path) -> None:
    source, net = VGG(**SMALL), VGG(**SMALL)
    torch.save({"state_dict": source.state_dict(), "state_dict_ema": source.state_dict()}, tmp_path / "w.pth")
    pretrained.load(net, str(tmp_path / "w.pth"))


def test_weights_that_are_no_numbers_are_refused_wherever_they_are(tmp_path: Path) -> None:
    """Only those that are taken count: here the second state dict."""
    content = {name: value * float("nan") for name, value in VGG(**SMALL).state_dict().items()}
    torch.save({"state_dict": {"other.weight": torch.zeros(2)}, "ema": content}, tmp_path / "w.pth")
    assert "not finite" in refusal(lambda: pretrained.load(VGG(**SMALL), str(tmp_path / "w.pth")))


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    content = {name: value.to(torch.int8) for name, value in VGG(**SMALL).state_dict().items()}
    torch.save(content, tmp_path / "w.pth")
    assert "as int8" in refusal(lambda: pretrained.load(VGG(**SMALL), str(tmp_path / "w.pth")))
