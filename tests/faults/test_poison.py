"""One poisoned text in every field of a run folder; then every output is looked at."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from test_altered import seal
from test_checkpoints import saved
from test_strangers import attempt, finished  # noqa: F401  (a fixture)
from trials import Server, Tally

from conftest import QUICK, started
from vggexp.checkpoints import file as checkpoint
from vggexp.system import text

pytestmark = pytest.mark.slow

MARKUP = "<script>window.hurt=1</script><img src=x onerror=window.hurt=1><a href='javascript:window.hurt=1'>x</a>"
POISON = f"=cmd()|'\x1b[31m\x07\x9b2J\u202egnp\u2066\u200b\r\n+1`{MARKUP}`[x](javascript:window.hurt=1)![x](//x)"
POISON += "$\\frac$%{y}"
"""A formula, escape sequences, another direction, lines of its own, HTML, Markdown, TeX and a chart's template."""

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069]")
COMMANDS: dict[str, list[str]] = {
    "runs": ["runs", "outputs"],
    "runs csv": ["runs", "outputs", "csv=out.csv"],
    "runs json": ["runs", "outputs", "json=true"],
    "runs diff": ["runs", "diff", "outputs/run", "outputs/other"],
    "report": ["report", "outputs"],
    "evaluate": ["evaluate", "run=outputs/run", "allowed_packages=[synthetic]"],
    "predict": ["predict", "run=outputs/run", "input=some.idx", "allowed_packages=[synthetic]"],
    "predict csv": ["predict", "run=outputs/run", "input=some.idx", "output=p.csv", "allowed_packages=[synthetic]"],
    "export": ["export", "run=outputs/run", "formats=onnx", "allowed_packages=[synthetic]"],
    "resume": ["train", "resume=outputs/run", "allowed_packages=[synthetic]"],
    "resume further": ["train", "resume=outputs/run", "trainer.max_epochs=3", "allowed_packages=[synthetic]"],
    "sweep": ["train", "sweep=outputs", "allowed_packages=[synthetic]"],
}


def poisoned(tree: Any) -> Any:
    """The tree in which every text is the poison, also those that are names of something open."""
    if isinstance(tree, str):
        return POISON
    if isinstance(tree, dict):
        return {key: poisoned(value) for key, value in tree.items()}
    return [poisoned(value) for value in tree] if isinstance(tree, list) else tree


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder with two runs and a sweep whose every text that may be free is the poison."""
    cwd = tmp_path_factory.mktemp("poison") / "work"
    shutil.copytree(finished, cwd)
    run = cwd / "outputs" / "run"
    result = json.loads((run / "result.json").read_text())
    kept = {key: result[key] for key in ("status", "config", "started", "begins", "config_hash", "code")}
    free = poisoned({key: value for key, value in result.items() if key not in kept})
    more = {"reason": POISON, "note": POISON, "tags": [POISON, "b"], "experiment": POISON, POISON: POISON}
    (run / "result.json").write_text(json.dumps(free | kept | more))
    table = (run / "metrics.csv").read_text().splitlines()
    column = io.StringIO()
    csv.writer(column, lineterminator="").writerow(["x", POISON.replace("\n", " ").replace("\r", " ")])
    (run / "metrics.csv").write_text(
        "\n".join([f"{table[0]},{column.getvalue()}", *(f"{row},1,2" for row in table[1:])])
    )
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps([POISON, f"note={POISON}"]))
    shutil.copytree(run, cwd / "outputs" / "other")
    changed = json.loads((run / "result.json").read_text())
    changed["config"]["data"]["root"] = POISON + "2"
    (cwd / "outputs" / "other" / "result.json").write_text(json.dumps(changed | {"status": "failed"}))
    jobs = [{"folder": name, "config_hash": POISON, "overrides": [POISON, name]} for name in ("run", "other")]
    sweep = {"arguments": [f"note={POISON}", POISON], "jobs": jobs, "identity": POISON, "started": POISON}
    (cwd / "outputs" / "sweep.json").write_text(json.dumps(sweep))
    for name in ("best.ckpt", "last.ckpt"):
        path = run / "checkpoints" / name
        content = checkpoint.read(path, "run")
        content["classes"] = [f"{POISON}{n}" for n in range(10)]
        path.write_bytes(seal(saved(content)))
    return cwd


@pytest.mark.parametrize("name", COMMANDS)
def test_no_output_obeys_foreign_text(name: str, folder: Path, tmp_path: Path) -> None:
    """Of the terminal and of every text file that a command writes."""
    cwd = tmp_path / "work"
    shutil.copytree(folder, cwd)
    before = {path: path.read_bytes() for path in cwd.rglob("*") if path.is_file()}
    code, said = attempt(COMMANDS[name], cwd, tmp_path, 120)
    assert code in ((0, 1) if name not in ("resume further", "sweep", "evaluate") else (0, 1, 2)), said
    assert not OBEYED.search(said), repr(OBEYED.findall(said))
    written = [path for path in cwd.rglob("*") if path.is_file() and before.get(path) != path.read_bytes()]
    for path in written:
        if path.suffix == ".csv" and path.name != "metrics.csv":
            rows = list(csv.reader(io.StringIO(path.read_text())))
            cells = [cell for row in rows for cell in row]
            assert not [c for c in cells if c.startswith(("=", "+", "@", "-")) and not text.is_number(c) and c != "-"]
            assert not OBEYED.search("".join(cells))
        elif path.suffix == ".md":
            content = path.read_text()
            assert not OBEYED.search(content)
            assert "<script" not in content
            assert not re.search(r"(?<!\\)\[x(?<!\\)\]", content)
        elif path.suffix == ".json" and path.name != "result.json":
            assert not OBEYED.search(path.read_text())


def test_the_page_shows_foreign_text_and_obeys_none(folder: Path, tmp_path: Path, browser: Browser) -> None:
    cwd = tmp_path / "work"
    shutil.copytree(folder, cwd)
    assert attempt(COMMANDS["report"], cwd, tmp_path)[0] == 0
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None)
    page.goto((cwd / "outputs" / "report" / "report.html").as_uri())
    page.wait_for_timeout(500)
    assert errors == []
    assert page.evaluate("window.hurt") is None
    assert page.locator("a[href^=javascript]").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert not OBEYED.search(page.locator("body").inner_text())
    page.close()


def test_tensorboard_gets_names_and_texts_that_it_can_show(folder: Path, tmp_path: Path) -> None:
    from vggexp.inspection import description
    from vggexp.report import names

    names.link([folder / "outputs"], tmp_path / "linked")
    for path in (tmp_path / "linked").rglob("*"):
        assert not OBEYED.search(path.name)
    fenced = description._fenced("json", POISON)
    assert fenced.count("`") == 6
    assert not OBEYED.search(fenced)


def test_tensorboard_shows_a_runs_texts_and_obeys_none(tmp_path: Path, browser: Browser) -> None:
    quoted = POISON.replace("\\", "\\\\").replace("'", "\\'")
    words = [*QUICK, "trainer.max_epochs=1", "inspect=default", "hydra.run.dir=outputs/run", f"note='{quoted}'"]
    code, said = attempt(["train", *words], tmp_path, tmp_path, 120)
    assert code == 0, said
    with started(tmp_path, "outputs/run", "port=0", command="tensorboard") as process:
        process.wait_for_output("http")
        page = browser.new_page()
        page.goto(process.output.split()[1].replace("#custom_scalars", "#text"))
        page.get_by_text("window.hurt").first.wait_for(timeout=60_000)
        assert page.evaluate("window.hurt") is None
        for element in ("script:has-text('window.hurt')", "img[src=x]", "a[href^=javascript]"):
            assert page.locator(element).count() == 0
        page.close()


def test_metadata_of_an_export_are_plain_json(folder: Path, tmp_path: Path) -> None:
    import onnxruntime

    cwd = tmp_path / "work"
    shutil.copytree(folder, cwd)
    assert attempt(COMMANDS["export"], cwd, tmp_path, 120)[0] == 0
    (path,) = cwd.rglob("model.onnx")
    about = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"])[0] == text.clean(f"{POISON}0")
    assert not [value for value in about.values() if OBEYED.search(value)]


def test_texts_one_by_one(tally: Callable[[str], Tally], farm: Server) -> None:
    assert text.clean(POISON).count("\n") == 1
    assert text.message(POISON).count("\n") == 0
    assert len(text.message("x" * 10**6)) <= text.LONGEST
    assert text.message("a" * 1000 + "the remedy").endswith("the remedy")
    assert [text.cell(value) for value in ("=a", "+a", "-a", "@a", "-1.5", "+inf", "a", 1, None)] == [
        "'=a", "'+a", "'-a", "'@a", "-1.5", "+inf", "a", 1, None
    ]  # fmt: skip
    assert text.clean("Größe → 5 µm, 猫, 👨‍👩‍👧, naïve") == "Größe → 5 µm, 猫, 👨‍👩‍👧, naïve"
