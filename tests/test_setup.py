"""What `make setup` installs, and the other ways to install."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import requirements

ROOT = Path(__file__).parents[1]
HEAVY = {"ray", "wandb", "mlflow-skinny", "playwright", "mypy", "optuna", "onnxruntime", "pytest", "pandas"}


def test_a_first_run_needs_none_of_the_extras() -> None:
    lock = requirements.locked()
    chosen = requirements.closure(requirements.wanted([]), lock)
    assert {"torch", "lightning", "hydra-core", "tensorboard", "numpy", "scipy", "hatchling"} <= chosen
    assert chosen <= set(lock)
    assert not chosen & HEAVY
    assert requirements.closure(requirements.wanted(["search"]), lock) - chosen >= {"optuna", "sqlalchemy"}
    assert requirements.closure(requirements.wanted(["dev"]), lock) == set(lock), "the lock holds nothing else"


def test_every_package_of_the_lock_has_hashes_and_no_address() -> None:
    assert all("--hash=sha256:" in block for block, _ in requirements.locked().values())
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_an_unknown_extra_is_named() -> None:
    with pytest.raises(SystemExit, match="EXTRAS=serch: serch is not an extra; there are export, joblib"):
        requirements.wanted(["serch"])


@pytest.mark.parametrize(
    ("gpu", "cpu_wheels", "absent", "present"),
    [
        (True, True, set(), {"torch", "triton", "nvidia-cublas", "nvidia-cusolver"}),
        (False, False, {"triton", "nvidia-cusolver", "cuda-bindings"}, {"torch", "nvidia-cublas"}),
        (False, True, {"torch", "torchvision", "triton", "nvidia-cublas"}, {"lightning", "torchmetrics"}),
    ],
    ids=["gpu", "plain wheels", "cpu wheels"],
)
def test_without_a_gpu_what_only_gpus_use_is_left_out(
    gpu: bool,
    cpu_wheels: bool,
    absent: set[str],
    present: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0 if cpu_wheels else 1)

    system = {"platform": "linux", "executable": sys.executable, "prefix": str(tmp_path), "exit": sys.exit}
    monkeypatch.setattr(requirements, "sys", SimpleNamespace(**system))
    monkeypatch.setattr(requirements, "platform", SimpleNamespace(machine=lambda: "x86_64"))
    monkeypatch.setattr(requirements.shutil, "which", lambda name: name if gpu else None)
    monkeypatch.setattr(requirements.subprocess, "run", run)
    requirements.install([])
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in lines if line[0].isalpha()}
    assert not names & absent
    assert present <= names
    asked = [command for command in commands if any(word.endswith("+cpu") for word in command)]
    assert bool(asked) != gpu
    assert "--require-hashes" in commands[-2]


@pytest.mark.slow
@pytest.mark.parametrize("installer", [["-m", "pip", "install"], ["-m", "uv", "pip", "install"]], ids=["pip", "uv"])
def test_the_checkout_can_be_installed(installer: list[str], tmp_path: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, *installer, *options, str(ROOT)], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "vggexp", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert done.stdout == "vggexp 0.1.0\n"
    assert (tmp_path / "site" / "vggexp" / "py.typed").exists()
    assert list(tmp_path.glob("site/vggexp-*/licenses/LICENSE"))
