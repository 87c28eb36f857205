"""Two hosts share a study in PostgreSQL: no trial twice, none lost, also when a host or its cable dies."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest
from test_hosts import Hosts, finished, until
from trials import Tally

from conftest import QUICK
from hosts import Host
from processes import PATIENCE
from test_sweep import results
from vggexp.jobs.search import opened
from vggexp.runs import layout, read

pytestmark = [pytest.mark.slow, pytest.mark.linux]
NUMBER = 4  # trials of Optuna
USER, PASSWORD = "searcher", "not-to-be-seen"
URL = f"postgresql+psycopg://{USER}@a/postgres"
JOURNAL = "journal:study.log"  # on the common disk
SEARCH = (
    *("train", "-m", *QUICK, "search=optuna", f"search.n_trials={NUMBER}", "search.startup_trials=2"),
    *("search.study=both", "hydra.sweep.dir=outputs/both"),
    *("data.resize=32", "data.batch_size=64", "optimizer.lr=tag(log,interval(1e-4,5e-3))", "trainer.max_epochs=30"),
)


@pytest.fixture(scope="module")
def binaries() -> Path:
    """The folder of PostgreSQL's programs."""
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed; make setup EXTRAS=postgresql")
    found = [Path(shutil.which("initdb") or "none").parent, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    if not (found[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    return found[-1]


@contextmanager
def database(host: Host, binaries: Path) -> Iterator[Path]:
    """PostgreSQL on a host. It refuses to run as root, so its files lie where another user may enter."""
    with tempfile.TemporaryDirectory(prefix="vggexp-postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            shutil.chown(path, "nobody", "nogroup")
        nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        options = [f"--username={USER}", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run([*nobody, binaries / "initdb", *options, folder / "data"], cwd=folder, check=True)
        with open(folder / "data" / "pg_hba.conf", "a") as rules:
            rules.write("host all all 10.77.0.0/24 scram-sha-256\n")
        options = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        server = host.start(*nobody, str(binaries / "postgres"), "-D", str(folder / "data"), *options)
        try:
            until(lambda: "ready to accept connections" in host.log, [host], 60)
            yield folder
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(PATIENCE)


def stored(folder: Path) -> optuna.Study:
    """The study, by the server's socket, which every namespace can reach."""
    storage = f"postgresql+psycopg://{USER}:{PASSWORD}@/postgres?host={folder}"
    return optuna.load_study(study_name="both", storage=storage)


def journal(disk: Path) -> optuna.Study:
    return optuna.load_study(study_name="both", storage=opened(f"journal:{disk / 'study.log'}"))


def search(host: Host, storage: str) -> subprocess.Popen[bytes]:
    """Starts a search, with the password in a file, as ~/.pgpass, or in a variable."""
    file = host.cwd / "pgpass"
    file.write_text(f"*:*:*:{USER}:{PASSWORD}")
    file.chmod(0o600)
    login = {"PGPASSFILE": str(file)} if host.name == "a" else {"PGPASSWORD": PASSWORD}
    return host.start(sys.executable, "-m", "vggexp", *SEARCH, f"search.storage={storage}", **login)


def running(folder: Path) -> dict[str, str]:
    """The trials that are being trained, each with its host."""
    runs = [read.read(path.parent) for path in folder.glob(f"*/{layout.RESULT}")]
    return {run.folder.name: run.result["host"] for run in runs if run.status == "running"}


def on_both(folder: Path) -> bool:
    """Whether each host is some epochs into a trial."""
    begun = {host for name, host in running(folder).items() if layout.checkpoint(folder / name, layout.LAST).exists()}
    return begun == {"a", "b"}


def check(folder: Path, study: optuna.Study, hosts: list[Host], cut_off: set[str]) -> None:
    """No trial is lost or was trained twice; those that were cut off continued, no other; all name the same best."""
    found = results(folder)
    assert sorted(found, key=int) == [str(trial.number) for trial in study.trials] == list(map(str, range(NUMBER)))
    for trial in study.trials:
        run = found[str(trial.number)]
        assert run["status"] == {"COMPLETE": "completed", "PRUNED": "pruned"}[trial.state.name]
        assert run["config"]["optimizer"]["lr"] == pytest.approx(trial.params["optimizer.lr"], rel=1e-12)
        assert run.get("val/acc") == trial.value or trial.state.name == "PRUNED"
        assert len(run.get("segments", [])) == (str(trial.number) in cut_off), f"trial {trial.number}"
    assert len({run["config"]["optimizer"]["lr"] for run in found.values()}) == NUMBER
    best = f"best val/acc {study.best_value:.4f} in outputs/both/{study.best_trial.number}:"
    for host in hosts:
        assert {line.partition(":")[0] for line in host.log.splitlines() if line.startswith("best ")} == {best[:-1]}
    for path in folder.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes(), f"{path} shows the password"


@pytest.mark.parametrize("kind", ["host", "cable and host"])
@pytest.mark.parametrize("storage", [JOURNAL, URL], ids=["journal", "database"])
def test_a_study_outlives(
    storage: str,
    kind: str,
    tally: Callable[[str], Tally],
    hosts: Hosts,
    tmp_path: Path,
    count: Callable[[int, int], int],
    request: pytest.FixtureRequest,
) -> None:
    if not request.config.getoption("--full"):
        pytest.skip("a trial of make faults")
    binaries = request.getfixturevalue("binaries") if storage == URL else None
    trials, draw = tally(f"studies: {kind}, {storage.partition(':')[0]}"), random.Random(4)
    for number in range(count(3, 1)):
        with trials.trial(f"{kind} {number}"):
            disk = tmp_path / str(number)
            disk.mkdir()
            a, b = hosts(folder=disk)
            folder = disk / "outputs" / "both"
            with database(a, binaries) if binaries else nullcontext() as socket:
                searches = [search(a, storage), search(b, storage)]  # both make the tables of a new database
                until(partial(on_both, folder), [a, b], 240)
                time.sleep(draw.uniform(0, 1))
                if kind == "cable and host":  # the database does not hear that its client has gone
                    b.cut()
                cut_off = {name for name, host in running(folder).items() if host == "b"}
                b.signal()
                b.cut(False)
                searches[1] = search(b, storage)
                finished(searches, [a, b])
                check(folder, stored(socket) if socket else journal(disk), [a, b], cut_off)
    trials.check()
