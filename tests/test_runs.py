"""`vggexp runs` lists, compares, marks and removes runs, and never more than it was told."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, refusal
from test_report import change, copies
from vggexp.commands import report
from vggexp.commands import runs as command
from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.runs import layout, manifest, query, read
from vggexp.runs import resume as resuming


@pytest.fixture
def outputs(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`outputs/` with a sweep of four runs, of which one failed, and a run alone; it is in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = copies(trained, tmp_path / "outputs" / "grid", seeds=(0,))
    copies(trained, tmp_path / "outputs" / "alone", resizes=(40,), lrs=(0.5,), seeds=(7,))
    for n, run in enumerate([*sorted(folder.iterdir()), tmp_path / "outputs" / "alone" / "0"]):
        change(run, started=f"2026-01-0{n + 1}T00:00:00+00:00")
    change(folder / "2", status="failed", reason="out of memory")
    return tmp_path / "outputs"


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> list[list[str]]:
    """The cells of the rows that the command prints."""
    assert command.main(list(args)) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" outputs/")]


def test_runs_are_listed_the_newest_last(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    assert [row[0] for row in rows] == [*(f"outputs/grid/{n}" for n in range(4)), "outputs/alone/0"]
    assert rows[0][1:5] == ["completed", "resize=32", "lr=0.0001", "0.6600"]
    assert rows[2][1] == "failed"
    assert rows[0][-1] == "MiB"
    assert [row[0] for row in listed(capsys, "outputs/grid", "where=optimizer.lr=1e-3")] == [
        *("outputs/grid/1", "outputs/grid/3")
    ]
    assert [row[0][-1] for row in listed(capsys, "outputs/grid", "sort=-val/acc")] == ["3", "2", "1", "0"]
    shown = listed(capsys, "where=status=failed", "columns=run,reason,data.resize")
    assert shown == [["outputs/grid/2", "out", "of", "memory", "64"]]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("data.resize=32", "01"), ("data.resize!=32", "23"), ("data.resize>32", "23"), ("data.resize<=32", "01"),
        ("val/acc>=0.82 status=completed", "3"), ("status!=failed", "013"), ("trainer.max_steps=null", "0123"),
        ("trainer.enable_progress_bar=TRUE", "0123"), ("reason='out of memory'", "2"), ("optimizer.lr=.0001", "02"),
        ("", "0123"), ("experiment=null data.resize=64", "23"), ("optimizer.lr>0.0001", "13"), ("seed=0", "0123"),
    ],
)  # fmt: skip
def test_what_a_condition_means(outputs: Path, where: str, expected: str) -> None:
    found = query.select(read.find([outputs / "grid"]), where)
    assert "".join(run.folder.name for run in found) == expected


def test_lists_for_programs(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["outputs/grid", "json=true", "where=data.resize=64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["run"], run["status"], run["config"]["data"]["resize"]) for run in found] == [
        ("outputs/grid/2", "failed", 64), ("outputs/grid/3", "completed", 64)
    ]  # fmt: skip
    assert command.main(["csv=lists/runs.csv", "columns=run,data.resize,val/acc"]) == 0
    rows = list(csv.DictReader(Path("lists/runs.csv").read_text().splitlines()))
    assert [row["data.resize"] for row in rows] == ["32", "32", "64", "64", "40"]
    assert float(rows[0]["val/acc"]) == read.read(outputs / "grid" / "0").result["val/acc"]


def test_two_runs_are_compared(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(outputs / "grid" / "3", versions={"python": "3.99"}, note="another")
    assert command.main(["diff", "outputs/grid/0", "outputs/grid/3"]) == 0
    rows = {cells[0]: cells[1:] for line in capsys.readouterr().out.splitlines() if len(cells := line.split()) > 1}
    assert rows["config.data.resize"] == ["32", "64"]
    assert rows["versions.python"][1] == "3.99"
    assert rows["val/acc"] == ["0.6600", "0.8700"]
    assert "note" in rows
    assert "config.trainer.max_epochs" not in rows


def test_marks_change_no_number_and_are_found(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = manifest.load(outputs / "grid" / "0", "")
    assert command.main(["mark", "outputs/grid/0", "tags=good,first", "note=the one, in print"]) == 0
    after = manifest.load(outputs / "grid" / "0", "")
    assert after == before | {"tags": ["good", "first"], "note": "the one, in print"}
    assert [row[0] for row in listed(capsys, "where=tags=first")] == ["outputs/grid/0"]
    assert command.main(["mark", "outputs/grid/0", "tags="]) == 0
    assert manifest.load(outputs / "grid" / "0", "")["tags"] == []
    assert manifest.load(outputs / "grid" / "0", "")["note"] == "the one, in print"


def test_a_run_can_be_marked_when_it_starts() -> None:
    plain, marked = compose.config("seed=1"), compose.config("seed=1", "tags=[mine,b]", "note='a b'")
    assert plain.hash() == marked.hash()
    collected = manifest.collect(marked)
    assert (collected["tags"], collected["note"]) == (["mine", "b"], "a b")
    assert collected["config"] == plain.values()
    again = manifest.resumed(manifest.collect(plain), collected)
    assert (again["tags"], again["note"]) == (["mine", "b"], "a b")
    assert manifest.resumed(manifest.collect(marked), manifest.collect(plain))["tags"] == ["mine", "b"]


def test_a_resumed_run_may_be_marked(outputs: Path) -> None:
    cfg, _ = resuming.config(outputs / "grid" / "0", ["tags=[x]", "note=y", "allowed_packages=[synthetic]"])
    assert isinstance(cfg, Config)
    assert (cfg.tags, cfg.note) == (["x"], "y")


def test_runs_are_removed_when_it_is_confirmed(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(outputs.rglob("*"))
    assert command.main(["remove", "where=status=failed"]) == 0
    out = capsys.readouterr().out
    assert "outputs/grid/2  failed" in out
    assert "1 runs, " in out
    assert "confirm=true removes them" in out
    assert sorted(outputs.rglob("*")) == before
    assert command.main(["remove", "where=status=failed", "confirm=true"]) == 0
    assert [path for path in before if not path.exists()] == [
        path for path in before if path == outputs / "grid" / "2" or outputs / "grid" / "2" in path.parents
    ]


@pytest.mark.linux
def test_what_is_never_removed(outputs: Path, tmp_path: Path, trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = copies(trained, tmp_path / "elsewhere", resizes=(32,), lrs=(0.1,), seeds=(0,))
    (outputs / "link").symlink_to(foreign / "0", target_is_directory=True)
    for args in (
        ["elsewhere", "where=seed=0"],
        ["outputs/link", "where=seed=0"],
        ["outputs/../elsewhere", "where=seed=0"],
    ):
        assert "is outside outputs/" in refusal(lambda args=args: command.main(["remove", *args, "confirm=true"]))
    change(outputs / "grid" / "0", status="running")
    with manifest.lock(outputs / "grid" / "0", "x"):
        for where in ("seed=0", "status=running"):
            told = refusal(lambda where=where: command.main(["remove", f"where={where}", "confirm=true"]))
            assert "outputs/grid/0: is running" in told
    assert "where" in refusal(lambda: command.main(["remove", "confirm=true"]))
    assert "where" in refusal(lambda: command.main(["remove", "where= ", "confirm=true"]))
    assert len(read.find([outputs])) == 5
    assert (foreign / "0" / layout.RESULT).exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "args",
    [
        ["where=foo=1"], ["where=data.resize"], ["where=val/acc>x"], ["where='"], ["sort=foo"], ["columns=foo"],
        ["json=maybe"], ["nowhere"], ["foo=1"], ["diff", "outputs/grid/0"], ["diff", "outputs", "last"], ["mark"],
        ["mark", "outputs/grid", "tags=a"], ["mark", "outputs/grid/0", "tag=a"], ["csv=outputs/grid/0/result.json/x"],
    ],
)  # fmt: skip
def test_what_it_refuses_in_one_line(outputs: Path, args: list[str]) -> None:
    assert refusal(lambda: command.main(args))


def test_runs_in_any_state_are_listed(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange: list[Any] = [
        "[",
        "[]",
        "{}",
        '{"status": "completed"}',
        '{"status": "completed", "config": {"a": {"b": 1}}}',
    ]
    for n, text in enumerate(strange):
        (outputs / "strange" / str(n)).mkdir(parents=True)
        (outputs / "strange" / str(n) / layout.RESULT).write_text(text)
    assert len(listed(capsys)) == 10
    assert report.main(["outputs", "output=made"]) == 0


def test_runs_that_have_no_results_yet_are_listed(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in read.find([outputs]):
        begun = {key: run.result[key] for key in ("status", "config", "started")}
        manifest.write(run.folder, begun | {"status": "running"})
    assert [row[1] for row in listed(capsys, "sort=val/acc")] == ["interrupted"] * 5


def test_there_are_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no run under outputs/" in refusal(lambda: command.main([]))


def test_keys_are_shortened_where_that_names_one_of_them_only() -> None:
    assert read.short(["data.resize", "optimizer.lr", "seed"]) == ["resize", "lr", "seed"]
    assert read.short(["data.seed", "optimizer.lr", "scheduler.lr"]) == ["data.seed", "optimizer.lr", "scheduler.lr"]
