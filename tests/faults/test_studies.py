"""Two hosts share a study in PostgreSQL: no trial twice, none lost, also when a host or its cable dies."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest
from test_hosts import Hosts, finished, until
from trials import Tally

from conftest import QUICK
from hosts import Host
from test_sweep import results
from vggexp.runs import layout, read

pytestmark = [pytest.mark.slow, pytest.mark.linux]
NUMBER = 4  # trials of Optuna
USER, PASSWORD = "searcher", "not-to-be-seen"
URL = f"postgresql+psycopg://{USER}@a/postgres"
SEARCH = (
    *("train", "-m", *QUICK, "search=optuna", f"search.n_trials={NUMBER}", "search.startup_trials=2"),
    *(f"search.storage={URL}", "search.study=both", "hydra.sweep.dir=outputs/both"),
    *("data.resize=32", "data.batch_size=64", "optimizer.lr=tag(log,interval(1e-4,5e-3))", "trainer.max_epochs=40"),
)


@pytest.fixture(scope="module")
def binaries(request: pytest.FixtureRequest) -> Path:
    """The folder of PostgreSQL's programs."""
    if not request.config.getoption("--full"):
        pytest.skip("a trial of make faults")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed; make setup EXTRAS=postgresql")
    found = [Path(shutil.which("initdb") or "none").parent, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    if not (found[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    return found[-1]


class Database:
    """PostgreSQL on a host. It refuses to run as root, so its files lie where another user may enter."""

    def __init__(self, host: Host, binaries: Path, folder: Path) -> None:
        self.host, self.binaries, self.folder = host, binaries, folder
        account = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            shutil.chown(path, "nobody", "nogroup")
        options = [f"--username={USER}", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run([binaries / "initdb", *options, folder / "data"], cwd=folder, check=True, **account)
        (folder / "password").unlink()
        with open(folder / "data" / "pg_hba.conf", "a") as rules:
            rules.write("host all all 10.77.0.0/24 scram-sha-256\n")

    def start(self) -> None:
        begun = self.host.log.count("ready to accept connections")
        options = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off"]
        account = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        data = ("-D", str(self.folder / "data"))
        self.process = self.host.start(*account, str(self.binaries / "postgres"), *data, *options)
        until(lambda: self.host.log.count("ready to accept connections") > begun, [self.host], 60)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def study(self) -> optuna.Study:
        """The study, by the server's socket, which every namespace can reach."""
        storage = f"postgresql+psycopg://{USER}:{PASSWORD}@/postgres?host={self.folder}"
        return optuna.load_study(study_name="both", storage=storage)


@contextmanager
def database(host: Host, binaries: Path) -> Iterator[Database]:
    with tempfile.TemporaryDirectory(prefix="vggexp-postgres-") as folder:
        made = Database(host, binaries, Path(folder))
        made.start()
        try:
            yield made
        finally:
            made.stop()


def search(host: Host) -> subprocess.Popen[bytes]:
    return host.start(sys.executable, "-m", "vggexp", *SEARCH, PGPASSWORD=PASSWORD)


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


@pytest.mark.parametrize("kind", ["host", "cable and host", "database"])
def test_a_study_in_a_database_outlives(
    kind: str,
    tally: Callable[[str], Tally],
    hosts: Hosts,
    tmp_path: Path,
    binaries: Path,
    count: Callable[[int, int], int],
) -> None:
    trials, draw = tally(f"studies: {kind}"), random.Random(4)
    for number in range(count(1, 1)):
        with trials.trial(f"{kind} {number}"):
            disk = tmp_path / str(number)
            disk.mkdir()
            a, b = hosts(folder=disk)
            folder = disk / "outputs" / "both"
            with database(a, binaries) as server:
                searches = [search(a), search(b)]  # both make the tables of the new database
                until(partial(on_both, folder), [a, b], 240)
                time.sleep(draw.uniform(0, 1))
                cut_off: set[str] = set()
                if kind == "database":  # restarted while both hosts train
                    server.stop()
                    server.start()
                else:
                    if kind == "cable and host":  # the database does not hear that its client has gone
                        b.cut()
                    cut_off = {name for name, host in running(folder).items() if host == "b"}
                    b.signal()
                    b.cut(False)
                    searches[1] = search(b)
                finished(searches, [a, b])
                check(folder, server.study(), [a, b], cut_off)
    trials.check()
