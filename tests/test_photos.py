"""Pictures in folders, colored or gray: what is trained on them, by the commands that a user types."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import synthetic
from conftest import QUICK, Run, configure, refusal, vggexp
from synthetic import TRAIN
from vggexp import commands
from vggexp.commands import data
from vggexp.config.instantiate import datamodule
from vggexp.data import pictures
from vggexp.data.preparation import IMAGENET
from vggexp.inference import load as networks
from vggexp.inference.predict import predict
from vggexp.runs import manifest
from vggexp.training.run import run

SHAPES = ("blue_circle", "green_square", "red_circle", "red_square", "red_triangle")
BASE = ("model.ratio=16", "trainer.accelerator=cpu", "trainer.precision=32-true", "inspect=off", "logger=csv")
SMALL = (*BASE, "model=vgg", "model.blocks=[[1,16],[1,32],[1,64]]", "model.ratio=1", "model.hidden=0")


def draw(name: str, chance: random.Random) -> Image.Image:
    """A shape at some place on a noisy gray ground; both its color and its form tell the class."""
    color, shape = name.split("_")
    size = chance.choice([(48, 40), (40, 48), (44, 44)])
    noise = np.random.default_rng(chance.randrange(2**32)).integers(90, 160, (size[1], size[0], 1), dtype=np.uint8)
    picture = Image.fromarray(noise.repeat(3, axis=2))
    side = chance.randrange(16, 24)
    x, y = chance.randrange(size[0] - side), chance.randrange(size[1] - side)
    fill = {"red": (210, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220)}[color]
    pen = ImageDraw.Draw(picture)
    if shape == "triangle":
        pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=fill)
    else:
        {"circle": pen.ellipse, "square": pen.rectangle}[shape]((x, y, x + side, y + side), fill=fill)
    return picture


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 JPEG files of each class, of three sizes."""
    folder, chance = tmp_path_factory.mktemp("pictures") / "shapes", random.Random(0)
    for name in SHAPES:
        (folder / name).mkdir(parents=True)
        for n in range(120):
            draw(name, chance).save(folder / name / f"{n:03}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def learn(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Trains on the shapes, in this process."""

    def call(*overrides: str, folder: Path | None = None, resume: bool = False) -> Run:
        common = ("data=folder", f"data.root={shapes}", "data.resize=32", "data.batch_size=32")
        cfg = configure(*SMALL, *common, *overrides)
        folder = folder or tmp_path_factory.mktemp("run")
        done = Run(cfg, folder, run(cfg, folder, resume=resume))
        manifest.write(folder, manifest.collect(cfg) | {"status": "completed"} | done.result)
        return done

    return call


@pytest.fixture(scope="session")
def learned(learn: Callable[..., Run]) -> Run:
    """A network that tells the shapes apart, by the mean and deviation of the training images."""
    return learn(
        "data.normalize=dataset",
        "optimizer.lr=0.004",
        "scheduler=onecycle",
        "trainer.max_epochs=12",
        "model.batch_norm=true",
    )


def weights(of: Run, name: str = "last") -> dict[str, torch.Tensor]:
    content = torch.load(of.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    found: dict[str, torch.Tensor] = content["state_dict"]
    return found


@pytest.mark.slow
def test_colored_shapes_are_learned_from_a_folder(learned: Run) -> None:
    assert float(learned.result["test/acc"]) >= 0.95
    assert float(learned.result["test/f1"]) >= 0.95  # which data=folder shows beside accuracy
    assert learned.result["test_images"] == 120


@pytest.mark.slow
def test_an_exported_set_gives_the_same_weights_as_the_set_itself(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.main(["data", *QUICK[:3], "export=pictures"]) == 0
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == TRAIN + synthetic.TEST
    pictures = ("data=folder", "data.root=pictures", "data.channels=1", "data.resize=32", "data.batch_size=64")
    ours = train(*pictures, "data.val_size=100", "data.flip=true", "metrics=none")
    theirs = train("data.flip=true")
    learned = weights(theirs)
    assert all(torch.equal(weight, learned[name]) for name, weight in weights(ours).items())
    assert ours.result["test/loss"] == theirs.result["test/loss"]
    assert "is not an empty folder" in refusal(lambda: data.main([*QUICK[:3], "export=pictures"]))


@pytest.mark.slow
def test_a_set_is_described_with_a_contact_sheet(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "photos"
    shutil.copytree(shapes, copy)
    for number in range(3):
        shutil.copy(copy / "red_circle" / f"{number:03}.jpg", copy / "red_circle" / f"copy{number}.jpg")
    (copy / "empty").mkdir()
    assert commands.main(["data", "data=folder", "data.root=photos", "data.resize=32", "data.normalize=dataset"]) == 0
    out = capsys.readouterr().out
    assert "red_triangle" in out
    assert "40 to 48 pixels wide, 40 to 48 high, 3 sizes" in out
    assert "603 RGB" in out
    assert "3 images are the same as another" in out
    assert "1 classes have no picture: empty" in caplog.text
    with Image.open(tmp_path / "outputs" / "data" / "Folder photos.png") as sheet:
        assert sheet.width > 1000


@pytest.mark.slow
def test_pictures_in_two_parts_are_reported_with_their_files(shapes: Path, tmp_path: Path, capsys: Any) -> None:
    for part, numbers in (("train", range(20)), ("test", range(19, 25))):
        for name in SHAPES:
            (tmp_path / part / name).mkdir(parents=True)
            for n in numbers:
                shutil.copy(shapes / name / f"{n:03}.jpg", tmp_path / part / name)
    sheet = f"sheet={tmp_path / 's.png'}"
    assert data.main(["data=folder", f"data.root={tmp_path}", "data.resize=32", "data.val_size=0", sheet]) == 0
    err = capsys.readouterr().err
    assert "5 pictures are in both the train and the test images" in err
    assert "019.jpg" in err


@pytest.mark.slow
def test_the_checkpoint_says_how_pictures_are_prepared(learned: Run, shapes: Path, tmp_path: Path) -> None:
    network = networks.load(str(learned.folder))
    ready = network.preparation
    assert (ready.fit, ready.stored, len(ready.mean)) == ("crop", (32, 32), 3)
    assert all(0.3 < mean < 0.6 for mean in ready.mean)
    done = vggexp("predict", f"run={learned.folder}", f"input={shapes}/green_square", "format=json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(each["class"] == "green_square" for each in found) >= 110
    assert [len(each["top"]) for each in found] == [5] * 120
    assert found[0]["top"][0] == {"class": found[0]["class"], "probability": found[0]["probability"]}
    again = vggexp("evaluate", f"run={learned.folder}", cwd=tmp_path)
    assert "the same numbers" in again.stdout or "test accuracy" in again.stdout
    exported = vggexp("export", f"run={learned.folder}", "formats=onnx", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_pictures_that_have_changed_are_not_resumed_on(learn: Callable[..., Run], shapes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(shapes, photos)
    root, folder = f"data.root={photos}", tmp_path / "run"
    learn(root, "trainer.max_epochs=1", folder=folder)
    Image.new("RGB", (40, 40), "white").save(photos / "red_circle" / "000.jpg")
    assert f"data.root={photos}: the images or classes are not those that the run began with" in refusal(
        lambda: learn(root, "trainer.max_epochs=2", folder=folder, resume=True)
    )


def test_normalization_is_of_the_training_images(shapes: Path) -> None:
    common = ("data=folder", f"data.root={shapes}", "data.resize=32")
    data = datamodule(configure(*common, "data.normalize=dataset"))
    data.setup()
    pixels = data.stored("train", torch.arange(len(data.indices["train"]))).double() / 255
    assert torch.allclose(torch.tensor(data.preparation.mean).double(), pixels.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(torch.tensor(data.preparation.std).double(), pixels.std((0, 2, 3), correction=0), atol=1e-6)
    ready = data.preparation((pixels * 255).round().byte())
    assert ready.mean().abs() < 1e-3
    assert torch.allclose(data.preparation.shown(ready).double(), pixels, atol=1e-6)
    imagenet = datamodule(configure(*common, "data.normalize=imagenet")).preparation
    assert (imagenet.mean, imagenet.std) == IMAGENET[3]
    assert datamodule(configure(*common, "data.normalize=imagenet", "data.channels=1")).preparation.mean == (0.449,)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [True, False])
def test_frozen_features_stay_as_they_are_and_the_classifier_learns(
    learn: Callable[..., Run], learned: Run, batch_norm: bool, tmp_path: Path
) -> None:
    net, frozen = f"model.batch_norm={str(batch_norm).lower()}", "model.freeze=features"
    if batch_norm:
        start = [f"model.weights={learned.folder / 'checkpoints' / 'best.ckpt'}"]
        before = weights(learned, "best")
    else:
        first = learn(net, "trainer.max_epochs=1")
        start, before = [f"model.weights={first.folder / 'checkpoints' / 'best.ckpt'}"], weights(first, "best")
    done = learn(net, *start, frozen, "trainer.max_epochs=2", "data.normalize=dataset")
    after = weights(done)
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == ("features" in name), name
    learn(net, *start, frozen, "trainer.max_epochs=1", "data.normalize=dataset", folder=tmp_path)
    longer = learn(net, *start, frozen, "trainer.max_epochs=2", "data.normalize=dataset", folder=tmp_path, resume=True)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(longer).items())


def test_a_network_without_features_cannot_freeze_them(train: Callable[..., Run]) -> None:
    options = ("model._target_=synthetic.Linear", "allowed_packages=[synthetic]", "model.freeze=features")
    assert "model.freeze=features: Linear has no such part" in refusal(lambda: train(*options))


@pytest.mark.slow
def test_pretrained_weights_of_color_are_used_as_they_are(learn: Callable[..., Run], learned: Run, capsys: Any) -> None:
    learn(
        f"model.weights={learned.folder / 'checkpoints' / 'best.ckpt'}",
        *("model.batch_norm=true", "data.normalize=dataset", "trainer.max_epochs=1", "optimizer.lr=1e-5"),
    )
    said = capsys.readouterr().out
    assert "loaded 20 of 20 entries" in said or "loaded" in said
    assert "adapted" not in said


@pytest.mark.slow
def test_rare_classes_count_more_where_asked(shapes: Path, tmp_path: Path, learn: Callable[..., Run]) -> None:
    for name, count in (("red_circle", 60), ("red_square", 12)):
        (tmp_path / name).mkdir()
        for n in range(count):
            shutil.copy(shapes / name / f"{n:03}.jpg", tmp_path / name)
    options = (f"data.root={tmp_path}", "trainer.max_epochs=1")
    balanced = learn(*options, "step.class_weights=balanced")
    assert balanced.result["train/loss"] != learn(*options).result["train/loss"]
    from vggexp.training.classifier import Classifier

    cfg = configure(*SMALL, "step.class_weights=balanced")
    found = Classifier(cfg, {"classes": []}, {"image_size": 32, "in_channels": 3, "num_classes": 2}, [30, 10])
    assert found.class_weights.tolist() == pytest.approx([40 / 60, 40 / 20])
    assert "class_weights" not in found.state_dict()


@pytest.mark.slow
def test_pictures_of_other_sizes_in_the_test_part_are_prepared_as_in_prediction(
    shapes: Path, tmp_path: Path, learn: Callable[..., Run]
) -> None:
    for part, side, numbers in (("train", 20, range(12)), ("test", 50, range(12, 18))):
        for name in SHAPES[:2]:
            (tmp_path / part / name).mkdir(parents=True)
            for n in numbers:
                with Image.open(shapes / name / f"{n:03}.jpg") as picture:
                    picture.resize((side, side)).save(tmp_path / part / name / f"{n:03}.png")
    done = learn(f"data.root={tmp_path}", "data.val_size=0", "trainer.max_epochs=1", folder=tmp_path / "run")
    found = datamodule(done.cfg)
    found.setup()
    network = networks.load(str(done.folder))
    batch = next(iter(found.test_dataloader()))
    with torch.inference_mode():
        expected = network.module(found.on_after_batch_transfer(batch, 0)[0]).softmax(1)
    form = pictures.Form(3, network.preparation.side, network.preparation.fit)
    files = [tmp_path / file for file in found.parts["test"].files]
    read = pictures.read(files, form, lambda path, reason: pytest.fail(reason))
    answers = predict(network, read, 64, torch.device("cpu"))
    assert torch.equal(torch.tensor([row for _, row in answers]), expected)


@pytest.mark.slow
def test_names_of_classes_do_no_harm(shapes: Path, tmp_path: Path, learn: Callable[..., Run]) -> None:
    names = [b"\xff\xfe", b"a\nb", b"\x1b[31mred", "x\u200fy".encode(), b"w" * 240, b'$x^$, "=1"']
    for n, name in enumerate(names):
        (folder := tmp_path / "set" / os.fsdecode(name)).mkdir(parents=True)
        for m in range(8):
            shutil.copy(shapes / SHAPES[n % 5] / f"{8 * n + m:03}.jpg", folder)
    root, show = f"data.root={tmp_path / 'set'}", "inspect.show=[predictions,projector]"
    done = learn(root, "trainer.max_epochs=1", "logger=tensorboard", show, folder=tmp_path / "run")
    classes = networks.load(str(done.folder)).classes
    assert sorted(classes) == sorted(["\\udcff\\udcfe", "a\\nb", "\\x1b[31mred", "x\\u200fy", "w" * 240, '$x^$, "=1"'])
    for command in (["evaluate"], ["predict", f"input={tmp_path / 'set'}", "format=csv"]):
        answer = vggexp(*command, f"run={done.folder}", cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
        assert not {"\x1b", "\u200f"} & set(answer.stdout)
    assert commands.main(["data", "data=folder", root, "data.resize=32", f"sheet={tmp_path / 's.png'}"]) == 0


@pytest.mark.slow
def test_frozen_features_can_be_looked_at(learn: Callable[..., Run], tmp_path: Path) -> None:
    learn("model.freeze=features", "trainer.max_epochs=1", "logger=tensorboard", "inspect=default", folder=tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    assert "where_it_looks/predicted_class" in events.Tags()["images"]
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"net"}


@pytest.mark.slow
def test_frozen_statistics_stay_when_they_are_looked_at(learn: Callable[..., Run], tmp_path: Path) -> None:
    common = ("model.freeze=features", "model.batch_norm=true", "trainer.max_epochs=2")
    plain = learn(*common)
    looked = learn(*common, "logger=tensorboard", "inspect=default", "inspect.times=2", folder=tmp_path)
    ours, theirs = weights(looked), weights(plain)
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert not any(weight.any() for name, weight in ours.items() if name.endswith("num_batches_tracked"))
