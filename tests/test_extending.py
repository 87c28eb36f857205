"""The five additions in docs/extending.md work as written: the tests write out its files and run its commands."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import Run, configure, vggexp

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FENCES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
FILES = {text.partition("\n")[0].removeprefix("# "): text for language, text in FENCES if language != "sh"}
COMMANDS = [
    shlex.split(line)
    for language, text in FENCES
    if language == "sh"
    for line in text.replace("\\\n", " ").splitlines()
]
TRAINING = [command[2:] for command in COMMANDS if command[:2] == ["vggexp", "train"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's files and data set, as the current folder and on Python's path."""
    place = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        yield place
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Runs the page's training command that contains a text, in this process, on the CPU and in fp32."""
    from vggexp.training.run import run

    def call(text: str) -> Run:
        (args,) = [args for args in TRAINING if any(text in arg for arg in args)]
        cfg = configure(*args, "trainer.accelerator=cpu", "trainer.precision=32-true")
        place = tmp_path_factory.mktemp("run")
        return Run(cfg, place, run(cfg, place))

    return call


def test_the_page_has_five_additions() -> None:
    assert len(re.findall(r"^## An? ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)) == 5
    assert len(TRAINING) == 6


@pytest.mark.slow
def test_a_data_set_with_the_commands_of_the_page(folder: Path) -> None:
    first = COMMANDS.index(["export", "PYTHONPATH=."])
    for command in COMMANDS[first + 1 : first + 3]:
        assert command[0] == "vggexp"
        done = vggexp(*command[1:], cwd=folder, PYTHONPATH=".", VGGEXP_CACHE=str(folder / "cache"))
        assert done.returncode == 0, done.stderr
    checkpoint: dict[str, Any] = torch.load(folder / "outputs/stripes/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["classes"] == ["horizontal", "vertical", "diagonal"]
    assert checkpoint["dimensions"] == {"image_size": 32, "in_channels": 1, "num_classes": 3}


@pytest.mark.slow
def test_a_network(trained: Callable[[str], Run]) -> None:
    result = trained("model.width=32").result
    assert result["parameters"] == 32 * 32 * 32 + 32 + 32 * 3 + 3
    assert float(result["test/acc"]) > 0.8


@pytest.mark.slow
def test_an_optimizer(trained: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    import mine.optimizers

    steps, step = [], mine.optimizers.SignSGD.step
    monkeypatch.setattr(
        mine.optimizers.SignSGD, "step", lambda *args, **options: steps.append(1) or step(*args, **options)
    )
    result = trained("optimizer=signsgd").result
    assert len(steps) >= result["steps"]
    assert float(result["test/acc"]) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f1", "top_two"])
def test_a_metric(name: str, trained: Callable[[str], Run]) -> None:
    done = trained(f"+metrics.{name}=")
    for score in (f"val/{name}", f"test/{name}"):
        assert 0.5 < float(done.result[score]) <= 1
        assert score in (done.folder / "metrics.csv").read_text().partition("\n")[0].split(",")


@pytest.mark.slow
def test_a_picture(trained: Callable[[str], Run]) -> None:
    done = trained("mine.pictures.LastLayer")
    events = EventAccumulator(str(done.folder), size_guidance={"images": 0})
    events.Reload()
    shown = events.Images("last_layer/weights")
    assert len(shown) == done.cfg.trainer.max_epochs
    assert {(image.width, image.height) for image in shown} == {(8 * 64, 8 * 3)}
