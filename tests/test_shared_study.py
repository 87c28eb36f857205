"""Two hosts search together: no trial twice, none lost, and what a dead host has begun is taken up again."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from conftest import QUICK
from hosts import Host, hosts  # noqa: F401  (a fixture)
from processes import PATIENCE
from test_sweep import results, wait_for
from vggexp.jobs.search import opened
from vggexp.runs import layout

pytestmark = [pytest.mark.slow, pytest.mark.linux]
NUMBER = 4
SEARCH = (
    *("train", "-m", *QUICK, "search=optuna", f"search.n_trials={NUMBER}", "search.startup_trials=2"),
    *("search.storage=journal:study.log", "search.study=both", "hydra.sweep.dir=outputs/both"),
    *("data.resize=32", "data.batch_size=64", "optimizer.lr=tag(log,interval(1e-4,5e-3))", "trainer.max_epochs=40"),
)


def test_two_hosts_share_a_study_and_one_of_them_dies(
    hosts: Callable[..., list[Host]],  # noqa: F811
    tmp_path: Path,
) -> None:
    one, other = hosts()
    command = [sys.executable, "-m", "vggexp", *SEARCH]
    folder = tmp_path / "outputs" / "both"
    staying, dying = one.start(*command), other.start(*command)
    end = time.monotonic() + PATIENCE
    while {run.result["host"] for run in wait_for(folder, "running", "completed", "pruned")} != {"a", "b"}:
        assert time.monotonic() < end, one.log + other.log
    begun = [run.folder.name for run in wait_for(folder, "running") if run.result["host"] == "b"]
    other.signal(signal.SIGKILL)
    dying.wait(PATIENCE)
    again = other.start(*command)
    assert (staying.wait(PATIENCE), again.wait(PATIENCE)) == (0, 0), one.log + other.log
    study = optuna.load_study(study_name="both", storage=opened(f"journal:{tmp_path / 'study.log'}"))
    found = results(folder)
    assert sorted(found, key=int) == [str(trial.number) for trial in study.trials] == list(map(str, range(NUMBER)))
    for trial in study.trials:
        run = found[str(trial.number)]
        assert run["status"] == {"COMPLETE": "completed", "PRUNED": "pruned"}[trial.state.name]
        assert run["config"]["optimizer"]["lr"] == pytest.approx(trial.params["optimizer.lr"], rel=1e-12)
        assert run.get("val/acc") == trial.value or trial.state.name == "PRUNED"
    assert len({run["config"]["optimizer"]["lr"] for run in found.values()}) == NUMBER
    assert all("segments" in found[name] for name in begun)  # taken up, by whichever host
    best = f"best val/acc {study.best_value:.4f} in outputs/both/{study.best_trial.number}:"
    assert best in one.log
    assert best in other.log
    assert json.loads((folder / layout.SWEEP).read_text())["arguments"]
