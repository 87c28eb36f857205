"""A report says exactly what the run folders contain, and its page works in a real browser without a network."""

import csv
import itertools
import json
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from conftest import Run, refusal, vggexp
from vggexp.commands import report as command
from vggexp.report import collect, figures, notes
from vggexp.report import page as pages
from vggexp.runs import layout, manifest
from vggexp.runs import read as runs

Sweep = Callable[..., Path]


@pytest.fixture
def sweep(trained: Run, tmp_path: Path) -> Sweep:
    """Makes folders of sweeps in the folder of a test: see `copies`."""
    return lambda name="sweep", **settings: copies(trained, tmp_path / name, **settings)


def copies(
    trained: Run, folder: Path, resizes: Any = (32, 64), lrs: Any = (1e-4, 1e-3), seeds: Any = (0, 1, 2)
) -> Path:
    """Makes copies of a real run's folder with other settings and scores."""
    for n, (resize, lr, seed) in enumerate(itertools.product(resizes, lrs, seeds)):
        run = folder / str(n)
        (run / ".hydra").mkdir(parents=True)
        result = json.loads((trained.folder / layout.RESULT).read_text())
        result["config"]["data"]["resize"] = resize
        result["config"]["optimizer"]["lr"] = lr
        result["config"]["seed"] = seed
        result |= {"val/acc": score(resize, lr, seed), "seconds": resize / 2 + n}
        manifest.write(run, result)
        shutil.copy(trained.folder / layout.METRICS, run)
        (run / ".hydra" / "overrides.yaml").write_text(f"- data.resize={resize}\n- seed={seed}\n")
    return folder


def score(resize: int, lr: float, seed: int) -> float:
    return round(0.5 + resize / 200 + (0.05 if lr == 1e-3 else 0) + seed / 100, 4)


def change(folder: Path, **values: Any) -> None:
    manifest.write(folder, manifest.load(folder, "") | values)


def report(*folders: Path) -> collect.Report:
    return collect.collect(folders, runs.find(folders))


def part(*folders: Path, **choices: Any) -> collect.Part:
    """The one part of a report."""
    (only,) = collect.collect(folders, runs.find(folders), collect.Choices(**choices)).parts
    return only


def test_groups_are_means_over_seeds_and_the_best_comes_first(sweep: Sweep) -> None:
    made = part(sweep())
    assert made.axes == ["data.resize", "optimizer.lr"]  # the seed is not an axis
    assert [tuple(group.values.values()) for group in made.groups] == [
        (64, 1e-3), (64, 1e-4), (32, 1e-3), (32, 1e-4)
    ]  # fmt: skip
    expected = [score(64, 1e-3, seed) for seed in range(3)]
    spread = made.groups[0].spread("val/acc")
    assert spread == (pytest.approx(statistics.mean(expected)), pytest.approx(statistics.stdev(expected)))
    assert made.groups[0].text("val/acc") == "0.8800 ± 0.0100"
    assert made.best().folder.name == "11"
    best = {(axis, value): group.spread("val/acc").mean for axis, value, group in made.levels()}
    assert best[("data.resize", "64")] == pytest.approx(best[("data.resize", "32")] + 0.16)


def test_runs_in_every_state_are_read_and_nothing_is_changed(sweep: Sweep, tmp_path: Path) -> None:
    folder = sweep(seeds=(0,))
    change(folder / "0", status="running")
    change(folder / "1", status="failed", reason="data.val_size=400: too large")
    (folder / "2" / layout.RESULT).write_text('{"status": "comp')
    (folder / "3" / layout.METRICS).write_text(
        "step,epoch,train/loss\n0,0,1.5\n1,1,"
    )  # a row that is still being written
    (folder / "empty").mkdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with manifest.lock(folder / "0", "x"):
        states = {run.folder.name: run.status for run in runs.find([folder])}
    assert states == {"0": "running", "1": "failed", "2": "unreadable", "3": "completed"}
    made = report(folder)
    assert {run.folder.name: run.reason for run in made.failures()} == {
        "0": runs.KILLED,
        "1": "data.val_size=400: too large",
        "2": next(run.reason for run in made.runs if run.folder.name == "2"),
    }
    assert made.parts[0].curves[2] == [{"epoch": 1, "train/loss": 1.5, "step": 0.0}]
    assert command.main([str(folder), f"output={tmp_path / 'out'}"]) == 0
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != layout.LOCK}
    assert after == {path: content for path, content in before.items() if path.name != layout.LOCK}


def test_jobs_that_have_not_begun_are_waiting(sweep: Sweep) -> None:
    folder = sweep(seeds=(0,))
    jobs = [{"folder": str(n), "config_hash": "", "overrides": []} for n in range(5)]
    (folder / layout.SWEEP).write_text(json.dumps({"jobs": jobs, "arguments": []}))
    assert [run.status for run in runs.find([folder])] == ["completed"] * 4 + ["waiting"]


def test_runs_that_are_not_comparable_are_reported(sweep: Sweep) -> None:
    folder = sweep(seeds=(0,))
    assert report(folder).notes == []
    code = manifest.load(folder / "1", "")["code"]
    code["vggexp"] |= {"hash": "abcdef" * 10, "revision": "0123456789abcdef", "dirty": True}
    versions = manifest.load(folder / "1", "")["versions"] | {"python": "3.99", "hydra-core": "9", "ruff": "9"}
    change(folder / "1", code=code, threads=64, versions=versions)
    assert [note.partition(": ")[0] for note in report(folder).notes] == [
        *("numbers of threads differ", "versions of python differ", "versions of hydra-core differ"),
        "the code of vggexp differs",
    ]  # fmt: skip
    assert "0123456789ab, changed to abcdefabcdef (1 run)" in report(folder).notes[-1]


def test_the_files_contain_what_the_runs_contain(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep()
    change(folder / "4", status="failed", reason="out of | memory")
    assert command.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "12 runs in" in out
    assert "11 completed, 1 failed" in out
    result = manifest.load(folder / "0", "")
    machine = f"{result['hardware']['cpu']}, {result['threads']} threads, {result['precision']}"
    assert f"machine: {machine}\n" in out
    assert f"- machine: {machine}" in (folder / "report" / "report.md").read_text()
    assert "out of | memory" in out
    assert "0.8800 ± 0.0100" in out
    rows = list(csv.DictReader((folder / "report" / "runs.csv").open()))
    assert [float(row["val/acc"]) for row in rows] == [run.result["val/acc"] for run in runs.find([folder])]
    assert {row["data.resize"] for row in rows} == {"32", "64"}
    assert rows[0]["command"] == "vggexp train data.resize=32 seed=0"
    text = (folder / "report" / "report.md").read_text()
    assert "| 64 | 0.001 | 3 | 0.8800 ± 0.0100 |" in text
    assert r"out of | memory" in text
    drawn = {path.name for path in (folder / "report" / "figures").iterdir()}
    names = ("curves", "time", "heatmap", "pareto", "comparison")
    assert drawn == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert "val/acc" in (folder / "report" / "figures" / "curves.svg").read_text()
    assert "seconds of training" in (folder / "report" / "figures" / "time.svg").read_text()


def test_two_runs_are_compared(sweep: Sweep, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = sweep(seeds=(0,))
    change(folder / "3", versions=manifest.load(folder / "3", "")["versions"] | {"torch": "3.0"})
    assert command.main([str(folder / "0"), str(folder / "3"), f"output={tmp_path / 'out'}"]) == 0
    differences = {row[0]: row[1:] for row in report(folder / "0", folder / "3").differences}
    assert differences["config.data.resize"] == ("32", "64")
    assert differences["versions.torch"][1] == "3.0"
    assert not any(key.startswith("config.trainer") for key in differences)
    assert "config.optimizer.lr" in capsys.readouterr().out


def test_the_front_contains_the_runs_that_no_other_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.9), (3.0, 0.8), (9.0, 0.9)]
    assert figures.pareto(points) == [(1.0, 0.5), (3.0, 0.9)]


def test_what_a_report_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty: holds no run" in refusal(lambda: command.main(["empty"]))
    assert "none: no such folder" in refusal(lambda: command.main(["none"]))
    assert "there is no run under outputs/" in refusal(lambda: command.main([]))
    assert "unknown key" in refusal(lambda: command.main(["empty", "folder=x"]))


@pytest.mark.slow
def test_the_command_shows_the_last_sweep(sweep: Sweep, tmp_path: Path) -> None:
    sweep("outputs/older")
    folder = sweep("outputs/newer", seeds=(0,))
    for name, started in (("older", "2026-01-01"), ("newer", "2026-01-02")):
        content = {"started": started, "jobs": [], "arguments": []}
        (tmp_path / "outputs" / name / layout.SWEEP).write_text(json.dumps(content))
    done = vggexp("report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 runs in outputs/newer" in done.stdout
    assert (folder / "report" / "report.html").exists()
    assert not (tmp_path / "outputs" / "older" / "report").exists()


def repeated(sweep: Sweep) -> Path:
    """Five runs of two seeds: four of seed 0 with the same results, one of seed 1."""
    folder = sweep(resizes=(32,), lrs=(1e-3,), seeds=(0, 0, 0, 0, 1))
    for n in range(5):
        change(folder / str(n), **{"val/acc": 0.90 if n < 4 else 0.9156})
    return folder


def test_a_repeated_seed_is_not_another_seed(sweep: Sweep) -> None:
    folder = repeated(sweep)
    (group,) = part(folder).groups
    assert group.text("val/acc") == "0.9078 ± 0.0110"  # over five runs, it would be 0.0070
    assert group.cell("seeds") == "2"
    assert report(folder).notes == []
    change(folder / "2", **{"val/acc": 0.91})
    (note,) = report(folder).notes
    assert note == "seeds: seed 0 was repeated with other results: the machine or the code differs"


def test_the_best_is_chosen_by_validation_and_shows_its_test_score(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(resizes=(32,), seeds=(0,))
    change(folder / "0", **{"val/acc": 0.9, "test/acc": 0.95})
    change(folder / "1", **{"val/acc": 0.91, "test/acc": 0.89})
    command.main([str(folder)])
    assert f"best      {folder / '1'} (val/acc 0.9100, test/acc 0.8900)" in capsys.readouterr().out
    assert pages.content(report(folder), folder)["parts"][0]["best"] == 1
    for n in (0, 1):
        result = manifest.load(folder / str(n), "")
        manifest.write(folder / str(n), {name: value for name, value in result.items() if not name.startswith("val/")})
    command.main([str(folder)])
    assert "(test/acc 0.9500; chosen on the test set, for there is no validation set)" in capsys.readouterr().out


def test_groups_are_compared_with_the_best_and_with_a_baseline(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(resizes=(32,), lrs=(1e-4, 1e-3, 1e-2), seeds=(0, 1, 2))
    for n in range(9):
        lr, seed = divmod(n, 3)
        score = [0.8, 0.85, 0.851][lr] + [0, 0.01, 0.021][seed] + n % 2 / 500
        change(folder / str(n), **{"test/acc": score, "val/acc": score + (0.01 if lr == 1 else 0)})
    best, baseline = part(folder, against="optimizer.lr=0.0001").comparisons
    assert best.metric == "test/acc"
    assert best.reference.values == {"optimizer.lr": 1e-3}  # by val/acc, though lr 0.01 has the better test/acc
    found = {group.values["optimizer.lr"]: difference for group, difference in best.rows}
    assert not found[1e-2].separated
    assert found[1e-4].separated
    assert found[1e-4].paired
    assert found[1e-4].interval.high < 0
    assert found[1e-2].needed > 3
    assert [group.values["optimizer.lr"] for group, _ in baseline.rows] == [1e-2, 1e-3]
    command.main([str(folder), "against=optimizer.lr=0.0001"])
    out = capsys.readouterr().out
    assert "test/acc, compared with lr 0.001" in out
    assert "test/acc, compared with lr 0.0001" in out
    assert "not separated" in out
    assert "| lr 0.01 | +0.00" in (folder / "report" / "report.md").read_text()
    assert len(part(folder, against="optimizer.lr=0.001").comparisons) == 1  # the best is compared with once
    for wrong in ("optimizer.lr=5", "data.resize=32", "optimizer.lr=0.0001 seed=0", "optimizer.lr=0.001 seed=0"):
        assert refusal(lambda wrong=wrong: command.main([str(folder), f"against={wrong}"]))


def test_a_single_seed_shows_the_interval_of_the_test_set(sweep: Sweep) -> None:
    folder = sweep(resizes=(32,), lrs=(1e-3,), seeds=(0,))
    change(folder / "0", **{"test/acc": 0.9, "test_images": 10_000})
    (group,) = part(folder).groups
    assert group.text("test/acc") == "0.9000 [0.8940, 0.9057]"


def test_runs_of_different_kinds_have_tables_of_their_own(sweep: Sweep, tmp_path: Path) -> None:
    one, other = sweep("outputs/one"), sweep("outputs/other", resizes=(64,), lrs=(1e-3, 1e-2))
    for folder in (one, other):
        for run in runs.find([folder]):
            change(run.folder, experiment=folder.name)
    for n in range(6):
        result = manifest.load(other / str(n), "")
        result["config"]["data"]["val_size"] = 10 + n // 3
        manifest.write(other / str(n), result)
    both = report(tmp_path / "outputs").parts
    assert [(each.title, each.axes) for each in both] == [
        ("one", ["data.resize", "optimizer.lr"]),
        ("other", ["data.val_size", "optimizer.lr"]),  # the first does not widen the other table
    ]
    assert len(part(tmp_path / "outputs", group=["none"]).runs) == 18
    by_resize = collect.collect([one], runs.find([one]), collect.Choices(group=["data.resize"])).parts
    assert [each.title for each in by_resize] == ["32", "64"]
    assert refusal(lambda: part(one, group=["foo"])) == "group=foo: no run has that"


def test_a_report_can_be_narrowed_and_ordered(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep()
    columns = "columns=optimizer.lr,seeds,status,val/acc"
    command.main([str(folder), "where=data.resize=32", "sort=-optimizer.lr", columns])
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" 0.0")]
    assert [row[:3] for row in table] == [["0.001", "3", "completed"], ["0.0001", "3", "completed"]]
    for wrong in ("where=data.resize=99", "where=foo", "where=foo=1", "sort=foo", "columns=foo", "where=val/acc>x"):
        assert wrong.partition("=")[0] in refusal(lambda wrong=wrong: command.main([str(folder), wrong]))


# ------------------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def made(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of twelve runs, one of them failed."""
    folder = copies(trained, tmp_path_factory.mktemp("report") / "sweep")
    change(folder / "4", status="failed", reason="<img src=x onerror=alert(1)></script>")
    command.main([str(folder)])
    return folder / "report" / "report.html"


@pytest.fixture
def page(made: Path, browser: Browser) -> Iterator[Page]:
    """The page of a report; `messages` lists its errors, console messages and requests."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    messages: list[str] = []
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(f"error: {error}"))
    page.on("request", lambda request: messages.append(request.url))
    page.messages = messages  # type: ignore[attr-defined]
    page.goto(made.as_uri())
    page.wait_for_selector("#curves .scatterlayer")
    yield page
    page.close()


def column(page: Page, name: str) -> list[str]:
    """The texts in one column of the table of runs."""
    names = page.locator("#table thead th").all_inner_texts()
    n = next(n for n, text in enumerate(names) if text.split(" ▲")[0].split(" ▼")[0] == name)
    return page.locator(f"#table tbody tr td:nth-child({n + 1})").all_inner_texts()


@pytest.mark.slow
def test_the_page_requests_nothing_and_reports_no_errors(page: Page) -> None:
    for select in page.locator("select:visible").all():
        for option in select.locator("option").all():
            select.select_option(option.get_attribute("value"))
        select.select_option(index=0)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    requests = [text for text in page.messages if not text.startswith("data:")]  # type: ignore[attr-defined]
    assert [text.rpartition("/")[2] for text in requests] == ["report.html"]
    # the browser would refuse any request
    page.evaluate("fetch('https://example.org/').catch(() => 0)")
    assert any("Content Security Policy" in text for text in page.messages)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_table_sorts_by_mouse_and_keyboard(page: Page) -> None:
    page.get_by_role("button", name="val/acc", exact=True).last.click()
    shown = [text for text in column(page, "val/acc") if text != "–"]
    assert shown == sorted(shown, reverse=True)
    assert page.locator("#table th[aria-sort=descending]").count() == 1
    button = page.locator("#table").get_by_role("button", name="resize", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, "resize") == ["64"] * 6 + ["32"] * 6
    page.keyboard.press("Enter")  # the focus has not moved
    assert column(page, "resize") == ["32"] * 6 + ["64"] * 6


@pytest.mark.slow
def test_a_filter_narrows_table_and_charts(page: Page) -> None:
    assert page.locator("#curves .scatterlayer .trace").count() == 3 * 4  # four groups: a mean and the edges of a band
    page.get_by_label("Filter", exact=True).fill("resize=64 lr=0.001")
    expect(page.locator("#table tbody tr")).to_have_count(3)
    assert column(page, "lr") == ["0.001"] * 3
    assert page.locator("#curves .scatterlayer .trace").count() == 3
    assert page.locator("#shown").inner_text() == "3 of 12 runs"
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Status").select_option("failed")
    expect(page.locator("#table tbody tr")).to_have_count(1)
    assert "Nothing to show" in page.locator("#heatmap").inner_text()
    page.get_by_label("Status").select_option("")
    expect(page.locator("#curves .scatterlayer .trace")).to_have_count(12)


@pytest.mark.slow
def test_hovering_a_curve_names_its_run(page: Page) -> None:
    point = page.locator("#curves .scatterlayer .trace .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#curves .hoverlayer .hovertext")
    text = page.locator("#curves .hoverlayer").text_content() or ""
    assert "resize 64, lr 0.001 (3 seeds)" in text
    assert "epoch" in text


@pytest.mark.slow
def test_the_charts_show_the_numbers(page: Page) -> None:
    z = page.evaluate("document.getElementById('heatmap').data[0].z")
    assert z[1][1] == pytest.approx(0.88)  # resize 64, lr 0.001: the mean over three seeds
    assert z[1][0] == pytest.approx(statistics.mean([score(32, 1e-3, 0), score(32, 1e-3, 2)]))
    front = page.evaluate("document.getElementById('pareto').data[0].y")
    assert front == sorted(front)
    assert page.evaluate("document.getElementById('parallel').data.length") == 11


@pytest.mark.slow
def test_curves_can_be_drawn_against_training_time(page: Page, trained: Run) -> None:
    page.locator("#curves-x").select_option("train_seconds")
    shown = page.evaluate("document.getElementById('curves').data[0].x")
    logged = [epoch["train_seconds"] for epoch in runs.epochs(trained.folder)]
    assert shown == pytest.approx(logged, rel=1e-5)
    assert page.locator("#curves .xtitle").text_content() == "seconds of training"


@pytest.mark.slow
def test_the_page_says_what_the_terminal_says(page: Page, made: Path) -> None:
    shown = part(made.parents[1])
    assert page.locator("#machines").inner_text() == f"Trained on {notes.machine(shown.runs[0])}."
    cards = page.locator(".card").all_inner_texts()
    assert cards[0].startswith("best by val/acc\n0.8900\ntest/acc ")
    assert not [text for text in cards if text.startswith("best test/acc")]
    rows = page.locator("#groups tbody tr").all_inner_texts()
    assert [row.split("\t")[3] for row in rows] == [group.text("val/acc") for group in shown.groups]
    (comparison,) = shown.comparisons
    told = [row.split("\t") for row in page.locator("#comparisons tbody tr").all_inner_texts()]
    assert told == comparison.texts()
    drawn = page.evaluate("document.getElementById('comparison').data[0]")
    assert drawn["y"] == [group.label() for group, _ in comparison.rows]
    assert drawn["x"] == pytest.approx([difference.mean for _, difference in comparison.rows])
    band = shown.groups[0].band("epoch", "val/acc")
    mean = page.evaluate("document.getElementById('curves').data.at(-1).y")
    assert mean == pytest.approx([point[1] for point in band], rel=1e-5)


@pytest.mark.slow
def test_no_column_is_cut_and_names_are_a_readers(page: Page) -> None:
    for table in ("groups", "table", "comparisons"):
        box = f"document.getElementById('{table}').parentElement"
        assert page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth"), table
    header = page.locator("#table thead th").all_inner_texts()
    assert {"resize", "lr", "images/s", "memory (GiB)", "time (s)"} <= set(header)
    assert column(page, "memory (GiB)")[0].count(".") == 1


@pytest.mark.slow
def test_equal_values_do_not_span_all_colors(browser: Browser, sweep: Sweep) -> None:
    folder = sweep()
    for n in range(12):
        change(folder / str(n), **{"val/acc": 0.9})
    command.main([str(folder)])
    opened = browser.new_page()
    opened.goto((folder / "report" / "report.html").as_uri())
    opened.wait_for_selector("#curves .scatterlayer")
    drawn = opened.evaluate("(d => [d.zmin, d.zmax])(document.getElementById('heatmap').data[0])")
    opened.close()
    assert drawn == pytest.approx([0.891, 0.909])


@pytest.mark.slow
def test_each_part_has_its_charts(browser: Browser, sweep: Sweep, tmp_path: Path) -> None:
    for name in ("one", "other"):
        for run in runs.find([sweep(f"outputs/{name}", seeds=(0,) if name == "other" else (0, 1))]):
            change(run.folder, experiment=name)
    command.main([str(tmp_path / "outputs")])
    opened = browser.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto((tmp_path / "outputs" / "report" / "report.html").as_uri())
    expect(opened.locator("#table tbody tr")).to_have_count(8)
    opened.locator("#part").select_option("1")
    expect(opened.locator("#table tbody tr")).to_have_count(4)
    expect(opened.locator("#curves .scatterlayer .trace")).to_have_count(4)
    opened.close()
    assert errors == []


@pytest.mark.slow
def test_links_lead_to_the_runs_and_text_is_never_markup(page: Page) -> None:
    link = page.locator("#table tbody a").first.get_attribute("href")
    assert link == "../0/"
    assert "‹img src=x onerror=alert(1)>‹/script>" in page.locator("#failures").inner_text()
    assert page.locator("#failures img").count() == 0


@pytest.mark.slow
def test_the_page_fits_a_phone_and_paper(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for chart in ("curves", "heatmap", "pareto", "parallel"):
        box = page.locator(f"#{chart} .main-svg").first.bounding_box()
        assert box is not None
        assert box["width"] <= 360
    page.emulate_media(media="print")
    assert not page.locator("#filter").is_visible()
    assert page.locator("#table").is_visible()


def test_a_legend_shows_names_that_begin_with_an_underscore() -> None:
    group = collect.Group({"model._target_": "nets.A", "seed": 1}, [], [])
    assert group.label() == "target nets.A, seed 1"
