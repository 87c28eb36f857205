"""A sweep of thousands: planned without composing each config, its results read once, its hosts shown."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import QUICK, configure, refusal
from vggexp.config import compose
from vggexp.jobs import overview
from vggexp.jobs.grid import Grid
from vggexp.jobs.overview import Entry
from vggexp.runs import layout, manifest
from vggexp.runs.read import Run


def test_jobs_that_differ_in_values_are_composed_once_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["optimizer.lr=0.002,1e-5", "note='1,2','a b'", "trainer.early_stopping.patience=null,3", "metrics=none,f1"]
    composed: list[list[str]] = []
    before = compose.Session._compose
    monkeypatch.setattr(compose.Session, "_compose", lambda self, args: (composed.append(args), before(self, args))[1])
    with compose.session(compose.parse(["-m", *QUICK, *texts])) as session:
        composed.clear()
        jobs = session.grid()
        assert len(composed) == 4  # for each choice of metrics, what it brings, and then the config of all values
        assert len({job.cfg.hash() for job in jobs}) == 8
        assert len(jobs) == 16
        assert [job.cfg.note for job in jobs[:5]] == ["1,2", "1,2", "1,2", "1,2", "a b"]
        for job in jobs[1::7]:
            assert job.cfg == session.job(job.overrides).cfg, job.overrides
        assert [job.subdir(7) for job in jobs[:2]] == ["7", "7"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["model.ration=4,8"], "model.ration=4: unknown key"),
        (["data.resize=32,16"], "data.resize=16: too small for this network"),
        (["model.ratio=4,x"], "model.ratio=x"),
    ],
)
def test_a_wrong_value_of_a_later_job_is_refused(texts: list[str], words: str) -> None:
    assert words in refusal(lambda: compose.configs(*QUICK, *texts))


def test_values_that_others_depend_on_are_composed_each_time() -> None:
    found = compose.configs(*QUICK, "seed=1,2", "data.batch_size=${seed}")
    assert [(cfg.seed, cfg.data.batch_size) for cfg in found] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("number", [100, 400])
def test_a_result_is_read_once(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["-m", *QUICK, f"seed=range({number})", "hydra.sweep.dir=outputs/many"]
    launched: list[int] = []

    def launch(_: Grid, folder: Path, entries: Sequence[Entry]) -> None:
        launched.append(len(entries))
        content = manifest.collect(entries[0].cfg) | {"status": "completed", "seconds": 1.0, "val/acc": 0.5}
        for entry in entries:
            entry.folder.mkdir()
            manifest.write(entry.folder, content | {"config": entry.cfg.values()})

    reads: list[Path] = []
    load = manifest.load
    monkeypatch.setattr(Grid, "launch", launch)
    monkeypatch.setattr(manifest, "load", lambda folder, place: (reads.append(folder), load(folder, place))[1])
    monkeypatch.setattr(overview.Overview, "_watch", lambda self: None)  # its time would decide what is read when
    for _ in range(2):
        reads.clear()
        with compose.session(compose.parse(args)) as session:
            assert Grid(session).sweep(args) == 0
        assert len(reads) == len(set(reads)) == number
    assert launched == [number]
    constant = len(" ".join(args)) + 1000
    assert (tmp_path / "outputs" / "many" / layout.SWEEP).stat().st_size < constant + 700 * number


def test_the_overview_says_who_trains_what_and_when_it_was_last_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configure(*QUICK)
    runs: dict[Path, Run] = {}
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / layout.RESULT).touch()
        os.utime(folder / layout.RESULT, (0, time.time() + 86400))  # that host's clock is a day ahead
        result: dict[str, Any] = {"host": f"host-{name}"}
        runs[folder] = Run(folder, "running", "", result, {})
    view = overview.Overview({folder: Entry(folder, [], cfg, folder.name) for folder in runs})
    view.seen |= runs
    now = time.monotonic()

    def shown(seconds: float) -> str:
        monkeypatch.setattr(overview.time, "monotonic", lambda: now + seconds)
        with (console := Console(width=200)).capture() as text:
            console.print(view._picture())
        return text.get()

    assert "2 running" in shown(0)
    (tmp_path / "a" / layout.METRICS).touch()
    os.utime(tmp_path / "a" / layout.METRICS, (0, time.time() + 86460))
    first, second = [line for line in shown(70).splitlines() if "epoch" in line]
    assert "host-a, heard of 1 s ago" in first
    assert "host-b, heard of 70 s ago" in second
    assert "on 2 hosts" in shown(70)
