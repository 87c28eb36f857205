"""Flags, YAML and values as people type them: done, or refused in one line; never a traceback, never a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Run, configure, refusal, vggexp
from processes import environment, server
from vggexp.config import compose
from vggexp.runs import manifest, resume

FLAGS = [
    *("--help", "--resolve", "--multirun", "--cfg=job", "--run", "--package=model", "--cfg=all", "--hydra-help"),
    *("--version", "--info", "--info=defaults", "--shell-completion", "--config-name=config", "--config-dir=."),
    "--experimental-rerun=none.pickle",
]


@pytest.mark.slow
@pytest.mark.parametrize("first", FLAGS)
def test_every_flag_and_pair_of_flags(first: str, tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """All pairs with --full; otherwise, of each flag those with the two after it, of which some go on to train."""
    others = FLAGS[FLAGS.index(first) + 1 :]
    for flags in [(first,), *((first, other) for other in others[: count(len(others), 2)])]:
        options = {"cwd": tmp_path, "env": environment(), "sabotage": [("train_nothing", 0)]}
        process = server().start("train", *flags, **options)
        output, errors = process.communicate()
        assert process.returncode in (0, 2), (flags, errors)
        assert "Traceback" not in output + errors, (flags, errors)
        assert errors.count("\n") == (process.returncode == 2), (flags, errors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--resolve"], "--resolve: goes with --cfg job; add that"),
        (["-m", "seed=1,2", "--cfg", "job"], "--multirun: cannot be combined with --cfg"),
        (["-m", "--run"], "--run: cannot be combined with --multirun"),
        (["-sc", "foo"], "-sc foo: Expecting one subcommand"),
        (["-sc", "install=foo"], "No completion plugin for 'foo'"),
        (["-m", "seed=range(0,1,0)"], "seed=range(0,1,0): range() arg 3 must not be zero"),
        (["-m", "seed=range(0)"], "seed=range(0): has no values; name at least one"),
        (["experiment=ü"], """needs quotes: experiment='"ü"'"""),
        (["+experiment=quickstart"], "+experiment=quickstart: leave out the +"),
        (["--lr=0.1"], "--lr=0.1: no such flag; keys take no dashes, such as optimizer.lr=0.01"),
        (["trainer.limit_val_batches=0"], "data.val_size=0 leaves validation out"),
        (["trainer.limit_test_batches=0"], "trainer.limit_test_batches=1"),
        (["trainer.limit_train_batches=0"], "trainer.max_epochs=0 trains nothing"),
        (["trainer.max_time=1:00"], "days:hours:minutes:seconds, such as 00:01:30:00"),
        (["trainer.val_check_interval=0.5"], "trainer.check_val_every_n_epoch=N"),
        (["trainer.overfit_batches=1"], "debug=overfit learns a few images by heart"),
        (["trainer.fast_dev_run=true"], "debug=fast runs every stage on a few batches"),
    ],
)
def test_what_people_type(args: list[str], words: str, tmp_path: Path) -> None:
    done = vggexp("train", *args, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# @package _global_\nseed: 1\nseed: 2\n", "mine.yaml: is not plain YAML: while constructing a mapping"),
        ("# @package _global_\nseed: 010\n", "mine.yaml: 010: YAML reads 8; write that, or '010' in quotes"),
        ("# @package _global_\ntrainer: {max_time: 1:30}\n", "mine.yaml: 1:30: YAML reads 90"),
        ("seed: 1\n", "the first line of its file must be # @package _global_"),
        ("# @package _global_\nseed: [1\n", "mine.yaml: is not plain YAML"),
        ("# @package _global_\nhydra: {run: {dir: /elsewhere}}\n", "hydra.run.dir=/elsewhere: is outside outputs/"),
    ],
)
def test_what_people_write(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    assert words in refusal(lambda: compose.config(f"--config-dir={tmp_path}", "experiment=mine"))
    configure(f"--config-dir={tmp_path}", "experiment=quickstart")  # a file that is not asked for does no harm


def test_a_file_with_another_ending_is_found_by_the_message(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yml").write_text("# @package _global_\n")
    text = "experiment=mine: Hydra reads mine.yaml alone; rename mine.yml"
    assert text in refusal(lambda: compose.config(f"--config-dir={tmp_path}", "experiment=mine"))


def test_environment_variables_are_what_their_keys_want(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("RATE", "2e-2"), ("ROOT", "1234"), ("SEED", "7"), ("ON", "true"), ("WORD", "many")):
        monkeypatch.setenv(name, text)
    cfg = configure(
        *("optimizer.lr=${oc.env:RATE}", "data.root=${oc.env:ROOT}", "seed=${oc.env:SEED}"),
        "trainer.deterministic=${oc.env:ON}",
    )
    assert (cfg.optimizer.lr, cfg.data.root, cfg.seed, cfg.trainer.deterministic) == (0.02, "1234", 7, True)
    for text in ("many", "[1", "a: b: c", "${oc.env:SEED"):
        monkeypatch.setenv("WORD", text)
        said = refusal(lambda: configure("optimizer.lr=${oc.env:WORD}"))
        assert said.startswith(f"optimizer.lr={text}: must be a valid number"), said


def test_a_folder_that_is_typed_may_be_anywhere(tmp_path: Path) -> None:
    for flags in ([], ["-m"]):
        key = "hydra.sweep.dir" if flags else "hydra.run.dir"
        with compose.session(compose.parse([*flags, f"{key}={tmp_path / 'x'}"])) as session:
            assert session.grid()[0].raw.hydra[key.split(".")[1]].dir == str(tmp_path / "x")


@pytest.mark.slow
def test_each_experiment_brings_its_own_sweep(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name, params in (("mine", "{seed: '1,2'}"), ("other", "{optimizer.lr: '0.1,0.2,0.3'}"), ("plain", "{}")):
        text = f"# @package _global_\nhydra: {{sweeper: {{params: {params}}}}}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    names = "experiment=mine,other,plain"
    found = [(cfg.seed, cfg.optimizer.lr) for cfg in compose.configs(f"--config-dir={tmp_path}", names)]
    assert found == [(1, 1e-3), (2, 1e-3), (0, 0.1), (0, 0.2), (0, 0.3), (0, 1e-3)]
    assert len(compose.configs(f"--config-dir={tmp_path}", names, "seed=5,6")) == 2 + 6 + 2


def test_a_negative_zero_is_zero() -> None:
    one, other = configure("optimizer.weight_decay=0.0"), configure("optimizer.weight_decay=-0.0")
    assert one.hash() == other.hash()


def test_a_resumed_run_takes_one_value(tmp_path: Path) -> None:
    manifest.write(tmp_path, manifest.collect(configure()))
    text = "trainer.max_epochs=40,50: takes one value"
    assert text in refusal(lambda: resume.config(tmp_path, ["trainer.max_epochs=40,50"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["predict", "run={run}", "input={run}/metrics.csv", "output="],
        ["predict", "run={run}", "input={run}/metrics.csv", "output={run}/result.json"],
        ["predict", "run={run}", "input={run}/metrics.csv", "output={run}/checkpoints/best.ckpt"],
        ["runs", "{run}", "csv="],
        ["runs", "{run}", "csv={run}"],
        ["runs", "{run}", "csv={run}/result.json"],
        ["evaluate", "run={run}", "output="],
        ["report", "{run}", "output="],
        ["train", "-sc", "query=bash"],
        ["train", "--info=bogus"],
        ["train", "--info", "model.ratio=4"],
        ["train", "hydra.run.dir="],
        ["train", "hydra.run.dir=' '"],
        ["train", "hydra.job_logging.root.level=NOPE"],
        ["train", "trainer.max_epochs=99999999999999999999"],
    ],
)
def test_what_would_go_wrong_is_one_line(words: list[str], trained: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()}
    done = vggexp(*(word.format(run=trained.folder) for word in words), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("vggexp: ")
    assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_info_may_follow_what_it_is_about(tmp_path: Path) -> None:
    for words in (["model.ratio=4", "--info"], ["--info"], ["model.ratio=4", "-i", "searchpath"]):
        done = vggexp("train", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Config search path" in done.stdout
