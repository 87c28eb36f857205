"""The console command, and the package outside its checkout."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import QUICK, TESTS, imports, vggexp
from processes import PATIENCE
from vggexp import commands
from vggexp.config import compose
from vggexp.runs import manifest

ROOT = TESTS.parent


def console(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "vggexp"), *args]
    env = os.environ | {"PYTHONPATH": str(TESTS)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.mark.slow
def test_the_console_command_reaches_every_entry_point(tmp_path: Path) -> None:
    listed = console("--help", cwd=tmp_path)
    assert listed.returncode == 0
    assert {"train", "summary", "evaluate", "predict", "export", "data"} <= set(listed.stdout.split())
    wrong = console("trian", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "train" in wrong.stderr
    refused = console("train", "model=vgg12", cwd=tmp_path)
    assert refused.returncode == 2
    assert "vgg11" in refused.stderr


@pytest.mark.slow
def test_every_command_has_help_and_the_program_alone_says_how_to_start(tmp_path: Path) -> None:
    assert "vggexp train experiment=quickstart" in console(cwd=tmp_path).stdout
    assert re.fullmatch(r"vggexp \d+\.\d+\.\d+\n", console("--version", cwd=tmp_path).stdout)
    module = subprocess.run([sys.executable, "-m", "vggexp"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert module.stdout == console(cwd=tmp_path).stdout


@pytest.mark.parametrize("name", sorted(set(commands.COMMANDS) - {"train"}))
def test_the_help_of_a_command_begins_with_its_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"vggexp {name}")


def test_a_run_composes_its_config_and_makes_its_manifest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for module, name in ((compose, "compose"), (manifest, "collect")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=original, n=name, **k: (calls.append(n), f(*a, **k))[1])
    monkeypatch.setattr("vggexp.training.run.run", lambda *_, **__: {"epochs": 0} | DONE)
    monkeypatch.chdir(tmp_path)
    assert commands.main(["train", *QUICK, "hydra.run.dir=outputs/run"]) == 0
    assert calls == ["compose", "collect"]
    assert (tmp_path / "outputs" / "run" / ".hydra" / "config.yaml").exists()
    assert manifest.load(tmp_path / "outputs" / "run", "")["status"] == "completed"


DONE = {"best_epoch": None, "seconds": 1.0, "images_per_second": 1.0, "parameters": 1, "peak_memory_bytes": 1}


@pytest.mark.slow
def test_a_choice_in_the_users_own_folder_can_be_swept(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "narrow.yaml").write_text("defaults: [vgg]\nratio: 16\n")
    own = compose.configs(f"--config-dir={tmp_path}", "model=vgg11,narrow", "data.resize=32")
    assert [cfg.model.ratio for cfg in own] == [1, 16]
    every = compose.configs(f"--config-dir={tmp_path}", "model=glob(n*)", "data.resize=32")
    assert [cfg.model.ratio for cfg in every] == [16]


@pytest.mark.slow
def test_help_names_groups_and_keys(tmp_path: Path) -> None:
    done = vggexp("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in (
        "model: alexnet, vgg, vgg11, vgg11_lrn, vgg13, vgg16, vgg16_c, vgg19",
        "experiment:",
        "resize: 224",
        "--multirun",
    ):
        assert word in done.stdout


@pytest.mark.slow
def test_make_help_lists_every_target_in_one_screen() -> None:
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ": " in line and "##" in line}  # fmt: skip  # noqa: E501
    assert {"help", "setup", "data", "train", "test", "lint", "tensorboard", "sweep", "clean"} <= targets
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == targets
    assert len(done.stdout.splitlines()) <= 24


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed by pip into a folder without the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *options[:1], "--no-index", "--target", str(folder / "site"), str(wheel)], check=True)  # fmt: skip  # noqa: E501
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder_and_loads_nothing_that_only_others_need(
    installed: Path, tmp_path: Path
) -> None:
    """What a run loads delays its first step."""
    report = "import atexit, vggexp; atexit.register(print, vggexp.__file__)"
    (tmp_path / "sitecustomize.py").write_text(report)
    paths = os.pathsep.join([str(tmp_path), str(installed)])
    args = [*QUICK, "inspect=default", "trainer.max_steps=1", "hydra.run.dir=outputs/run"]
    done, modules = imports(*args, cwd=tmp_path, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(installed / "vggexp" / "__init__.py")
    assert (tmp_path / "outputs" / "run" / "result.json").exists()
    assert "lightning" in modules
    others = {"joblib", "submitit", "ray", "optuna", "mlflow", "wandb", "onnx", "onnxruntime", "onnxscript", "plotly"}
    assert not modules & {*others, "pandas", "scipy", "sklearn", "pytest", "torch._inductor.compile_fx"}
    assert not modules & {"vggexp.report.page", "vggexp.inference.predict", "vggexp.jobs.search"}
