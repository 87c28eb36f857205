"""TensorBoard itself, in a real browser: each of its pages shows what the run logged."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from conftest import QUICK, Run, configure, refusal, started, vggexp
from test_sweep import FORK
from vggexp.commands import tensorboard
from vggexp.report import columns, names
from vggexp.runs import manifest
from vggexp.runs import read as runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two runs that show everything they can."""
    folder = tmp_path_factory.mktemp("tensorboard")
    args = [FORK, *QUICK, "inspect=default", "trainer.log_every_n_steps=2", "optimizer.lr=0.002,0.001"]
    done = vggexp("train", "-m", *args, "hydra.sweep.dir=outputs/sweep", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "sweep"


@pytest.fixture(scope="module")
def link(sweep: Path) -> Iterator[str]:
    """The address that the command prints, which says nothing else."""
    with started(sweep.parents[1], "last", "port=0", command="tensorboard") as process:
        process.wait_for_output("http")
        yield process.output.split()[1]
        assert process.errors == ""


@pytest.fixture(scope="module")
def url(link: str) -> str:
    return link.partition("#")[0]


@pytest.fixture
def page(url: str, browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=30_000)
    yield page
    page.close()


NAMES = ("lr=0.002", "lr=0.001")


@pytest.mark.slow
def test_runs_are_named_by_the_settings_that_varied(sweep: Path) -> None:
    assert set(names.names(runs.find([sweep]))) == set(NAMES)
    several = names.names(runs.find([sweep.parent, sweep / "0"]))
    assert set(several) == set(NAMES)


@pytest.mark.slow
def test_names_are_short_and_unique_whatever_varies_and_one_run_that_cannot_be_read(tmp_path: Path) -> None:
    """Two experiments differ in more keys than a file name holds: what was typed tells them apart."""
    arguments = [["experiment=quickstart"], ["experiment=speedrun"], ["experiment=speedrun", "seed=1"]]
    jobs = []
    for n, extra in enumerate(arguments):
        cfg = configure(*extra)
        (tmp_path / "sweep" / str(n)).mkdir(parents=True)
        manifest.write(tmp_path / "sweep" / str(n), manifest.collect(cfg) | {"status": "completed"})
        jobs.append({"folder": str(n), "config_hash": cfg.hash(), "overrides": ["model=vgg11", *extra]})
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"jobs": jobs, "arguments": []}))
    (tmp_path / "sweep" / "3").mkdir()
    (tmp_path / "sweep" / "3" / "result.json").write_text("{")
    found = names.names(runs.find([tmp_path]))
    assert set(found) == {"experiment=quickstart", "experiment=speedrun", "experiment=speedrun seed=1", "3"}

    long = "ü" * 120
    for name in (f"{long}a", f"{long}b"):
        shutil.copytree(tmp_path / "sweep" / "0", tmp_path / "outputs" / name)
    names.link([tmp_path / "outputs"], tmp_path / "links")
    assert len(list((tmp_path / "links").iterdir())) == 2


def test_links_are_made_for_runs_that_begin_later(sweep: Path, tmp_path: Path) -> None:
    names.link([sweep / "0"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]  # a run alone has no settings that differ
    names.link([sweep], tmp_path)
    assert {path.name: path.resolve().name for path in tmp_path.iterdir()} == {"0": "0", NAMES[0]: "0", NAMES[1]: "1"}


def test_what_tensorboard_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Run) -> None:
    monkeypatch.chdir(tmp_path)
    assert "outputs: no such folder" in refusal(lambda: tensorboard.main([]))
    assert "there is no run" in refusal(lambda: tensorboard.main(["last"]))
    assert "port=x" in refusal(lambda: tensorboard.main([str(trained.folder), "port=x"]))


@pytest.mark.slow
def test_scalars_match_the_run(page: Page, url: str, sweep: Path) -> None:
    page.goto(f"{url}#timeseries")
    for name in NAMES:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.get_by_role("combobox", name="Filter tags (regex)").fill("^test/loss$")
    card = page.locator("scalar-card").first
    for n in (0, 1):
        expect(card).to_contain_text(f"{manifest.load(sweep / str(n), '')['test/loss']:.4f}".rstrip("0"))


@pytest.mark.slow
def test_the_link_shows_the_curves_and_the_three_stages_share_a_chart(page: Page, link: str) -> None:
    page.goto(link)
    expect(page.get_by_text("1 training")).to_be_visible()
    expect(page.get_by_text("Matches (6)").first).to_be_attached()  # the loss of three stages in two runs


@pytest.mark.slow
def test_images_are_listed_and_loaded(page: Page, url: str) -> None:
    page.goto(f"{url}#images")
    expect(page.get_by_text("filters/first_layer").first).to_be_attached()
    image = page.locator("tf-image-loader img").first
    expect(image).to_be_visible()
    assert image.evaluate("image => image.complete && image.naturalWidth > 100")
    for group in ("maps 10", "mistakes 2", "where_it_looks 2", "inputs 2"):  # the number of pictures in two runs
        expect(page.get_by_role("button", name=group)).to_be_visible()
    page.get_by_role("button", name="mistakes 2").click()
    expect(page.get_by_text("mistakes/test").first).to_be_attached()


@pytest.mark.slow
def test_hparams_compare_the_runs_by_final_results(page: Page, url: str, sweep: Path) -> None:
    page.goto(f"{url}#hparams")
    table = page.locator("tf-hparams-table-view")
    shown = ("optimizer.lr", "val/acc", "val/loss", "test/acc", "test/loss", "images_per_second")
    expect(table).to_contain_text(re.compile(r"\s*".join(map(re.escape, shown))))
    boxes = page.locator("tf-hparams-query-pane paper-checkbox.hparam-checkbox")
    expect(boxes).to_have_text([re.compile(r"^\s*optimizer.lr\s*$")])
    for n, name in enumerate(NAMES):
        loss = manifest.load(sweep / str(n), "")["test/loss"]
        expect(table.get_by_role("row", name=re.compile(f"^{name} .* {loss:.4f} "))).to_be_attached()


@pytest.mark.slow
def test_pr_curves_have_a_card_for_each_class(page: Page, url: str) -> None:
    page.goto(f"{url}#pr_curves")
    for n in (0, 9):
        expect(page.get_by_text(f"pr/bar_{n}").first).to_be_attached()


@pytest.mark.slow
def test_the_graph_is_that_of_the_network(page: Page, url: str) -> None:
    page.goto(f"{url}#graphs")
    expect(page.locator("tf-graph-scene g.node text", has_text="VGG").first).to_be_attached()


@pytest.mark.slow
def test_texts_show_config_and_layers(page: Page, url: str) -> None:
    page.goto(f"{url}#text")
    expect(page.get_by_text("run/config").first).to_be_attached()
    expect(page.get_by_text("features.0.0").first).to_be_attached()
    expect(page.get_by_text("config_hash").first).to_be_attached()  # from the manifest


@pytest.mark.slow
def test_the_projector_has_the_test_images(page: Page, url: str) -> None:
    page.goto(f"{url}#projector")
    frame = page.frame_locator("iframe").frame_locator("iframe")
    expect(frame.get_by_text("Points: 130")).to_be_visible()


@pytest.mark.slow
def test_nothing_is_requested_from_other_servers(page: Page, url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for tab in ("timeseries", "images", "hparams"):
        page.goto(f"{url}#{tab}")
        page.wait_for_timeout(1500)
    assert asked
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []


def test_the_table_has_what_varies_and_is_written_anew_when_something_else_does(sweep: Path, tmp_path: Path) -> None:
    found = runs.find([sweep])
    assert columns.columns(found) == {"optimizer.lr": True}
    other = found[0]._replace(config=found[0].config | {"model.arch": "vgg13"})
    assert columns.columns([*found, other]) == {"model.arch": False, "optimizer.lr": True}
    alone = columns.columns(found[:1])
    assert {"data.resize", "seed"} < set(alone)
    assert not [key for key in alone if key.startswith(("logger.", "inspect."))]
    for wanted in (alone, {"optimizer.lr": True}):
        columns.write(wanted, tmp_path)
        (folder,) = tmp_path.iterdir()
        read = EventAccumulator(str(folder)).Reload()
        content = read.SummaryMetadata("_hparams_/experiment").plugin_data.content
        experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
        assert [info.name for info in experiment.hparam_infos] == list(wanted)
        assert [info.name.tag for info in experiment.metric_infos][:2] == ["val/acc", "val/loss"]
