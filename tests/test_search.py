"""`search=optuna`: the study survives every process and makes the same choices whether or not it was killed."""

import contextlib
import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from conftest import QUICK, TINY, refusal, started, vggexp
from test_sweep import FORK, results, wait_for
from vggexp.commands import train
from vggexp.config import compose
from vggexp.jobs import search
from vggexp.jobs.search import SECRET, TRIES, Search, _distribution
from vggexp.runs import layout, manifest
from vggexp.runs import read as runs

SPACE = ("data.resize=32,33", "data.batch_size=64", "optimizer.lr=tag(log,interval(1e-4,5e-3))")
TRIALS = ("search=optuna", "search.n_trials=8", "search.startup_trials=3")
SEARCH = ("-m", FORK, *QUICK, *TRIALS, "trainer.max_epochs=3", *SPACE)


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / layout.STUDY}")


def trials(folder: Path) -> list[tuple[Any, ...]]:
    return [(t.number, t.state.name, t.params, t.value, t.intermediate_values) for t in study(folder).trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a search that is not disturbed."""
    folder = tmp_path_factory.mktemp("search")
    done = vggexp("train", *SEARCH, "hydra.sweep.dir=outputs/study", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "outputs" / "study", done.stdout


@pytest.mark.slow
def test_a_search_maximizes_val_acc_and_prunes(whole: tuple[Path, str]) -> None:
    folder, out = whole
    found = results(folder)
    assert len(found) == 8
    states = {str(number): state for number, state, *_ in trials(folder)}
    assert {name: r["status"] for name, r in found.items()} == {
        name: {"COMPLETE": "completed", "PRUNED": "pruned"}[state] for name, state in states.items()
    }
    assert "PRUNED" in states.values()
    completed = {name: r for name, r in found.items() if r["status"] == "completed"}
    assert {t[0]: t[3] for t in trials(folder) if t[1] == "COMPLETE"} == {
        int(name): r["val/acc"] for name, r in completed.items()
    }
    best = max(completed, key=lambda name: completed[name]["val/acc"])
    assert study(folder).best_value == completed[best]["val/acc"]
    assert f"best val/acc {completed[best]['val/acc']:.4f} in outputs/study/" in out
    pruned = next(r for r in found.values() if r["status"] == "pruned")
    assert "behind the other trials" in pruned["reason"]
    assert "test/acc" not in pruned


@pytest.mark.slow
def test_trials_differ_only_in_the_search_space(whole: tuple[Path, str]) -> None:
    for number, _, params, *_ in trials(whole[0]):
        config = results(whole[0])[str(number)]["config"]
        assert config["data"]["resize"] in (32, 33)
        assert config["data"]["batch_size"] == 64
        assert 1e-4 <= config["optimizer"]["lr"] <= 5e-3
        assert 0.2 <= config["model"]["dropout"] <= 0.7  # from the search's own space
        assert config["trainer"]["precision"] == "32-true"  # from QUICK: a single value takes its key out of the space
        assert params.keys() == {"data.resize", "optimizer.lr", "model.dropout"}


@pytest.mark.slow
def test_a_killed_search_continues_and_makes_the_same_choices(whole: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "study"
    for done in (1, 4):
        with started(tmp_path, *SEARCH, "hydra.sweep.dir=outputs/study") as process:
            wait_for(folder, "completed", "pruned", number=done)
            (run, *_) = wait_for(folder, "running")
            process.send_signal(signal.SIGKILL)
            process.wait()
            if done == 1:
                os.kill(run.result["pid"], signal.SIGKILL)
    last = vggexp("train", "sweep=last", *TINY[:1], "allowed_packages=[synthetic]", cwd=tmp_path)
    assert last.returncode == 0, last.stdout + last.stderr
    assert trials(folder) == trials(whole[0])


@pytest.mark.slow
def test_more_trials_extend_a_search(whole: tuple[Path, str], tmp_path: Path) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "outputs" / "study")
    before = trials(folder)
    more = [arg.replace("n_trials=8", "n_trials=9") for arg in SEARCH]
    done = vggexp("train", *more, cwd=folder.parents[1])  # the search is found without naming its folder
    assert done.returncode == 0, done.stdout + done.stderr
    assert trials(folder)[:8] == before
    assert len(trials(folder)) == 9


@pytest.mark.slow
def test_a_pruned_run_can_be_trained_to_its_end(whole: tuple[Path, str], tmp_path: Path) -> None:
    pruned = next(name for name, r in results(whole[0]).items() if r["status"] == "pruned")
    folder = tmp_path / "run"
    shutil.copytree(whole[0] / pruned, folder)
    done = vggexp("train", f"resume={folder}", "allowed_packages=[synthetic]")
    assert done.returncode == 0, done.stderr
    result = manifest.load(folder, "")
    assert (result["status"], result["epochs"]) == ("completed", 3)


@pytest.mark.slow
def test_two_workers_share_a_study(tmp_path: Path) -> None:
    args = [*SEARCH, "hydra.sweep.dir=outputs/study", "search.storage=sqlite:///shared.db", "search.study=both"]
    folder = tmp_path / "outputs" / "study"
    with started(tmp_path, *args) as one:
        wait_for(folder, "running")
        with started(tmp_path, *args) as two:
            assert (one.wait(), two.wait()) == (0, 0)
    shared = optuna.load_study(study_name="both", storage=f"sqlite:///{tmp_path / 'shared.db'}")
    assert [t.state.is_finished() for t in shared.trials] == [True] * 8
    found = results(folder)
    assert len(found) == 8
    assert {r["status"] for r in found.values()} <= {"completed", "pruned"}
    assert len({r["command"][0] + str(r["pid"]) for r in found.values()}) == 8


@pytest.mark.slow
def test_ctrl_c_ends_a_search_with_its_table(tmp_path: Path) -> None:
    args = [*SEARCH, "trainer.max_epochs=3000", "search.pruner=null", "hydra.sweep.dir=outputs/study"]
    folder = tmp_path / "outputs" / "study"
    with started(tmp_path, *args) as process:
        wait_for(folder, "running")
        while not (folder / "0" / "checkpoints" / "best.ckpt").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate()
    assert process.returncode == 130
    assert "interrupted: Ctrl-C" not in out
    assert "0: interrupted: SIGTERM" in out
    assert "to continue: the same command" in error
    assert study(folder).trials[0].state.name == "RUNNING"  # the next start continues it


@pytest.mark.slow
def test_several_trials_at_once(tmp_path: Path) -> None:
    args = ["hydra/launcher=joblib", "search.at_once=2", "search.n_trials=2", "hydra.sweep.dir=outputs/study"]
    own = [arg for arg in SEARCH if arg != FORK]
    done = vggexp("train", *own, *args, cwd=tmp_path, OMP_NUM_THREADS=None)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "study"
    assert [t[1] in ("COMPLETE", "PRUNED") for t in trials(folder)] == [True] * 2
    assert {r["threads"] for r in results(folder).values()} == {max(1, len(os.sched_getaffinity(0)) // 2)}


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("search.n_trials=0", "search.n_trials=0: must be"),
        ("search.pruner=best", "search.pruner=best: must be"),
        ("search.trials=3", "search.trials=3: unknown key"),
        ("search=grid", "search=grid: no such choice; search is one of optuna"),
        ("optimizer.lr=interval(2,1)", "interval(2,1)"),
        ("search.storage=nowhere://x", "search.storage=nowhere://x: cannot be used"),
        ("data.val_size=0", "data.val_size=0: a search needs a validation set"),
        ("data.batch_size=0,64", "data.batch_size=0: must be"),
        ("+model.foo=interval(0,1)", "unknown key"),  # which is found when the first trial has been chosen
    ],
)
def test_what_a_search_refuses(argument: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert text in refusal(lambda: train.main([*SEARCH, argument]))


@pytest.mark.parametrize(
    "url", ["postgresql://me:{}@a/db", "mysql+pymysql://{0}:{0}@a:1/db?x=1", "//a?user=me&password={}"]
)
def test_a_password_is_refused_and_not_shown(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDY", url.format("hush"))
    for argument in (f"search.storage='{url.format('hush')}'", "search.storage=${oc.env:STUDY}"):
        text = refusal(lambda argument=argument: train.main([*SEARCH, argument]))
        assert text.startswith("search.storage: holds a password")
        assert "hush" not in text + "".join(capfd.readouterr())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["postgresql+psycopg://me@a:5432/db?sslmode=require", "sqlite:///C:/me@home/study.db"])
def test_what_holds_no_password(url: str) -> None:
    assert not SECRET.search(url)


def test_a_search_without_multirun_says_what_is_missing() -> None:
    assert "add --multirun" in refusal(lambda: compose.config("search=optuna"))


@pytest.mark.slow
def test_an_impossible_trial_fails_and_the_search_ends(tmp_path: Path) -> None:
    args = [*SEARCH, "data.val_size=400", "search.n_trials=2", "hydra.sweep.dir=outputs/study"]
    done = vggexp("train", *args, cwd=tmp_path)
    assert done.returncode == 1
    assert "search: 2 trials have failed, the last because: data.val_size=400" in done.stderr
    assert json.loads((tmp_path / "outputs" / "study" / "0" / "result.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_trial_that_is_killed_each_time_is_given_up(tmp_path: Path) -> None:
    args = [*SEARCH, "trainer.max_epochs=3000", "search.n_trials=1", "hydra.sweep.dir=outputs/study"]
    folder, killed = tmp_path / "outputs" / "study", set()
    with started(tmp_path, *args) as process:
        while process.poll() is None:
            run = runs.read(folder / "0")
            if run.status == "running" and run.result["pid"] not in {*killed, process.pid}:
                os.kill(run.result["pid"], signal.SIGKILL)
                killed.add(run.result["pid"])
            time.sleep(0.1)
        _, error = process.communicate()
    assert (process.returncode, len(killed)) == (1, TRIES)
    assert "search: 1 trials have failed" in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("interval(0.5,2)", FloatDistribution(0.5, 2)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("range(16,49,16)", CategoricalDistribution(["16", "32", "48"])),
        ("16,32", CategoricalDistribution(["16", "32"])),
    ],
)
def test_what_is_searched(text: str, expected: object) -> None:
    with compose.session(compose.parse(["-m", *QUICK])) as session:
        (override,) = session.parse([f"data.batch_size={text}"])
    assert _distribution(override)[0] == expected


def searching(space: dict[str, Any]) -> Any:
    """A search of these distributions, as far as these tests need one."""
    search: Any = object.__new__(Search)
    search.space = {key: (distribution, []) for key, distribution in space.items()}
    return search


RATE, DEPTH = FloatDistribution(0.01, 0.1), CategoricalDistribution(["1", "2"])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"lr": RATE}, None),
        ({"lr": FloatDistribution(0.001, 0.5), "depth": DEPTH}, None),
        ({"lr": RATE, "depth": DEPTH, "seed": IntDistribution(0, 3)}, None),
        ({}, None),
        ({"lr": FloatDistribution(0.01, 0.1, log=True)}, "lr: the study s has searched FloatDistribution"),
        ({"lr": IntDistribution(1, 3)}, "name another hydra.sweep.dir or search.study"),
        ({"depth": CategoricalDistribution(["1", "2", "3"])}, "depth: the study s has searched"),
    ],
)
def test_a_space_may_grow_and_shrink_but_not_contradict_its_study(space: dict[str, Any], words: str | None) -> None:
    study = optuna.create_study(study_name="s")
    old = study.ask({"lr": RATE, "depth": DEPTH})
    check = functools.partial(searching(space)._check_space, study)
    assert check() is None if words is None else words in refusal(check)
    trial = study.get_trials()[old.number]
    assert {each.partition("=")[0] for each in Search._overrides(trial)} == {"lr", "depth"}


def test_a_trial_that_cannot_be_chosen_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    study.ask({"lr": RATE})

    def broken(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(study.sampler, "sample_independent", broken)
    assert "ValueError: no" in refusal(lambda: searching({"lr": RATE})._ask(study, tmp_path))
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "FAIL"]


@pytest.mark.parametrize(("place", "states"), [("_lock", ["RUNNING"]), ("_suggest", ["FAIL", "RUNNING"])])
def test_a_trial_whose_process_died_while_it_was_made(
    place: str, states: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimpleNamespace(storage="of several", at_once=1, n_trials=2, seed=0, startup_trials=2)
    made, study = searching({"lr": RATE, "depth": DEPTH}), optuna.create_study()
    made.settings = settings
    with monkeypatch.context() as patch, contextlib.ExitStack() as locks:
        dead = iter([True])
        suggest = optuna.Trial._suggest

        def dies(*args: Any) -> Any:
            if place == "_lock" or not next(dead, False):
                raise KeyboardInterrupt
            return suggest(*args)

        patch.setattr(search if place == "_lock" else optuna.Trial, place, dies)
        with pytest.raises(KeyboardInterrupt):
            made._next(study, tmp_path, locks)
    with contextlib.ExitStack() as locks:
        (trial,) = made._next(study, tmp_path, locks)
    assert trial.params.keys() == {"lr", "depth"}
    assert [trial.state.name for trial in study.trials] == states


def test_a_space_without_ends_is_refused() -> None:
    with compose.session(compose.parse(["-m", *QUICK])) as session:
        (override,) = session.parse(["model=glob(vgg*)"])
    assert "is not a choice, range or interval" in refusal(lambda: _distribution(override))
