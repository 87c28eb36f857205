"""Every config in `conf/` is valid; every mistake gives one line that names the key, the value and what is allowed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from conftest import TESTS, TINY, configure, imports, vggexp
from vggexp.config import compose
from vggexp.config.instantiate import network
from vggexp.errors import UserError
from vggexp.models.layers import Flatten
from vggexp.system import paths

CHOICES = [
    f"{group.name}={file.stem}" for group in sorted(Path(paths.CONF).iterdir()) if group.is_dir()
    for file in sorted(group.glob("*.yaml"))
]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_valid(choice: str) -> None:
    configure(choice, *(["--multirun"] if choice.startswith("search=") else []))


def test_groups_are_those_documented() -> None:
    assert set(CHOICES) >= {
        *("model=vgg11", "model=vgg11_lrn", "model=vgg13", "model=vgg16_c", "model=vgg16", "model=vgg19"),
        *("model=alexnet", "data=fashion_mnist"),
        *("optimizer=adam", "optimizer=adamw", "optimizer=sgd", "optimizer=muon"),
        *("scheduler=none", "scheduler=cosine", "scheduler=onecycle", "scheduler=triangular"),
        *("trainer=default", "trainer=cpu", "trainer=gpu", "trainer=ddp"),
        *("experiment=quickstart", "experiment=book", "experiment=resize96", "experiment=vgg16"),
        *("experiment=vgg19", "experiment=alexnet", "experiment=batch_norm"),
        *("experiment=speedrun", "experiment=best"),
        *("debug=fast", "debug=overfit", "debug=profile"),
    }


def test_the_plain_command_trains_as_the_chapter_does() -> None:
    cfg = configure("model=vgg11", "model.ratio=4")
    assert (cfg.data.resize, cfg.data.batch_size, cfg.trainer.max_epochs) == (224, 128, 5)
    assert cfg.optimizer.spec() == {
        "_target_": "torch.optim.Adam", "lr": 0.001, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8,
        "fused": True,
    }  # fmt: skip


def test_book_has_no_validation_split_and_scores_the_test_set_each_epoch() -> None:
    cfg = configure("experiment=book")
    assert (cfg.data.val_size, cfg.data.test_each_epoch) == (0, True)


@pytest.mark.parametrize("name", ["speedrun", "best"])
def test_a_plain_vgg_trains_on_all_training_images_and_is_tested_once(name: str) -> None:
    cfg = configure(f"experiment={name}")
    assert (cfg.data.val_size, cfg.data.train_size, cfg.data.test_each_epoch) == (0, None, False)
    net = network(cfg.model.spec(), {"image_size": cfg.data.resize, "in_channels": 1, "num_classes": 10})
    kinds = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Linear, Flatten}
    layers = [module for module in net.modules() if not list(module.children())]
    assert {type(layer) for layer in layers} == kinds
    assert {layer.kernel_size for layer in layers if isinstance(layer, nn.Conv2d)} == {(3, 3)}


@pytest.mark.parametrize("path", sorted(Path(paths.CONF, "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_experiment_files_begin_with_their_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python -m vggexp.train experiment={path.stem}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=vgg12", "model=vgg12 vgg11, vgg13, vgg16, vgg19 did you mean model=vgg1"),
        ("modle=vgg11", "modle=vgg11 unknown did you mean model?"),
        ("experiment=quick", "experiment=quick did you mean experiment=quickstart?"),
        ("data.rezise=96", "data.rezise=96 unknown key did you mean data.resize?"),
        ("+data.rezise=96", "data.rezise=96 unknown key did you mean data.resize?"),
        ("optimizer.momentum=0.9", "optimizer.momentum=0.9 unknown key betas"),
        ("optimizer.lr.x=1", "optimizer.lr.x=1 unknown key"),
        ("hydra.run.dri=x", "hydra.run.dri=x did you mean hydra.run.dir?"),
        ("optimizer.lr=-1", "optimizer.lr=-1: greater than 0"),
        ("optimizer.lr=0", "optimizer.lr=0: greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan: finite"),
        ("optimizer.lr=inf", "optimizer.lr=inf: finite"),
        ("optimizer.lr=fast", "optimizer.lr=fast: number"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] 2 items"),
        ("model.ratio=3", "model.ratio=3: 1, 2, 4, 8, 16, 32, 64"),
        ("model.dropout=1", "model.dropout=1: less than 1"),
        ("model.init=kayming", "model.init=kayming did you mean kaiming?"),
        ("data.resize=31", "data.resize=31: too small data.resize=32"),
        ("model.arch=vgg12", "model.arch=vgg12: vgg11, vgg19"),
        ("data.resize=0", "data.resize=0: integer from 1 to 10000"),
        ("inspect.show=[gauges,picture]", "inspect.show=picture: pictures"),
        ("inspect.show=[evil.Evil]", "inspect.show.0=evil.Evil: allowed_packages=[evil]"),
        ("+metrics.f1._target_=evil.Evil", "metrics.f1._target_=evil.Evil: allowed_packages=[evil]"),
        ("hydra.launcher._target_=evil.Evil", "hydra.launcher._target_=evil.Evil: allowed_packages=[evil]"),
        ("model.image_size=32", "model.image_size=32: unknown key"),
        ("model.blocks=[[1]]", "model.blocks.0=[1]: 2 items"),
        ("model.blocks=[]", "model.blocks=[]: 1 item"),
        ("model.batch_norm=2", "model.batch_norm=2: boolean"),
        ("data.resize=64.5", "data.resize=64.5: integer"),
        ("data.resize={0:64,5:10001}", "data.resize={0:64,5:10001}: from 1 to 10000 {0:64,5:96}"),
        ("data.resize={0:64,half:96}", "data.resize={0:64,half:96}: integer schedule {0:64,5:96}"),
        ("data.resize={1:64}", "data.resize={1:64}: begin at epoch 0"),
        ("data.resize={0:64,5:96,3:80}", "data.resize={0:64,5:96,3:80}: epochs must rise"),
        ("data.resize={0:31,5:96}", "data.resize={0:31,5:96}: too small data.resize=32"),
        ("data.seed=-1", "data.seed=-1: greater than or equal to 0"),
        ("data.batch_size=0", "data.batch_size=0: greater than or equal to 1"),
        ("data.val_size=-1", "data.val_size=-1: must be a number of images, or a share of them between 0 and 1"),
        ("data.test_each_epoch=maybe", "data.test_each_epoch=maybe: boolean"),
        ("seed=1.5", "seed=1.5: integer"),
        ("seed=abc", "seed=abc: integer"),
        ("seed=true", "seed=true: integer"),
        ("seed=-1", "seed=-1: greater than or equal to 0"),
        ("seed=null", "seed=null: integer"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: greater than or equal to 0"),
        ("trainer.precision=bf16", "trainer.precision=bf16: did you mean bf16-mixed?"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0:"),
        ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches=1.5:"),
        ("trainer.early_stopping.patience=0", "trainer.early_stopping.patience=0:"),
        ("trainer.max_time=5m", "trainer.max_time=5m:"),
        ("trainer.devices=many", "trainer.devices=many: auto integer"),
        ("model._target_=os.system", "model._target_=os.system allowed_packages"),
        ("optimizer._target_=torch.optimizer.Evil", "optimizer._target_=torch.optimizer.Evil allowed_packages"),
        ("~model", "model: missing"),
        ("data.root=${nowhere}", "nowhere"),
        ("optimizer.lr=[", "optimizer.lr=[: KEY=VALUE"),
        ("hydra.run.dir=a=b", "hydra.run.dir=a=b: KEY=VALUE quotes"),
        ("verbose", "verbose: KEY=VALUE"),
        ("data.resize=32,64", "data.resize=32,64 --multirun"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        configure(override)
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 2
    for word in words.split(" "):
        assert word in message


def test_contradictory_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"early_stopping.*val_size=0.*data.val_size to more"):
        configure("trainer.early_stopping.patience=2", "data.val_size=0")
    with pytest.raises(UserError, match="nesterov"):
        configure("optimizer=sgd", "optimizer.momentum=0")


def test_every_job_of_a_sweep_is_checked_before_the_first_starts() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr=-0\.0003"):
        compose.configs("data.resize=32,64", "optimizer.lr=1e-3,-3e-4")
    jobs = compose.configs("data.resize=32,64", "seed=range(3)")
    assert [(job.data.resize, job.seed) for job in jobs] == [(r, s) for r in (32, 64) for s in range(3)]


def test_seed_zero_is_a_valid_seed_and_part_of_the_hash() -> None:
    assert configure("seed=0").seed == 0
    assert configure("seed=0").hash() == configure().hash() != configure("seed=1").hash()


def test_a_users_package_is_allowed_by_name() -> None:
    assert configure(*TINY).data.target == "synthetic.SyntheticMNIST"
    with pytest.raises(UserError, match=r"allowed_packages=\[synthetic\]"):
        configure(*TINY, "allowed_packages=[]")


@pytest.mark.slow
@pytest.mark.parametrize("override", ["model=vgg12", "optimizer.lr=-1", "optimizer.lr=nan", "data.rezise=96", "model.ratio=3"])  # fmt: skip  # noqa: E501
def test_the_command_answers_a_mistake_with_one_line_and_exit_2(override: str, tmp_path: Path) -> None:
    done = vggexp("train", override, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert override.split("=")[0] in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["model=vgg12"]], ids=" ".join)
def test_torch_is_not_loaded_to_answer(flags: list[str], tmp_path: Path) -> None:
    done, modules = imports(*flags, cwd=tmp_path)
    assert done.returncode == (2 if flags == ["model=vgg12"] else 0)
    assert "hydra" in modules
    assert not modules & {"torch", "lightning", "numpy"}


def test_rerunning_a_pickle_is_refused() -> None:
    with pytest.raises(UserError, match="experimental-rerun"):
        compose.parse(["--experimental-rerun", "config.pickle"])


@pytest.mark.slow
def test_run_names_differ_between_processes() -> None:
    code = "from vggexp.config.compose import run_name; print(run_name() == run_name(), run_name())"
    command = [sys.executable, "-c", code]
    names = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert all(name.startswith("True") for name in names)
    assert names[0] != names[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vggexp tr", "train"),
        ("vggexp train model=", "model=vgg19"),
        ("vggexp train data.re", "data.resize="),
    ],
)
def test_bash_completes(line: str, expected: str, tmp_path: Path) -> None:
    words = line.split(" ")
    script = f'''
        eval "$(vggexp -sc install=bash)"
        COMP_LINE="{line}" COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}
        hydra_bash_completion
        printf "%s\\n" "${{COMPREPLY[@]}}"
    '''
    (tmp_path / "bin").symlink_to(Path(sys.executable).parent)  # Hydra's script cannot be used from a path with spaces
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert expected in done.stdout.split(), done.stderr


@pytest.mark.slow
def test_a_users_network_trains_from_one_python_file_and_one_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "data").mkdir()
    (tmp_path / "conf" / "data" / "synthetic.yaml").write_text((TESTS / "conf/data/synthetic.yaml").read_text())
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: mynets.Mine\nwidth: 32\n")
    (tmp_path / "mynets.py").write_text(
        """
from torch import nn

class Mine(nn.Sequential):
    def __init__(self, image_size, in_channels, num_classes, width):
        super().__init__(
            nn.Flatten(), nn.Linear(in_channels * image_size**2, width), nn.ReLU(), nn.Linear(width, num_classes)
        )
"""
    )
    options = ["--config-dir=conf", "data=synthetic", "model=mine", "trainer.max_epochs=1", "hydra.run.dir=outputs/run"]
    done = vggexp("train", *options, "allowed_packages=[synthetic,mynets]", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs" / "run" / "result.json").read_text())
    assert result["parameters"] == 32 * 32 * 32 + 32 + 32 * 10 + 10

    options = [*options[:-1], "hydra.run.dir=outputs/other", "+model.depth=3"]
    wrong = vggexp("train", *options, "allowed_packages=[synthetic,mynets]", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "'depth'" in wrong.stderr
    assert "width" in wrong.stderr


@pytest.mark.slow
def test_bounds_are_those_of_one_config_however_many_follow(tmp_path: Path) -> None:
    with compose.session(compose.parse(["--multirun", "seed=0,1"])) as session:
        base = session.sweep_config(tmp_path)
        for seed in range(60):
            raw = session.loader.load_sweep_config(base, [f"seed={seed}"])
            assert compose.check(raw).seed == seed
            assert str(raw.hydra.sweep.dir) == str(tmp_path)
