"""What a stranger may put into a run folder, a sweep or a config: nothing is run, written elsewhere, or waited for."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trials import Server, Tally

from conftest import QUICK, TINY, Run
from processes import environment, server
from vggexp.errors import UserError
from vggexp.jobs import sweep

pytestmark = pytest.mark.slow

VICTIM = "what must not change"
TRUST = "allowed_packages=[synthetic]"
COMMANDS = {
    "resume": ["train", "resume=outputs/run", TRUST, "trainer.max_epochs=3"],
    "evaluate": ["evaluate", "run=outputs/run", TRUST],
    "predict": ["predict", "run=outputs/run", "input=some.idx", "format=csv", TRUST],
    "export": ["export", "run=outputs/run", "formats=safetensors", TRUST],
    "report": ["report", "outputs/run"],
    "runs": ["runs", "outputs"],
    "mark": ["runs", "mark", "outputs/run", "tags=a"],
}
"""What a user might do with a folder that came from someone else."""

FILES = (
    *("result.json", "metrics.csv", ".lock", "train.log", "logger_id.txt", ".hydra", ".hydra/overrides.yaml"),
    *("checkpoints", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/previous.ckpt"),
    *("checkpoints/finished.ckpt", "evaluation", "evaluation/evaluation.json", "export", "report"),
    *("export/model.safetensors", "report/report.html", "report/runs.csv", "report/figures", "code", "profile"),
    *(".result.json.0", ".result.json.1", ".metrics.csv.0", "checkpoints/.last.ckpt.0", "hparams.yaml", "wandb"),
)
"""What is read or written in a run folder, and what earlier versions wrote beside it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, farm: Server) -> Path:
    """A folder with a finished run, as the command leaves it."""
    import synthetic

    cwd = tmp_path_factory.mktemp("finished")
    (cwd / "some.idx").write_bytes(next(iter(synthetic.FILES.values())))
    assert farm.run([*QUICK, "hydra.run.dir=outputs/run"], cwd) == 0, (cwd / "log").read_text()
    (cwd / "log").unlink()
    return cwd


def snapshot(folder: Path) -> dict[str, str]:
    """The content of every file below a folder, by name."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_symlink() and path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def attempt(argv: list[str], cwd: Path, home: Path, seconds: float = 30) -> tuple[int, str]:
    """Runs a command, which ends in time and without a traceback; returns its exit code and what it said."""
    log = cwd / "log"
    log.unlink(missing_ok=True)
    process = server().start(*argv, cwd=cwd, env=environment(HOME=str(home)), log=log)
    try:
        code = process.wait(seconds)
    finally:
        process.kill()
    text = log.read_text(errors="replace")
    assert "Traceback" not in text, text[-3000:]
    assert code in (0, 1, 2, 3), (code, text)
    return code, text


def plant(run: Path, name: str, kind: str, victim: Path) -> None:
    """Puts something that is no file into a run folder, at a place where there may be one."""
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if kind == "link":
        path.symlink_to(victim.parent if "." not in path.name[1:] else victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which never ends


KINDS = ("link", "pipe") + (("device",) if os.getuid() == 0 else ())


def test_links_pipes_and_devices_in_a_run_folder(
    tally: Callable[[str], Tally], finished: Path, tmp_path: Path, farm: Server, count: Callable[[int, int], int]
) -> None:
    planted = tally("links, pipes and devices in a run folder")
    plans = [(name, kind, command) for name in FILES for kind in KINDS for command in COMMANDS]

    def trial(_: Server, number: int) -> None:
        name, kind, command = plans[number]
        cwd, home = tmp_path / f"{number}", tmp_path / f"{number}-home"
        shutil.copytree(finished, cwd)
        home.mkdir()
        victim = home / "victim.txt"
        victim.write_text(VICTIM)
        plant(cwd / "outputs" / "run", name, kind, victim)
        before = snapshot(home)
        with planted.trial(f"{command}: {name} is a {kind}"):
            attempt(COMMANDS[command], cwd, home)
            assert snapshot(home) == before
            assert victim.read_text() == VICTIM
        shutil.rmtree(cwd)

    farm.map(trial, range(0, len(plans), count(1, 41)))
    planted.check()


ARGUMENTS = [
    *("allowed_packages=[evil]", "+allowed_packages=[evil]", "++allowed_packages=[evil]", "~allowed_packages"),
    *("--config-dir=conf", "-cd=conf", "--config-path=conf", "--config-name=evil", "--experimental-rerun=x.pickle"),
    *("hydra.searchpath=[file://conf]", "hydra/launcher=evil", "hydra.launcher.setup=['touch canary']"),
    *("hydra.launcher._target_=evil.Evil", "+hydra.callbacks.a._target_=evil.Evil", "hydra.run.dir=/tmp/canary"),
    *("data.cache_dir=/tmp/canary", "++data.cache_dir=/tmp/canary", "logger.uri=http://localhost:1", "conf"),
    *("search.storage=sqlite:////tmp/canary", "note=${oc.env:SECRET}", "hydra.job.chdir=true", "{evil}=1"),
]
"""What `sweep.json` may hold, and a later `sweep=` must not obey."""


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_what_a_file_keeps_of_a_command_line_grants_nothing(
    argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ["seed=0,1", "hydra/launcher=processes", "hydra.launcher.n_jobs=2", "-m"]
    content = {"arguments": [*kept, argument], "jobs": [], "identity": ""}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    used = sweep.arguments(str(tmp_path), [])
    assert used == [*kept[:3], f"hydra.sweep.dir='{tmp_path}'"]
    assert argument in capsys.readouterr().err.replace("'", "")[:2000].replace("\n", " ") or "'" in argument


@pytest.mark.parametrize(
    "values", ["seed=range(0,100000000)", "seed=range(0,1000) data.resize=range(32,1000)", "note=" + "[" * 300]
)
def test_arguments_that_stand_for_too_much(values: str, tmp_path: Path) -> None:
    content = {"arguments": [*TINY[1:], "data=fashion_mnist", *values.split()], "jobs": [], "identity": ""}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    code, text = attempt(["train", f"sweep={tmp_path}", TRUST], tmp_path, tmp_path, 10)
    assert code == 2, text
    assert text.splitlines()[-1].startswith("vggexp: ")


@pytest.mark.parametrize("folder", ["a\0b", "\ud800", "x" * 5000, "/etc", "..", "a/../../b"])
def test_a_sweep_whose_folders_are_none(folder: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    jobs = [{"folder": folder, "config_hash": "", "overrides": []}]
    (tmp_path / "outputs" / "sweep.json").write_text(json.dumps({"arguments": [], "jobs": jobs, "identity": ""}))
    for command in ("runs", "report"):
        assert attempt(COMMANDS[command], tmp_path, tmp_path)[0] == 0


def test_a_search_does_not_mix_other_configs_into_its_study(tmp_path: Path) -> None:
    words = [*QUICK, "-m", "search=optuna", "search.n_trials=1", "optimizer.lr=0.001,0.002", "trainer.max_epochs=1"]
    at = "hydra.sweep.dir=outputs/s"
    assert attempt(["train", *words, at], tmp_path, tmp_path, 120)[0] == 0
    code, text = attempt(["train", *words, at, "model.init=xavier", "search.n_trials=2"], tmp_path, tmp_path)
    assert code == 2
    assert text == "vggexp: model.init=xavier: the search in outputs/s has kaiming; name another hydra.sweep.dir\n"


@pytest.mark.parametrize(
    "target",
    [
        *("data._target_=lightning.pytorch.LightningDataModule", "model._target_=torchmetrics.Accuracy"),
        *("model._target_=vggexp.training.classifier.Classifier", "data._target_=vggexp.data.idx.obtain"),
        *("optimizer._target_=torch.optim.Optimizer", "scheduler._target_=torch.optim.lr_scheduler.StepLR"),
        *("metrics.a._target_=vggexp.models.VGG", "optimizer._target_=vggexp.models.cpu.compiler.library"),
    ],
)
def test_a_class_that_is_no_component_is_one_line(target: str, tmp_path: Path) -> None:
    words = target.replace("metrics.a", "+metrics.a") if target.startswith("metrics") else target
    code, text = attempt(["train", *TINY, "trainer.max_epochs=1", words], tmp_path, tmp_path)
    assert code == 2
    assert text.splitlines()[-1].startswith("vggexp: "), text
    assert text.count("vggexp: ") == 1


def test_a_variable_of_the_environment_does_not_reach_a_report(finished: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "copy"
    shutil.copytree(finished, cwd)
    overrides = cwd / "outputs" / "run" / ".hydra" / "overrides.yaml"
    overrides.write_text("['${oc.env:HOME}', 'a=1', 'b=${oc.env:PATH}']\n")
    code, _ = attempt(["report", "outputs/run"], cwd, tmp_path / "secret home")
    assert code == 0
    page = (cwd / "outputs" / "run" / "report" / "report.html").read_text()
    assert "secret home" not in page
    assert "${oc.env:HOME}" in page


def bombs(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Configs that stand for far more than they say, by name, with the arguments that read them."""
    texts = {
        "values that double": "\n".join(
            [f"a{n}: '${{a{n + 1}}}${{a{n + 1}}}'" for n in range(40)] + ["a40: x", "note: ${a0}"]
        ),
        "a folder name that doubles": "hydra:\n  run:\n    dir: outputs/${a0}\n"
        + "\n".join([f"a{n}: '${{a{n + 1}}}${{a{n + 1}}}'" for n in range(40)] + ["a40: x"]),
        "one long value, many times": f"a: {'x' * 10**5}\nnote: '{'${a}' * 200}'",
        "nested interpolations": "note: '" + "${oc.env:" * 200 + "X" + "}" * 200 + "'",
        "merges that double": "b0: &b0 {x: 1}\n"
        + "\n".join(f"b{n + 1}: &b{n + 1}\n  <<: [*b{n}, *b{n}]" for n in range(40)),
        "lists that multiply": "c0: &c0 [1,1,1,1,1,1,1,1,1,1]\n"
        + "\n".join(f"c{n + 1}: &c{n + 1} [{','.join([f'*c{n}'] * 10)}]" for n in range(8)),
        "a deep tree": "note: " + "[" * 3000 + "]" * 3000,
        "many keys": "\n".join(f"k{n}: {n}" for n in range(60_000)),
    }
    (folder / "conf" / "experiment").mkdir(parents=True)
    for number, (name, text) in enumerate(texts.items()):
        (folder / "conf" / "experiment" / f"bomb{number}.yaml").write_text(f"# @package _global_\n{text}\n")
        yield name, ["--config-dir=conf", f"experiment=bomb{number}"]
    (folder / "linked").mkdir()
    (folder / "linked" / "experiment").symlink_to(folder / "conf" / "experiment")
    yield "behind a linked folder", ["--config-dir=linked", "experiment=bomb0"]
    (folder / "loop").mkdir()
    for name in "abc":
        (folder / "loop" / name).symlink_to(folder / "loop")
    yield "folders within themselves", ["--config-dir=loop", "model=nothing"]
    (folder / "pipes" / "experiment").mkdir(parents=True)
    os.mkfifo(folder / "pipes" / "experiment" / "a.yaml")
    yield "a pipe", ["--config-dir=pipes", "experiment=a"]
    (folder / "devices" / "experiment").mkdir(parents=True)
    (folder / "devices" / "experiment" / "a.yaml").symlink_to("/dev/zero")
    yield "a device", ["--config-dir=devices", "experiment=a"]


def test_configs_that_stand_for_more_than_they_say(
    tally: Callable[[str], Tally], tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    tries = tally("bombs in a config")
    for name, argv in bombs(tmp_path):
        for more in ([], ["-m"], ["--cfg=job"])[: count(3, 1)]:
            with tries.trial(f"{name} {more}"):
                words = [*argv[:1], *argv[1:], *TINY[1:], "data=fashion_mnist", "data.root=nowhere", *more]
                code, text = attempt(["train", *words], tmp_path, tmp_path, 10)
                assert code in (0, 2) if more == ["--cfg=job"] else code in (1, 2), text[-500:]
                assert len(text) < 2000 or more == ["--cfg=job"]
    tries.check()


def test_a_lock_that_is_a_link_empties_nothing(finished: Path, tmp_path: Path) -> None:
    from vggexp.runs import manifest, read

    shutil.copytree(finished, tmp_path / "copy")
    run = tmp_path / "copy" / "outputs" / "run"
    (tmp_path / "victim").write_text(VICTIM)
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").symlink_to(tmp_path / "victim")
    assert read.read(run).status == "completed"
    assert not manifest.is_locked(run)
    with pytest.raises(UserError, match="not a file"), manifest.lock(run, "run"):
        pass
    assert (tmp_path / "victim").read_text() == VICTIM


def test_a_trial_that_was_put_into_a_grid_is_not_obeyed(tmp_path: Path) -> None:
    words = ["-m", *QUICK, "trainer.max_epochs=1", "hydra.launcher.start_method=fork", "hydra.sweep.dir=outputs/s"]
    (tmp_path / "outputs" / "s" / "0").mkdir(parents=True)
    trial = {"storage": f"sqlite:///{tmp_path}/canary.db", "study": "x", "number": 0}
    (tmp_path / "outputs" / "s" / "0" / "trial.json").write_text(json.dumps(trial))
    code, text = attempt(["train", *words, "hydra/launcher=processes"], tmp_path, tmp_path, 120)
    assert code == 0, text
    assert not (tmp_path / "canary.db").exists()


def test_nothing_temporary_is_left_on_a_full_disk(finished: Path, tmp_path: Path) -> None:
    """On a file system of its own, which is filled to the last byte."""
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code, text = attempt(["train", *QUICK, "hydra.run.dir=outputs/run"], place, tmp_path, 120)
        run = place / "outputs" / "run"
        left = [path.name for path in run.rglob(".*") if path.name != ".lock" and path.name != ".hydra"]
        assert left == []
        assert code == 0 or (code == 1 and "No space left" in text), text
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_finished_run_is_refused_by_name_when_it_holds_a_link(finished: Path, tmp_path: Path, trained: Run) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    link = tmp_path / "copy" / "outputs" / "run" / "checkpoints" / "best.ckpt"
    link.unlink()
    link.symlink_to(trained.folder / "checkpoints" / "best.ckpt")
    _, text = attempt(COMMANDS["evaluate"], tmp_path / "copy", tmp_path)
    where = "outputs/run/checkpoints/best.ckpt"
    assert text == f"vggexp: run=outputs/run: {where} is a link, which a run's folder never holds; remove it\n"
