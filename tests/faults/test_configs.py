"""Wrong and hostile configs are refused, with the key named, before they have any effect."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trials import Server, Tally

from conftest import configure
from vggexp.data import idx
from vggexp.errors import UserError

WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12).map(lambda word: f"x{word}x")
NUMBERS = st.one_of(st.integers(-(10**6), -1), st.floats(-1e6, -1e-6).map(lambda x: round(x, 6)))
NOT_FINITE = st.sampled_from(["nan", "inf", "-inf"])
BOOLEANS = st.sampled_from(["true", "false"])
LISTS = st.sampled_from(["[]", "[1,2,3]", "{a:1}"])
COUNTS = st.one_of(WORDS, NUMBERS, NOT_FINITE, LISTS, st.floats(0.001, 0.999), BOOLEANS)
"""Values that are not a valid count."""
AMOUNTS = st.one_of(WORDS, NUMBERS, NOT_FINITE, LISTS, BOOLEANS)
"""Values that are not a positive number."""
SWITCHES = st.one_of(WORDS, st.integers(2, 9), LISTS)
CHOICES = st.one_of(WORDS, st.integers(), LISTS)

INVALID: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("data.resize", "data.batch_size", "data.val_size", "data.num_workers", "seed"), COUNTS),
    **dict.fromkeys(("model.ratio", "model.hidden", "inspect.times"), COUNTS),
    **dict.fromkeys(("trainer.max_epochs", "trainer.log_every_n_steps", "trainer.accumulate_grad_batches"), COUNTS),
    **dict.fromkeys(("optimizer.lr", "checkpoint.every_n_seconds", "optimizer.eps"), AMOUNTS),
    **dict.fromkeys(("model.dropout", "trainer.limit_train_batches", "trainer.gradient_clip_val"), AMOUNTS),
    **dict.fromkeys(("model.batch_norm", "trainer.deterministic", "data.test_each_epoch"), SWITCHES),
    **dict.fromkeys(("model.arch", "model.init", "trainer.precision", "trainer.strategy"), CHOICES),
    **dict.fromkeys(("model", "data", "optimizer", "scheduler", "trainer", "experiment", "debug"), WORDS),
}
UNKNOWN = st.builds(
    lambda section, name: f"{section}.{name}", st.sampled_from(["model", "data", "optimizer", "trainer"]), WORDS
)
MISTAKES = st.one_of(
    st.sampled_from(sorted(INVALID)).flatmap(lambda key: st.tuples(st.just(key), INVALID[key])),
    st.tuples(UNKNOWN, st.integers(0, 9)),
)


@pytest.mark.slow
def test_invalid_configs(
    tally: Callable[[str], Tally], count: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tally("invalid configs")
    monkeypatch.setattr(idx, "obtain", lambda *_, **__: pytest.fail("the data were read"))

    @settings(
        max_examples=count(1000, 25),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(MISTAKES)
    def refuse(mistake: tuple[str, Any]) -> None:
        key, value = mistake
        with configs.trial(f"{key}={value}"):
            with pytest.raises(UserError) as error:
                configure(f"{key}={value}")
            assert key in str(error.value), str(error.value)
            assert "\n" not in str(error.value)

    refuse()
    configs.check()


TOUCH = "'touch canary'"
TARGETS = [
    *("os.system", "posix.system", "subprocess.run", "subprocess.Popen", "subprocess.check_output", "pty.spawn"),
    *("builtins.open", "builtins.exec", "builtins.eval", "builtins.__import__", "pathlib.Path.write_text"),
    *("pathlib.Path.touch", "shutil.copyfile", "joblib.load", "numpy.load", "pickle.load", "torch.load"),
    *("torch.hub.load", "torch.utils.cpp_extension.load", "importlib.import_module", "runpy.run_path"),
    *("functools.partial", "hydra.utils.instantiate", "logging.config.dictConfig", "ctypes.CDLL", "evil.Evil"),
    *(
        "vggexp.runs.manifest.write",
        "vggexp.runs.manifest.os.system",
        "vggexp.commands.train.main",
        "vggexp.data.idx.subprocess.run",
    ),
    *("torch.optim.adam.torch.load", "torch.optim.lr_scheduler.partial", "lightning.pytorch.Trainer"),
    *("torchmetrics.Metric", "vggexp/../evil.Evil", "vggexp..evil.Evil"),
]
HYDRA = [
    "+hydra.callbacks.evil={_target_:os.system,command:'touch canary'}",
    "+hydra.callbacks.evil={_target_:hydra.utils.call,config:{_target_:os.system,command:'touch canary'}}",
    "+hydra.callbacks.mine={_target_:vggexp.jobs.launcher.Processes}",
    "-m hydra/launcher=basic",
    "-m hydra/sweeper=basic",
    "-m hydra.launcher._target_=evil.Evil",
    "-m hydra.sweeper._target_=evil.Evil",
    "+hydra.job_logging.handlers.evil={'()':os.system,command:'touch canary'}",
    "+hydra.job_logging.handlers.evil={class:evil.Evil}",
    "+hydra.hydra_logging.handlers.evil={class:subprocess.Popen,args:'touch canary'}",
    "hydra.job_logging.handlers.console.stream=ext://evil.Evil",
    "hydra.job_logging.handlers.file.filename=canary",
    "hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/../../canary",
    "+hydra.job.env_set.LD_PRELOAD=./evil.so",
    "hydra.searchpath=[pkg://evil]",
    "hydra.searchpath=['${oc.env:EVIL_PATH}']",
    "hydra.job.name=../../canary",
    "data.root=ext://evil.Evil hydra.job_logging.handlers.console.stream=${data.root}",
    "-m data.root=../../canary hydra.sweep.subdir=${data.root}",
    "--config-dir=conf --config-name=evil",
    "hydra.output_subdir=../../canary",
    "hydra.run.dir=outputs",
    "-m hydra.sweep.subdir=../../canary",
    "--experimental-rerun=evil.pickle",
    "model._target_=${oc.env:EVIL}",
    "data.root=os.system model._target_=${data.root}",
    "+model.evil={_target_:os.system,command:'touch canary'}",
    "+evil={_target_:os.system,command:'touch canary'}",
    "optimizer._target_=vggexp.models.VGG",
    "model._target_=torch.optim.Adam",
    "model._target_=evil.Evil allowed_packages=[torch]",
]
FILES = {
    "a python tag": "!!python/object/apply:os.system ['touch canary']",
    "aliases that multiply": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{y}: &{y} [{','.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
    "an alias of itself": "a: &a [*a]",
    "deep nesting": "a: " + "[" * 5000 + "]" * 5000,
    "a large file": "a: " + "x" * 2**21,
    "a target in a list": "model:\n  blocks: [{_target_: os.system, command: touch canary}]",
    "a target by alias": "seed: &evil os.system\nmodel:\n  _target_: *evil\n  command: touch canary",
    "another folder's defaults": "defaults: [/../../../../etc/passwd]",
    "a package on the search path": "hydra:\n  searchpath: [pkg://evil]",
    "an interpolated package": "hydra:\n  searchpath: ['${oc.env:EVIL_PATH}']",
    "a package by a merge": "a: &a {searchpath: [pkg://evil]}\nhydra: {<<: *a}",
    "a run folder elsewhere": "hydra: {run: {dir: canary}}",
    "a run folder above": "hydra: {run: {dir: outputs/../canary}}",
    "a run folder through a link": "hydra: {run: {dir: outputs/link/canary}}",
    "trust in a file": "allowed_packages: [evil]\nmodel: {_target_: evil.Evil}",
    "trust among the values of a sweep": "hydra: {sweeper: {params: {allowed_packages: '[evil]'}}}\n"
    "model: {_target_: evil.Evil}",
    "trust by a variable": "allowed_packages: ['${oc.env:EVIL_NAME,evil}']\nmodel: {_target_: evil.Evil}",
    "a log elsewhere by an attribute": "hydra: {job_logging: {handlers: {file: {'.': {baseFilename: canary}}}}}",
    "a cache elsewhere": "data: {cache_dir: canary}",
    "a server elsewhere": "logger: {name: mlflow, uri: 'http://localhost:1'}",
    "a file from above": "defaults: [/../../secret@hydra.sweeper.params]",
    "defaults within themselves": "defaults: [/experiment/itself]",
    "defaults that double": "defaults: [/b/a0@q]",
    "a default without a name": "defaults: [{'': x}]",
    "a tag that does not fit": "seed: !!bool x",
    "a folder with a null": 'hydra: {run: {dir: "outputs/\\0"}}',
    "logging of another kind": "hydra: {job_logging: {handlers: 3}}",
    "logging of loggers that are none": "hydra: {job_logging: {loggers: {x: 3}}}",
    "a verbosity that is none": "hydra: {verbose: 3}",
    "a level that is none": "hydra: {job_logging: {root: {level: NOPE}}}",
    "a long list": f"note: [{','.join(['a'] * 500_000)}]",
    "a sexagesimal number": f"note: {':'.join(['1'] * 500_000)}",
    "a key that is no text": "1: 2",
    "a byte order mark": "\ufeffseed: 1",
    "many processes of loading": f"data: {{num_workers: {10**30}}}",
    "a huge batch": f"data: {{batch_size: {10**30}}}",
    "a metric with a path for a name": "metrics: {a.b/c: {_target_: torchmetrics.MeanMetric}}",
    "a package in bytes": "hydra: {searchpath: [!!binary cGtnOi8vZXZpbA==]}",
}


@pytest.mark.slow
def test_attacks_by_a_config(
    tally: Callable[[str], Tally], farm: Server, tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    """A canary file would prove that code ran; importing the module `evil` writes one."""
    attacks = tally("attacks by a config")
    plans = [
        *[[f"model._target_={target}", f"+model.command={TOUCH}"] for target in TARGETS],
        *[_arguments(text) for text in HYDRA],
        *[["--config-dir=conf", f"experiment=attack{n}"] for n in range(len(FILES))],
    ]
    assert len(plans) >= 60
    plans = random.Random(8).sample(plans, count(len(plans), 20))

    def trial(server: Server, number: int) -> None:
        argv = plans[number]
        cwd = tmp_path / str(number)
        (cwd / "conf" / "experiment").mkdir(parents=True)
        (cwd / "outputs").mkdir()
        (cwd / "outputs" / "link").symlink_to(cwd)
        (cwd / "secret.yaml").write_text("token: hunter2\n")
        (cwd / "conf" / "b").mkdir()
        for n in range(30):
            (cwd / "conf" / "b" / f"a{n}.yaml").write_text(f"defaults: ['/b/a{n + 1}@x', '/b/a{n + 1}@y']\n")
        (cwd / "conf" / "b" / "a30.yaml").write_text("a: 1\n")
        (cwd / "evil.py").write_text(f"open({str(cwd / 'canary')!r}, 'w')\nclass Evil: pass\n")
        searchpath = "hydra: {searchpath: ['${oc.env:NONE,pkg}://evil']}"
        (cwd / "conf" / "evil.yaml").write_text(f"defaults: [config, _self_]\n{searchpath}\n")
        (cwd / "evil.pickle").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
        if argv[-1].startswith("experiment=attack"):
            name = argv[1].partition("=")[2]
            content = list(FILES.values())[int(name.removeprefix("attack"))]
            (cwd / "conf" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{content}\n")
        with attacks.trial(" ".join(argv)):
            env = {"EVIL": "os.system", "EVIL_PATH": "pkg://evil", "PYTHONPATH": os.fspath(cwd)}
            flags = [part for part in argv if part.startswith("-")]
            rest = [part for part in argv if part not in flags]
            code = server.run([*flags, *QUIET, *rest], cwd, **env)
            log = (cwd / "log").read_text()
            assert code in (1, 2), log
            assert "Traceback" not in log, log
            assert len(log.splitlines()) <= 2, log
            left = {path.name for path in cwd.iterdir()}
            assert left == {"conf", "outputs", "evil.py", "evil.pickle", "secret.yaml", "log"}, left
            assert not [path for path in cwd.rglob("*") if "hunter2" in path.name]

    farm.map(trial, range(len(plans)))
    attacks.check()


QUIET = ["model.ratio=16", "data.resize=32", "data.root=nowhere"]


def _arguments(text: str) -> list[str]:
    return [text] if text.startswith("+") else text.split(" ")
