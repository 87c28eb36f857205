"""Inspections show everything requested, as often as configured and as the run computed it, and change no number."""

import csv
import json
import math
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from conftest import QUICK, TINY, Run, configure, refusal, started, vggexp
from processes import environment, server
from vggexp.checkpoints import file as checkpoint
from vggexp.config.instantiate import datamodule, network
from vggexp.data import DataModule, FashionMNIST
from vggexp.data.preparation import Preparation
from vggexp.inspection import base, callbacks, figures, health, pictures
from vggexp.inspection.loggers import Board
from vggexp.inspection.predictions import Predictions, principal
from vggexp.runs import manifest, metrics

SCORES = ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc")
ALL = ("inspect=default", "trainer.log_every_n_steps=2")
Train = Callable[..., Run]


@pytest.fixture(scope="module")
def shown(train: Train) -> Run:
    """A run of five epochs that shows everything it can, in three of them."""
    return train(*ALL, "trainer.max_epochs=5", "inspect.times=3")


def events(folder: Path) -> EventAccumulator:
    """Reads a run's events as TensorBoard does."""
    read = EventAccumulator(str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors", "histograms"), 0))
    read.Reload()
    return read


@pytest.mark.slow
def test_showing_changes_no_number(train: Train) -> None:
    loud, quiet = (train("model.batch_norm=true", *args) for args in (ALL, ("inspect=off",)))
    assert [loud.result[name] for name in SCORES] == [quiet.result[name] for name in SCORES]
    one, other = (checkpoint.read(run.folder / "checkpoints" / "last.ckpt", "")["state_dict"] for run in (loud, quiet))
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.slow
def test_everything_requested_is_shown(shown: Run) -> None:
    tags = events(shown.folder).Tags()
    classes = [f"bar_{n}" for n in range(10)]
    assert set(tags["scalars"]) >= {
        *SCORES, "lr", "images_per_second", "grad_norm", "memory_gib", "dead_relu/features.0.2",
        *(f"{stage}_class_acc/{name}" for stage in ("val", "test") for name in classes),
    }  # fmt: skip
    blocks = {f"maps/block_{n}" for n in range(1, 6)}
    pages = {"inputs/first_batch", "filters/first_layer", "where_it_looks/predicted_class"}
    assert set(tags["images"]) == blocks | pages | {"confusion/val", "confusion/test", "mistakes/test"}
    assert {"weights/features.0.0", "gradients/classifier.7"} <= set(tags["histograms"])
    texts = {f"run/{name}/text_summary" for name in ("config", "layers")}
    assert texts | {f"pr/{name}" for name in classes} <= set(tags["tensors"])
    assert tags["graph"]
    assert "custom_scalars__config__" in tags["tensors"]


@pytest.mark.slow
def test_a_compiled_network_is_shown_as_it_was_written(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_eagerly(net: nn.Module, **_: Any) -> None:
        net._compiled_call_impl = torch.compile(net._call_impl, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    compiled = train("inspect=default", "trainer.compile=default", "trainer.max_epochs=1", "data.val_size=0")
    assert events(compiled.folder).Tags()["graph"]


def test_pictures_are_limited_in_number_and_scalars_are_not(shown: Run) -> None:
    read = events(shown.folder)
    steps = [event.step for event in read.Images("filters/first_layer")]
    assert steps == [4, 14, 24]  # epochs 1, 3 and 5 of five batches each
    assert [event.step for event in read.Scalars("val_class_acc/bar_0")] == [4, 9, 14, 19, 24]
    assert [event.step for event in read.Images("inputs/first_batch")] == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "times", "due"), [(5, 5, [1, 2, 3, 4, 5]), (10, 3, [2, 6, 10]), (1, 9, [1]), (7, 1, [7])]
)
def test_the_last_epoch_is_always_shown(epochs: int, times: int, due: list[int]) -> None:
    class Trainer:
        max_epochs, is_global_zero, should_stop = epochs, True, False
        current_epoch = 0

    trainer: Any = Trainer()
    found = []
    for epoch in range(epochs):
        trainer.current_epoch = epoch
        if base.Inspection(Board(), configure(f"inspect.times={times}"), Path()).is_due(trainer):
            found.append(epoch + 1)
    assert found == due


def test_tensorboard_and_metrics_csv_agree_value_by_value(shown: Run) -> None:
    read = events(shown.folder)
    rows = list(csv.DictReader((shown.folder / "metrics.csv").open()))
    found = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    found.pop("epoch")
    names = [name for name in rows[0] if name not in ("step", "epoch")]
    assert set(names) == set(found)
    for name in names:
        logged = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert [step for step, _ in logged] == [step for step, _ in found[name]], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in logged], rel=1e-6), name


def test_hparams_have_the_final_results(shown: Run) -> None:
    read = events(shown.folder)
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["data.resize"].number_value == 32
    assert set(metrics.RESULTS) == {*SCORES, "images_per_second"}
    assert all(read.Scalars(tag) for tag in metrics.RESULTS)
    assert "hp_metric" not in read.Tags()["scalars"]


def test_texts_describe_the_run(shown: Run) -> None:
    read = events(shown.folder)
    config = read.Tensors("run/config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "ratio: 16" in config
    layers = read.Tensors("run/layers/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| features.0.0 | Conv2d | 4×32×32 | 40 |" in layers


@pytest.mark.slow
def test_a_stopped_and_resumed_run_shows_each_step_once(shown: Run, tmp_path: Path) -> None:
    args = [*QUICK, *ALL, "trainer.max_epochs=5", "inspect.times=3", "checkpoint.every_n_seconds=0.1"]
    folder = tmp_path / "outputs" / "run"
    with started(tmp_path, *args, "hydra.run.dir=outputs/run") as process:
        while not (folder / "checkpoints" / "previous.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert len(list(csv.DictReader((folder / "metrics.csv").open()))) < 40  # it had not finished
    done = vggexp("train", "resume=outputs/run", "allowed_packages=[synthetic]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    resumed, whole = events(folder), events(shown.folder)
    for kind, read in (("scalars", "Scalars"), ("images", "Images"), ("histograms", "Histograms")):
        assert set(resumed.Tags()[kind]) == set(whole.Tags()[kind])
        for tag in whole.Tags()[kind]:
            steps = [[event.step for event in getattr(each, read)(tag)] for each in (resumed, whole)]
            assert steps[0] == steps[1], tag


# ---------------------------------------------------------------------------------------------------- what they compute


def test_the_gradients_norm_is_the_norm_of_the_gradient(train: Train) -> None:
    args = (*ALL, "trainer.max_epochs=1", "model.dropout=0.0", "trainer.limit_train_batches=1")
    run, cfg = train(*args), configure(*QUICK, *args)
    L.seed_everything(cfg.seed, verbose=False)
    data = datamodule(cfg)
    data.setup()
    net = network(cfg.model.spec(), data.dimensions)
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    F.cross_entropy(net(images), labels).backward()
    norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in net.parameters() if p.grad is not None))
    assert events(run.folder).Scalars("grad_norm")[0].value == pytest.approx(norm, rel=1e-4)


def test_a_dead_relu_is_counted_and_a_live_one_is_not() -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-100.0, 1.0, 1.0, -100.0]))
    with base.watched(trainer, net, base.layers_of(net, nn.ReLU)) as outputs:
        base.forward(trainer, net, torch.rand(5, 1, 4, 4))
    silent = health.silent(outputs["1"])
    assert silent.tolist() == [True, False, False, True]
    assert net.training
    assert not net[1]._forward_hooks


@pytest.mark.parametrize("pooled", [False, True])
def test_where_it_looks_is_gradient_times_activation(pooled: bool, tmp_path: Path) -> None:
    """If the score is the sum over the upper half of a ReLU's output, the network looks at the upper half."""

    class Upper(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            upper = maps[:, :, : maps.shape[2] // 2].sum((1, 2, 3))
            return torch.stack([upper, -upper], 1)

    class Shown(Board):
        def add_image(self, tag: str, picture: Any, step: int, dataformats: str) -> None:
            found[tag] = picture

    found: dict[str, Any] = {}
    layers = [nn.Conv2d(1, 1, 1), nn.ReLU(), *([nn.MaxPool2d(4), nn.ReLU()] if pooled else []), Upper()]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(0.5)
    labels = torch.arange(10)
    test = TensorDataset(torch.full((10, 1, 8, 8), 100, dtype=torch.uint8), labels)
    trainer: Any = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    module: Any = SimpleNamespace(net=net)
    data = DataModule(source=FashionMNIST(), resize=8)
    data.sets, data.indices = {"test": test}, {"test": labels}
    data.preparation = Preparation(8, "pad", (8, 8))
    module.trainer = SimpleNamespace(datamodule=data)
    pictures.GradCAM(Shown(), configure("inspect.times=1"), tmp_path).on_train_epoch_end(trainer, module)
    sheet = found["where_it_looks/predicted_class"]
    plain, upper, lower = sheet[10, 10], sheet[:36, 98:194], sheet[60:96, 98:194]
    assert plain[0] == plain[1] == plain[2]
    assert upper.max() > 1.5 * lower.max()


def test_a_users_picture_is_one_class_and_one_name(tmp_path: Path) -> None:
    cfg = configure(
        *TINY,
        "inspect.show=[gauges,predictions,synthetic_picture.Mine]",
        "allowed_packages=[synthetic,synthetic_picture]",
    )
    assert [type(each).__name__ for each in callbacks(cfg, tmp_path, None)] == ["Gauges", "Predictions"]
    logger = TensorBoardLogger(tmp_path)
    assert [type(each).__name__ for each in callbacks(cfg, tmp_path, logger)] == ["Gauges", "Predictions", "Mine"]
    assert "vggexp.models.VGG" in refusal(lambda: configure(*TINY, "inspect.show=[vggexp.models.VGG]"))
    wrong = configure(*TINY, "inspect.show=[vggexp.inspection.base.Examples]")
    assert "vggexp.inspection.base.Examples" in refusal(lambda: callbacks(wrong, tmp_path, None))


def test_inspections_are_made_in_the_requested_order(tmp_path: Path) -> None:
    made = callbacks(configure("inspect.show=[projector,gradcam,gauges]"), tmp_path, TensorBoardLogger(tmp_path))
    assert [type(each).__name__ for each in made] == ["Projection", "GradCAM", "Gauges"]


def test_fused_optimizers_see_scaled_gradients() -> None:
    """In 16-mixed, only fused optimizers unscale the gradients themselves, after the hook that inspects them."""
    scaler = SimpleNamespace(get_scale=lambda: 8.0)
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    weight = nn.Parameter(torch.zeros(2))
    assert base.gradient_scale(trainer, torch.optim.Adam([weight], fused=True)) == 8.0
    assert base.gradient_scale(trainer, torch.optim.Adam([weight], fused=False)) == 1.0
    assert base.gradient_scale(trainer, torch.optim.Adam([weight])) == 1.0


def test_examples_are_always_the_same_and_cover_all_classes(trained: Run) -> None:
    data = datamodule(trained.cfg)
    data.setup()
    indices = base.examples(data, 20)
    labels = data.sets["test"].tensors[1][indices]
    assert labels.tolist() == [*range(10), *range(10)]
    assert torch.equal(indices, base.examples(data, 20))


def test_principal_components_keep_the_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 8, generator=generator) @ torch.randn(8, 200, generator=generator) + 3
    projected = principal(features)
    assert projected.shape == (30, 30)
    assert torch.allclose(torch.pdist(projected), torch.pdist(features), rtol=1e-3)


def test_signed_values_are_blue_white_and_red() -> None:
    picture = pictures.signed(torch.tensor([[-1.0, 0.0, 1.0]]), 3)
    assert picture[1].tolist() == [[0, 0, 255], [255, 255, 255], [255, 0, 0]]


def test_a_grid_arranges_pictures_row_by_row() -> None:
    tiles = [np.full((2, 2, 3), shade, np.uint8) for shade in (10, 20, 30)]
    sheet = pictures.grid(tiles, 2, gap=1)
    assert sheet.shape == (5, 5, 3)
    assert (sheet[0, 0, 0], sheet[0, 3, 0], sheet[3, 0, 0], sheet[2, 2, 0]) == (10, 20, 30, 128)


# -------------------------------------------------------------------------------------------------------- other loggers


def test_the_csv_logger_alone_writes_no_events(train: Train) -> None:
    run = train("logger=csv", *ALL)
    assert not list(run.folder.glob("events*"))
    assert "grad_norm" in (run.folder / "metrics.csv").read_text().splitlines()[0]


MORE = ("resume=outputs/run", "trainer.max_epochs=3", "allowed_packages=[synthetic]")
Points = list[tuple[str, int, float]]
MEASURED = ("epoch", "images_per_second", "memory_gib", "train_seconds")
"""Names of which the values differ from run to run, and one that Lightning adds to whatever it logs."""


def ends(folder: Path, *args: str, sabotage: tuple[str, int]) -> int:
    """Runs `vggexp train` until the sabotage ends it; returns the exit code."""
    return server().start("train", *args, cwd=folder, env=environment(), sabotage=[sabotage]).wait()


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> Points:
    """What a run of three epochs logs, each name and step once."""
    run = train(*ALL, "logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=3")
    rows = csv.DictReader((run.folder / "metrics.csv").open())
    points = [(name, int(row["step"]), float(text)) for row in rows for name, text in row.items() if text]
    return sorted(point for point in points if point[0] not in (*MEASURED, "step"))


@pytest.mark.slow
def test_mlflow_has_each_point_once_and_the_true_status_whatever_happens(tmp_path: Path, undisturbed: Points) -> None:
    """A run that is killed after it has logged more than it saved, fails, is stopped and goes on with more epochs."""
    args = [*QUICK, *ALL, "logger=mlflow", "hydra.run.dir=outputs/run", "trainer.log_every_n_steps=1"]
    assert ends(tmp_path, *args, sabotage=("kill_in_validation", 2)) == -signal.SIGKILL
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")

    def only() -> Any:
        (experiment,) = [each for each in client.search_experiments() if each.name == "vggexp"]
        (run,) = client.search_runs([experiment.experiment_id])
        return run

    assert only().info.status == "RUNNING"
    assert ends(tmp_path, *MORE, sabotage=("nan_loss", 2)) == 3
    assert only().info.status == "FAILED"
    assert ends(tmp_path, *MORE, sabotage=("stop_at", 3)) == 143
    assert only().info.status == "KILLED"
    assert (done := vggexp("train", *MORE, cwd=tmp_path)).returncode == 0, done.stderr
    assert "mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db" in done.stdout
    run, result = only(), manifest.load(tmp_path / "outputs" / "run", "")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final/test/acc"] == pytest.approx(result["test/acc"])
    assert (run.data.params["data.resize"], run.data.params["trainer.max_epochs"]) == ("32", "2")
    assert run.data.tags["resumed.trainer.max_epochs"] == "3"
    names = [name for name in run.data.metrics if name not in MEASURED and not name.startswith("final/")]
    points = [(name, e.step, e.value) for name in names for e in client.get_metric_history(run.info.run_id, name)]
    assert sorted(points) == undisturbed
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "images_per_second")]
    assert steps == [4, 9, 14]
    assert list((tmp_path / "outputs" / "mlflow").rglob("filters/first_layer/*.png"))


def records(data: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it, after a header of 7 bytes; the last may be cut short."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # the rest of a block holds no record
            place += 2**15 - place % 2**15
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4) and place <= len(data):  # whole, or a record's last part
            yield parts
            parts = b""


def offline(folder: Path) -> tuple[dict[str, list[int]], Points, list[int]]:
    """What W&B has written: the steps of each name, the numbers, and the exit codes, of all parts of a run."""
    from wandb.proto.wandb_internal_pb2 import Record

    steps: dict[str, list[int]] = {}
    numbers: Points = []
    codes = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, records(path.read_bytes())):
            if record.HasField("exit"):
                codes.append(record.exit.exit_code)
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = row.pop("trainer/global_step", -1)
            for name in [name for name in row if not name.startswith("_")]:
                steps.setdefault(name, []).append(step)
                numbers += [(name, step, row[name])] if isinstance(row[name], int | float) else []
    return steps, sorted(numbers), codes


@pytest.mark.slow
def test_wandb_has_each_point_once_and_how_a_run_ended(tmp_path: Path, undisturbed: Points) -> None:
    args = [*QUICK, *ALL, "logger=wandb", "hydra.run.dir=outputs/run", "trainer.log_every_n_steps=1"]
    assert ends(tmp_path, *args, sabotage=("kill_in_validation", 2)) == -signal.SIGKILL
    assert ends(tmp_path, *MORE, sabotage=("nan_loss", 2)) == 3
    done = vggexp("train", *MORE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "run"
    name = (folder / "logger_id.txt").read_text().strip()
    assert f"look inside    wandb sync --id {name} outputs/run/wandb/offline-run-*" in done.stdout
    steps, numbers, codes = offline(folder)
    names = {name for name, *_ in undisturbed}
    assert [point for point in numbers if point[0] in names] == undisturbed
    assert steps["images_per_second"] == [4, 9, 14]
    assert codes[-2:] == [1, 0]
    assert steps["run/config.path"] == [0]
    assert steps["filters/first_layer.filenames"] == steps["weights/features.0.0.bins"] == [4, 9, 14]
    assert list((folder / "wandb").rglob("*.png"))


@pytest.mark.slow
def test_profile_writes_a_trace_and_prints_the_top_operations(tmp_path: Path) -> None:
    args = [*TINY, "debug=profile", "trainer.accelerator=cpu", "hydra.run.dir=outputs/run"]
    done = vggexp("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "convolution" in done.stdout
    trace = json.loads((tmp_path / "outputs" / "run" / "profile" / "trace.json").read_text())
    assert any("convolution" in event["name"] for event in trace["traceEvents"])


def test_all_processes_predictions_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = object.__new__(Predictions)
    predictions._logits, predictions._labels = [torch.ones(2, 3), torch.ones(1, 3)], [torch.tensor([1, 1, 1])]
    other = (torch.zeros(2, 3), torch.tensor([0, 0]))
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda all_, own: all_.__setitem__(slice(2), [own, other])
    )
    logits, labels = predictions._gathered(SimpleNamespace(world_size=2))  # type: ignore[arg-type]
    assert torch.equal(logits, torch.cat([torch.ones(3, 3), torch.zeros(2, 3)]))
    assert labels.tolist() == [1, 1, 1, 0, 0]


def test_a_thousand_classes_have_a_confusion_matrix_of_usual_size() -> None:
    names = [f"class {n}" for n in range(1000)]
    assert max(figures.pixels(figures.confusion, torch.eye(1000, dtype=torch.int64), names).shape) < 5000


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channels_are_shown(channels: int) -> None:
    images = torch.randint(0, 256, (3, channels, 9, 7), dtype=torch.uint8)
    assert figures.pixels(figures.gallery, images, [""] * 3, "").shape[2] == 3


@pytest.mark.parametrize("count", [1, 8, 9])
def test_a_gallery_shows_all_its_images(tmp_path: Path, count: int) -> None:
    figures.gallery(torch.full((count, 1, 4, 4), 128, dtype=torch.uint8), [""] * count, "", tmp_path / "all.png")
    red = matplotlib.image.imread(tmp_path / "all.png")[:, :, 0]
    shown = (abs(red - 128 / 255) < 0.01).sum()
    assert shown / (1.5 * 120) ** 2 == pytest.approx(count, rel=0.05)
