"""A result knows the code that made it: what counts as a change, what is kept, what a sweep and a resumed run say."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import QUICK, configure, refusal, vggexp
from vggexp.config import compose
from vggexp.jobs.grid import Grid
from vggexp.runs import code, layout, manifest
from vggexp.runs import read as runs

NET = """
import blocks
from torch import nn


class Net(nn.Module):
    def __init__(self, image_size, in_channels, num_classes):
        super().__init__()
        first = nn.Linear(in_channels * image_size**2, 8)
        self.layers = nn.Sequential(nn.Flatten(), first, blocks.act(), nn.Linear(8, num_classes))

    def forward(self, images):
        return self.layers(images)
"""


def git(folder: Path, *args: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *args], check=True, capture_output=True)


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, code.Package]]:
    """A folder on Python's path with a package `netpack` that imports the module `blockmod`; call it for their code."""
    place = tmp_path / "project"
    (place / "netpack" / "parts").mkdir(parents=True)
    (place / "netpack" / "__init__.py").write_text("from torch import nn\nimport json, blockmod\n")
    (place / "netpack" / "parts" / "kernel.cpp").write_text("int x;\n")
    (place / "netpack" / "README.md").write_text("words\n")
    (place / "blockmod.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    yield lambda: {package.name: package for package in code.current(["netpack.Net"])}
    for name in ("netpack", "blockmod"):
        sys.modules.pop(name, None)


def summaries(packages: dict[str, code.Package]) -> dict[str, object]:
    return {name: package.summary() for name, package in packages.items()}


def test_what_a_run_is_made_of(nets: Callable[[], dict[str, code.Package]]) -> None:
    found = nets()
    assert list(found) == ["vggexp", "netpack", "blockmod"]  # what is installed, as torch is, has a version instead
    assert set(found["netpack"].hashes) == {"__init__.py", "parts/kernel.cpp"}
    assert "models/vgg.py" in found["vggexp"].hashes
    assert not [name for name in found["vggexp"].hashes if name.startswith(("report/", "commands/", "inference/"))]
    assert set(found["netpack"].loose) == set(found["netpack"].hashes)  # outside of git: all is kept


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("netpack/__init__.py", "import blockmod  # a comment\n", ["netpack/__init__.py"]),
        ("netpack/parts/kernel.cpp", "int y;\n", ["netpack/parts/kernel.cpp"]),
        ("netpack/parts/more.py", "", ["netpack/parts/more.py"]),
        ("blockmod.py", "x = 2\n", ["blockmod.py"]),
        ("netpack/README.md", "other words\n", []),
        ("test_nets.py", "def test() -> None: ...\n", []),
    ],
)
def test_what_counts_as_a_change(
    nets: Callable[[], dict[str, code.Package]], tmp_path: Path, file: str, text: str, names: list[str]
) -> None:
    before = nets()
    code.keep(tmp_path / "run", list(before.values()))
    then = json.loads(json.dumps(summaries(before)))
    assert code.changed(tmp_path / "run", then, summaries(nets())) == []
    (tmp_path / "project" / file).write_text(text)
    assert code.changed(tmp_path / "run", then, summaries(nets())) == names


@pytest.mark.slow
def test_jobs_inherit_the_code_as_it_was_loaded(tmp_path: Path) -> None:
    """An edit while a sweep runs does not reach the modules that its fork server has loaded."""
    show = "import vggexp.jobs.preload; from vggexp.runs import code; print(code.own.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", show], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"


def test_an_edit_of_this_package_is_a_change(tmp_path: Path) -> None:
    now = {"vggexp": code.own().summary()}
    hashes = code.own().hashes | {"models/vgg.py": "0" * 64}
    older = code.own()._replace(hashes=hashes, loose=[])
    code.keep(tmp_path, [older])
    assert code.changed(tmp_path, {"vggexp": older.summary()}, now) == ["vggexp/models/vgg.py"]
    assert code.changed(tmp_path, None, now) == ["a version that was not recorded"]


def test_a_run_keeps_what_no_commit_holds(
    nets: Callable[[], dict[str, code.Package]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "project"
    git(place, "init", "-q")
    (place / ".gitignore").write_text("secret.py\n")
    (place / "netpack" / "secret.py").write_text("password = 1\n")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "x")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as a hook of git has it
    committed = nets()["netpack"]
    assert committed.loose == []
    assert len(committed.revision or "") == 40
    assert "secret.py" in committed.hashes  # its changes count, its text is never kept
    (place / "netpack" / "__init__.py").write_text("import blockmod\nx = 2\n")
    (place / "netpack" / "new.py").write_text("y = 3\n")
    (place / "netpack" / "large.py").write_text("#" * code.LARGEST)
    changed = nets()["netpack"]
    assert sorted(changed.loose) == ["__init__.py", "large.py", "new.py"]
    one, other = tmp_path / "one", tmp_path / "other"
    code.keep(one, [committed])
    code.keep(other, [changed])
    kept = {path.name for path in (other / layout.CODE).rglob("*.py")}
    assert kept == {"__init__.py", "new.py"}  # bounded, the smallest first
    then, now = ({"netpack": package.summary()} for package in (committed, changed))
    lines = code.diff(one, then, other, now)
    (place / "netpack" / "__init__.py").write_text("import blockmod\nx = 4\n")  # a run's text is not today's
    assert code.diff(one, then, other, now) == lines
    assert "-from torch import nn" in lines
    assert "+x = 2" in lines
    assert "+y = 3" in lines


def test_a_file_that_git_ignores_and_a_hostile_list_are_not_read(
    nets: Callable[[], dict[str, code.Package]], tmp_path: Path
) -> None:
    place = tmp_path / "project"
    git(place, "init", "-q")
    (place / ".gitignore").write_text("*\n")
    package = nets()["netpack"]
    assert (package.revision, package.loose) == (None, [])
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    digest = "f" * 64
    listed = tmp_path / "run" / layout.CODE / f"netpack-{digest[:12]}"
    listed.mkdir(parents=True)
    sha = hashlib.sha256(b"password").hexdigest()
    (listed / layout.HASHES).write_text(json.dumps({"../../../secret.txt": sha, str(secret): sha}))
    hostile = {"netpack": {"hash": digest, "revision": "--output=x"}}
    lines = code.diff(tmp_path / "run", hostile, tmp_path / "other", {"netpack": package.summary()})
    assert not [line for line in lines if "password" in line]
    assert code.text(tmp_path / "run", "netpack", hostile["netpack"], "../../../secret.txt") is None
    for strange in ({"netpack": 5, "vggexp": {}}, {"vggexp": {"hash": "../../.."}}, [], "x"):
        code.changed(tmp_path / "run", strange, summaries(nets()))


# -------------------------------------------------------------------------------------- what the command says and does


def project(folder: Path, act: str = "ReLU") -> tuple[str, ...]:
    """Writes a network of one's own, and returns the arguments that train it."""
    shutil.copytree(Path(__file__).with_name("conf"), folder / "cfg", dirs_exist_ok=True)
    (folder / "cfg" / "model").mkdir(exist_ok=True)
    (folder / "cfg" / "model" / "mine.yaml").write_text("_target_: mynets.Net\n")
    (folder / "mynets.py").write_text(NET)
    (folder / "blocks.py").write_text(f"from torch import nn\n\nact = nn.{act}\n")
    own = [arg for arg in QUICK if not arg.startswith(("model.", "allowed_packages", "--config-dir"))]
    trust = next(arg for arg in QUICK if arg.startswith("allowed_packages")).replace("]", ",mynets]")
    return ("--config-dir=cfg", "model=mine", *own, trust, "data.resize=28", "trainer.max_epochs=1")


@pytest.mark.slow
def test_a_sweep_never_shows_old_numbers_as_new(tmp_path: Path) -> None:
    args = ("-m", "hydra.launcher.start_method=fork", *project(tmp_path), "seed=0,1", "hydra.sweep.dir=outputs/grid")
    folder = tmp_path / "outputs" / "grid"

    def scores() -> list[float]:
        return [runs.read(folder / str(n)).result["val/loss"] for n in (0, 1)]

    done = vggexp("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    relu = scores()
    project(tmp_path, act="Tanh")
    refused = vggexp("train", *args, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "2 were done by other code (blocks.py changed); code=any keeps them, code=now" in refused.stderr
    assert scores() == relu
    kept = vggexp("train", *args, "code=any", cwd=tmp_path)
    assert "2 done, 0 to do" in kept.stdout
    assert "2 were done by other code (blocks.py changed)" in kept.stdout
    again = vggexp("train", *args, "code=now", cwd=tmp_path)
    assert "0 done, 2 to do" in again.stdout, again.stdout + again.stderr
    tanh = scores()
    assert tanh != relu
    assert [runs.read(folder / layout.ASIDE / f"{n}-1").result["val/loss"] for n in (0, 1)] == relu
    assert len(runs.find([folder])) == 2  # what was put aside is in no table
    assert "2 done, 0 to do" in vggexp("train", *args, cwd=tmp_path).stdout
    mixed = vggexp("train", *(arg.replace("seed=0,1", "seed=0,1,2") for arg in args), cwd=tmp_path)
    assert mixed.returncode == 0, mixed.stderr
    shown = vggexp("runs", "diff", "outputs/grid/0", f"outputs/grid/{layout.ASIDE}/0-1", cwd=tmp_path)
    assert "-act = nn.Tanh\n+act = nn.ReLU" in shown.stdout
    one = [arg for arg in args[2:] if not arg.startswith(("seed", "hydra"))]
    for wrong in ("code=maybe", "code=now"):
        alone = vggexp("train", *one, wrong, cwd=tmp_path)
        assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_a_sweep_notices_other_weights_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = tmp_path / "start.pth"
    start.write_bytes(b"one")
    cfg = configure(f"model.weights={start}")
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        manifest.write(tmp_path / str(n), manifest.collect(cfg) | {"status": "completed"})
    with compose.session(compose.parse([])) as session:
        sweep = Grid(session)
        found = [runs.read(tmp_path / name) for name in "01"]
        assert sweep.check_code(tmp_path, found, cfg) == found
        start.write_bytes(b"two")
        text = refusal(lambda: sweep.check_code(tmp_path, found, cfg))
    assert f"2 were done by other code ({start} changed)" in text


@pytest.mark.slow
def test_a_resumed_run_remembers_the_code_of_each_segment(tmp_path: Path) -> None:
    args = project(tmp_path)
    first = vggexp("train", *args, "hydra.run.dir=outputs/run", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "outputs" / "run"
    before = manifest.load(folder, "")
    assert before["begins"] | {"time": ""} == {"time": "", "epoch": 0, "batch": 0}
    assert before["versions"].keys() >= {"python", "torch", "hydra-core", "pytest"}
    assert before["test_images"] == 130
    project(tmp_path, act="Tanh")
    trust = next(arg for arg in args if arg.startswith("allowed_packages"))
    again = vggexp("train", "resume=outputs/run", "trainer.max_epochs=2", trust, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "outputs/run: resumed with other code (blocks.py changed)" in again.stderr
    after = manifest.load(folder, "")
    (segment,) = after["segments"]
    assert {key: segment[key] for key in manifest.SEGMENT} == {key: before[key] for key in manifest.SEGMENT}
    assert (after["begins"]["epoch"], after["begins"]["batch"]) == (1, 0)
    assert after["code"]["blocks"] != before["code"]["blocks"]
    assert after["started"] == before["started"]
    shown = vggexp("report", "outputs/run", cwd=tmp_path)
    assert "note: outputs/run: was resumed with other code" in shown.stdout
