"""What is fastest here is measured once, kept, taken from data that are checked, and stays what it was for a run."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import QUICK, Run, configure, refusal
from vggexp.commands import tune
from vggexp.config import choices
from vggexp.inference import load as trained
from vggexp.models import VGG
from vggexp.models.cpu import fused, tuning
from vggexp.runs import choices as of_runs
from vggexp.runs import layout, manifest
from vggexp.system import hardware
from vggexp.training.run import run

AUTO = (*QUICK, "trainer.precision=auto")
SHAPE = (1, 32, 32)
ALL = len(tuning.CHOICES)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Lets bf16 take half of the time of fp32, in a cache of its own; returns what has been measured so far."""
    monkeypatch.setenv("VGGEXP_CACHE", str(tmp_path / "cache"))
    seen: list[str] = []

    def seconds(sample: list[Any], ways: Mapping[str, Any]) -> dict[str, float]:
        seen.append(next(iter(ways)))
        return {each: 0.25 if each == "bf16-mixed" else 0.5 for each in ways} if sample else {}

    monkeypatch.setattr(tuning, "_seconds", seconds)
    return seen


def find(precision: str | None = None, batch: int = 64, again: bool = False) -> tuning.Found:
    with torch.device("meta"):
        net = VGG("vgg11", ratio=16, image_size=32)
    return tuning.find(net, SHAPE, batch, precision, again)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"a": 1.0, "b": 0.9}, "b"),
        ({"a": 1.0, "b": 0.96}, "a"),
        ({"a": 1.0, "b": 1.5}, "a"),
        ({"a": 1.0, "b": 0.8, "c": 0.7}, "c"),
        ({}, "a"),
    ],
)
def test_what_is_faster_by_less_than_the_margin_leaves_the_default(seconds: dict[str, float], chosen: str) -> None:
    assert tuning.choose(seconds, "a") == chosen


def test_the_shortest_times_of_runs_in_turns_count() -> None:
    order: list[str] = []

    def fake(name: str, times: Iterator[float]) -> Callable[[], float]:
        return lambda: (order.append(name), next(times))[1]

    noisy = {"a": fake("a", itertools.cycle([9.0, 2.0, 7.0])), "b": fake("b", itertools.cycle([1.0, 8.0, 8.0]))}
    assert tuning.race(noisy, 60) == {"a": 2.0, "b": 1.0}
    assert order == ["a", "b"] * tuning.ROUNDS
    order.clear()
    tuning.race(noisy)
    assert order == ["a", "b"] * 2


def test_a_measurement_disturbs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also that of all layers of a network: each way to run them is one that works."""
    monkeypatch.setenv("VGGEXP_CACHE", str(tmp_path))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    with torch.device("meta"):
        net = VGG("vgg11", ratio=16, image_size=32, batch_norm=True)
    found = tuning.find(net, SHAPE, 1024, None)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert {name: choice["seconds"].keys() for name, choice in found.items()} == {
        name: candidates.keys() for name, candidates in tuning.CHOICES.items()
    }
    assert all(0 < each < 60 for choice in found.values() for each in choice["seconds"].values())


def test_a_step_is_divided_into_its_layers() -> None:
    with torch.device("meta"):
        net = VGG("vgg19", ratio=16, image_size=32)
    found = list(tuning.layers(net, SHAPE).values())
    assert [count for _, count in found] == [1] * 4 + [1, 2, 1] * 2 + [3, 1]  # the last of a block has a pool
    first, second = found[0][0], found[1][0]
    assert (first.shape, first.inner, first.operations) == ((1, 32, 32), False, 4 * 4 * 32 * 32 * 9)
    assert (second.shape, second.inner, second.operations) == ((4, 32, 32), True, 6 * 4 * 32 * 32 * 9 * 4)
    cropped = second.cropped(second.operations / 2)
    assert (cropped.shape, cropped.operations) == ((4, 16, 32), second.operations // 2)
    assert second.cropped(0).shape == (4, 16, 32)


def test_it_is_measured_once_and_again_where_something_differs(
    counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find()
    assert found["precision"] == {"chosen": "bf16-mixed", "seconds": {"32-true": 0.5, "bf16-mixed": 0.25}}
    assert len(counted) == ALL
    assert find() == found
    assert len(counted) == ALL
    find(batch=32)
    assert len(counted) == 2 * ALL
    assert "precision" not in find("32-true")
    assert len(counted) == 3 * ALL - 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    find()
    assert len(counted) == 4 * ALL - 1
    monkeypatch.setenv("MKL_NUM_THREADS", "1")  # joblib sets it for its processes; what counts is torch's number
    find()
    assert len(counted) == 4 * ALL - 1
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    find()
    assert len(counted) == 5 * ALL - 1
    monkeypatch.setattr(hardware, "description", lambda: {"cpu": "another", "environment": {}})
    find()
    assert len(counted) == 6 * ALL - 1
    find(again=True)
    assert len(counted) == 7 * ALL - 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        '{"precision": {"chosen": "64-true", "seconds": {}}}',
        '{"precision": {"chosen": "bf16-mixed", "seconds": {"bf16-mixed": 1.0}}}',
        '{"precision": {"chosen": "bf16-mixed", "seconds": {"bf16-mixed": NaN, "32-true": 1.0}}}',
        '{"precision": {"chosen": ["bf16-mixed"], "seconds": {}}}',
        '{"precision": {"chosen": "bf16-mixed", "seconds": {}}, "other": {"chosen": "x", "seconds": {}}}',
    ],
)
def test_a_cache_that_is_not_ours_is_measured_again(text: str, counted: list[str], tmp_path: Path) -> None:
    found = find()
    (file,) = (tmp_path / "cache" / "choices").glob("*.json")
    file.write_text(text)
    assert find() == found
    assert len(counted) == 2 * ALL
    assert json.loads(file.read_text()) == found


def test_a_cache_that_cannot_be_written_is_not_needed(counted: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert find() == find()
    assert len(counted) == 2 * ALL


def test_what_starts_at_the_same_time_is_measured_once(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = tuning._measured
    monkeypatch.setattr(tuning, "_measured", lambda *args: (time.sleep(0.2), measured(*args))[1])
    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(find) for _ in range(4)]]
    assert len(counted) == ALL
    assert all(each == found[0] for each in found)


def test_a_network_that_only_numbers_decide_is_not_measured(counted: list[str]) -> None:
    class Deciding(VGG):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if images.sum() > 0 else images

    with torch.device("meta"):
        net = Deciding("vgg11", ratio=16, image_size=32)
    found = tuning.find(net, SHAPE, 8, None)
    assert found["precision"] == {"chosen": "32-true", "seconds": {}}
    assert choices.line(found) is None


def test_a_choice_says_by_how_much() -> None:
    found = {
        "precision": {"chosen": "bf16-mixed", "seconds": {"32-true": 0.42, "bf16-mixed": 0.2}},
        "pieces": {"chosen": "7 MB pieces", "seconds": {}},
    }
    assert choices.line(found) == "measured on this machine: bf16-mixed: 2.1 × 32-true"


def test_blocks_run_as_chosen() -> None:
    net = VGG("vgg11", ratio=16, image_size=32)
    tuning.apply(net, {"pieces": {"chosen": "28 MB pieces", "seconds": {}}})
    assert {block.options for block in net.features} == {fused.Options(piece_bytes=28_000_000)}
    assert VGG("vgg11", ratio=16, image_size=32).features[0].options == fused.Options()


def test_a_given_precision_is_not_measured(counted: list[str]) -> None:
    cfg = configure("trainer.precision=32-true")
    assert choices.with_precision(cfg) is cfg
    assert not counted


def test_a_run_keeps_its_first_choice(
    train: Callable[..., Run],
    counted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = train("trainer.precision=auto", "trainer.max_epochs=1")
    assert "bf16-mixed: 2 × 32-true" in capsys.readouterr().out
    assert done.result["precision"] == "bf16-mixed"
    assert done.cfg.trainer.precision == "auto"
    first: Any = done.result["choices"]
    assert first["precision"]["chosen"] == "bf16-mixed"
    assert json.loads((done.folder / layout.CHOICES).read_text()) == first
    manifest.write(done.folder, manifest.collect(done.cfg) | {"status": "completed"} | done.result)

    monkeypatch.setattr(tuning, "find", lambda *_: pytest.fail("was measured again"))
    network = trained.load(str(done.folder), {"allowed_packages": ["synthetic"]})
    assert network.cfg.trainer.precision == "bf16-mixed"
    assert network.classifier.about["choices"] == first
    longer = configure(*AUTO, "trainer.max_epochs=2")
    result = run(longer, done.folder, resume=True)
    assert (result["precision"], result["choices"]) == ("bf16-mixed", first)
    assert "bf16-mixed: 2 × 32-true" in capsys.readouterr().out


def test_a_resumed_run_computes_with_its_own_pieces(
    train: Callable[..., Run], counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's choice counts, not what would be chosen now; the same weights come out as without the stop."""
    options = ("trainer.max_epochs=2", "data.val_size=0", "trainer.limit_train_batches=3")
    monkeypatch.setitem(tuning.CHOICES, "pieces", {"few": {"piece_bytes": 10**6}, "many": {"piece_bytes": 10**5}})
    monkeypatch.setattr(tuning, "choose", lambda seconds, default: "many" if default == "few" else default)
    whole = train(*options)
    part = train(*options, "trainer.max_epochs=1")
    monkeypatch.setattr(tuning, "choose", lambda seconds, default: default)
    monkeypatch.setenv("VGGEXP_CACHE", str(part.folder / "another"))
    run(configure(*QUICK, *options), part.folder, resume=True)
    weights = [
        torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for done in (whole, part)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(each.values() for each in weights), strict=True))
    assert json.loads((part.folder / layout.CHOICES).read_text())["pieces"]["chosen"] == "many"


def test_further_processes_take_the_choice_of_the_first(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, dimensions = configure(*AUTO), {"in_channels": 1, "image_size": 32, "num_classes": 10}
    late = threading.Timer(0.3, lambda: of_runs.of_run(cfg, tmp_path, dimensions, None, True, False))
    late.start()
    begin = time.monotonic()
    exact, found = of_runs.of_run(cfg, tmp_path, dimensions, None, False, False)
    late.join()
    assert time.monotonic() - begin >= 0.3
    assert exact.trainer.precision == "bf16-mixed"
    assert len(counted) == ALL  # the first has measured, and nobody else
    assert of_runs.of_run(cfg, tmp_path, dimensions, None, True, True)[1] == found

    monkeypatch.setattr(of_runs, "PATIENCE", 0.1)
    empty = tmp_path / "empty"
    empty.mkdir()
    text = refusal(lambda: of_runs.of_run(cfg, empty, dimensions, None, False, False))
    assert "all processes of a run must share its folder" in text


def test_a_runs_file_that_is_not_ours_is_refused(counted: list[str], tmp_path: Path) -> None:
    cfg, dimensions = configure(*AUTO), {"in_channels": 1, "image_size": 32, "num_classes": 10}
    for text, words in (("{", "cannot be read"), ('{"pieces": 3}', "is not what a run writes")):
        (tmp_path / layout.CHOICES).write_text(text)
        assert words in refusal(lambda: of_runs.of_run(cfg, tmp_path, dimensions, None, True, True))
    (tmp_path / layout.CHOICES).unlink()
    exact, _ = of_runs.of_run(cfg, tmp_path, dimensions, "bf16-mixed", True, True)  # of a run that began before
    assert exact.trainer.precision == "bf16-mixed"
    assert not counted


def test_tune_shows_and_measures_again(counted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*AUTO, "data.batch_size=64,32"]
    assert tune.main(words) == 0
    shown = capsys.readouterr().out
    assert "2.00" in shown
    assert shown.count("bf16-mixed") == 2
    assert len(counted) == 2 * ALL
    tune.main(words)
    assert len(counted) == 2 * ALL
    tune.main([*words, "again=true"])
    assert len(counted) == 4 * ALL
    assert refusal(lambda: tune.main(["again=maybe"])) == "again=maybe: is not true or false"
