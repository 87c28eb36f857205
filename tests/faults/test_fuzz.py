"""Inputs that nobody thought of, in the three formats that come from strangers: checkpoint, record and YAML.

Each is used as a command would use it. A line of refusal is as good as success; a traceback is not, nor more than ten
seconds, nor a gigabyte beyond the input, nor a change to anything outside.
"""

import io
import json
import pickletools
import random
import resource
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from test_altered import LOAD, foreign, seal
from test_checkpoints import archive, attacks
from test_configs import FILES
from test_strangers import finished, snapshot  # noqa: F401  (a fixture)
from trials import Tally

from conftest import configure
from vggexp.checkpoints import file as checkpoint
from vggexp.errors import UserError
from vggexp.inference import load as trained
from vggexp.report import collect, tables
from vggexp.runs import read

pytestmark = pytest.mark.slow

SECONDS, BYTES = 10.0, 10**9
FULL, SAMPLE = 200.0, 1.0  # seconds for each format


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Ends what takes too long, and fails what takes too much memory."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < BYTES + size, f"{grown / 1e9:.1f} GB"


def search(tally: Tally, seconds: float, use: Callable[..., None], *examples: Any, **inputs: Any) -> None:
    """Tries the examples, and then inputs from one seed after another, for a time."""
    end = time.monotonic() + seconds

    def once(**values: Any) -> None:
        tally.tried += 1
        use(**values)

    number = 0
    while number == 0 or time.monotonic() < end:
        some: Any = given(**inputs)(once)
        for values in examples if number == 0 else ():
            some = example(**values)(some)
        how: Any = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
        phases = (Phase.explicit, Phase.generate, Phase.shrink)
        try:
            settings(max_examples=20 if seconds == SAMPLE else 200, phases=phases, **how)(seed(number)(some))()
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            tally.failed.append(f"seed {number}: {type(error).__name__}: {error}\n{notes}")
            break
        number += 1
    tally.check()


def refused(call: Callable[[], object]) -> str:
    """The message of the UserError that a call raises, if it does."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture
def decoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home in which nothing may change."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".bashrc").write_text("# mine\n")
    (home / ".ssh" / "id").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    before = snapshot(home)
    yield home
    assert snapshot(home) == before


EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(content: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """The bytes after flips, insertions, removals and repetitions, each at a place and with a value."""
    data = bytearray(content)
    for kind, place, value in changes:
        at = place % max(1, len(data))
        match kind % 5:
            case 0 if data:
                data[at] ^= 1 << (value % 8)
            case 1 if data:
                data[at] = EXTREMES[value % len(EXTREMES)]
            case 2:
                data[at:at] = value.to_bytes(4, "little")
            case 3:
                del data[at : at + 1 + value % 64]
            case 4:
                data[at:at] = data[at : at + 1 + value % 64] * (1 + value % 9)
    return bytes(data)


CHANGES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2**20), st.integers(0, 2**32 - 1)), max_size=8)


def test_checkpoints(
    tally: Callable[[str], Tally],
    finished: Path,  # noqa: F811
    tmp_path: Path,
    decoy: Path,
    count: Callable[[int, int], int],
) -> None:
    """The bytes of the pickle, of the archive or of a whole file, with and without a checksum that fits."""
    path = finished / "outputs" / "run" / "checkpoints" / "best.ckpt"
    good = checkpoint.read(path, "run")
    with zipfile.ZipFile(path) as opened:
        names = {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    entries = {f"_{name.removeprefix('data/')}": data for name, data in names.items() if name.startswith("data/")}
    pickled = names["data.pkl"]
    opcodes = [place for _, _, place in pickletools.genops(pickled)]
    corpus = list((foreign() | attacks(tmp_path / "canary", good)).values())
    corpus = [content for content in corpus if len(content) < 2**20]

    def use(which: int, changes: list[tuple[int, int, int]], sealed: bool, at_opcodes: bool) -> None:
        if which % 2:
            places = [(kind, opcodes[place % len(opcodes)] if at_opcodes else place, x) for kind, place, x in changes]
            content = archive(mutated(pickled, places), **entries)
        else:
            content = mutated(corpus[which // 2 % len(corpus)], changes)
        file = tmp_path / "fuzzed.ckpt"
        file.write_bytes(seal(content) if sealed else content)
        with bounded(len(content)):
            for read_it in (lambda: checkpoint.read(file, "run"), lambda: trained.load(str(file), LOAD)):
                assert "\n" not in refused(read_it)
        assert not (tmp_path / "canary").exists()

    seconds = count(int(FULL), int(SAMPLE))
    plain = [{"which": 1, "changes": [], "sealed": True, "at_opcodes": False}]
    options = {"sealed": st.booleans(), "at_opcodes": st.booleans()}
    search(tally("fuzzing: checkpoints"), seconds, use, *plain, which=st.integers(0, 999), changes=CHANGES, **options)


TEXTS = st.text(max_size=20) | st.sampled_from(["\x1b[31m", "${oc.env:HOME}"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS


def _branches(part: Any) -> Any:
    return st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3)


TREES = st.recursive(LEAVES, _branches)


def _places(tree: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*before, key)
        yield from _places(value, (*before, key))


def test_records(
    tally: Callable[[str], Tally],
    finished: Path,  # noqa: F811
    tmp_path: Path,
    decoy: Path,
    count: Callable[[int, int], int],
) -> None:
    """`result.json`, `sweep.json`, `metrics.csv` and `overrides.yaml`: other values, and other bytes."""
    sweep = tmp_path / "work" / "outputs"
    shutil.copytree(finished / "outputs", sweep)
    shutil.copytree(sweep / "run", sweep / "other")
    jobs = [{"folder": name, "config_hash": name, "overrides": ["seed=0"]} for name in ("run", "other")]
    (sweep / "sweep.json").write_text(json.dumps({"arguments": ["seed=0"], "jobs": jobs, "identity": ""}))
    files = [sweep / "run" / name for name in ("result.json", "metrics.csv", ".hydra/overrides.yaml")]
    files.append(sweep / "sweep.json")
    before = {file: file.read_bytes() for file in files}
    trees = {file: json.loads(before[file]) for file in files if file.suffix == ".json"}
    places = {file: list(_places(tree)) for file, tree in trees.items()}

    def use(which: int, place: int, value: Any, changes: list[tuple[int, int, int]]) -> None:
        file = files[which % len(files)]
        content = before[file]
        if file in trees and not changes:
            tree = json.loads(content)
            *parents, last = places[file][place % len(places[file])]
            node = tree
            for key in parents:
                node = node[key]
            node[last] = value
            content = json.dumps(tree).encode(errors="surrogatepass")
        file.write_bytes(mutated(content, changes))
        try:
            with bounded(len(content)):
                report = lambda: tables.show(collect.collect([sweep], read.find([sweep]), collect.DEFAULTS))  # noqa: E731
                assert "\n" not in refused(report)
        finally:
            file.write_bytes(before[file])

    seconds = count(int(FULL), int(SAMPLE))
    inputs: Any = {"which": st.integers(0, 3), "place": st.integers(0, 500), "value": TREES}
    search(tally("fuzzing: records"), seconds, use, **inputs, changes=st.just([]) | CHANGES)


def test_yaml(tally: Callable[[str], Tally], tmp_path: Path, decoy: Path, count: Callable[[int, int], int]) -> None:
    """An experiment under `--config-dir`: attacks, the project's own files, and lines of both, mixed and altered."""
    from vggexp.system import paths

    own = [path.read_text() for path in sorted(paths.CONF.rglob("*.yaml"))]
    lines = [line for text in (*own, *FILES.values()) for line in text.splitlines()[:200] if len(line) < 2000]
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    names = iter(range(10**9))

    def use(chosen: int, mix: int, changes: list[tuple[int, int, int]]) -> None:
        chance = random.Random(mix)
        text = [*own, *FILES.values()][chosen % (len(own) + len(FILES))]
        if mix:
            text = "\n".join(chance.choices(lines, k=1 + mix % 20))
        content = mutated(text.encode(), changes)
        name = f"fuzzed{next(names)}"
        (folder / f"{name}.yaml").write_bytes(b"# @package _global_\n" + content)
        with bounded(len(content)):
            words = (f"--config-dir={tmp_path / 'conf'}", f"experiment={name}")
            assert "\n" not in refused(lambda: configure(*words))
        (folder / f"{name}.yaml").unlink()
        assert not (tmp_path / "canary").exists()

    seconds = count(int(FULL), int(SAMPLE))
    search(tally("fuzzing: YAML"), seconds, use, chosen=st.integers(0, 999), mix=st.integers(0, 999), changes=CHANGES)


def test_a_fuzzer_that_finds_nothing_would_be_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """It notices a traceback, a hang and a leak."""
    for fault in (lambda: {}["x"], lambda: time.sleep(20), lambda: io.BytesIO(b"x" * (2 * BYTES))):
        tally = Tally()
        monkeypatch.setitem(globals(), "SECONDS", 0.1)

        def use(n: int, fault: Callable[[], Any] = fault) -> None:
            with bounded(0):
                fault()

        with pytest.raises(pytest.fail.Exception):
            search(tally, SAMPLE, use, n=st.integers(0, 1))
