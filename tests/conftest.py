"""Fixtures: a small synthetic data set, the real one where it is available, and one run that many tests examine."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, sync_playwright

from processes import TESTS, THREADS, imports, started, vggexp  # noqa: F401  (tests import them from here)
from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.data import idx
from vggexp.errors import UserError
from vggexp.runs import manifest
from vggexp.system import paths

pytest_plugins = ["trials", "hosts"]  # of tests/faults

FOREIGN = ("VGGEXP_OUTPUTS", "HYDRA_", "SLURM_", "TORCHELASTIC_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONPATH")
for _name in [name for name in os.environ if name.startswith(FOREIGN)]:  # what the user has set for other runs
    del os.environ[_name]
os.environ |= THREADS
# a shell's background ignores the one, nohup the other, and what tests start there would, too
for _signal, _usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if signal.getsignal(getattr(signal, _signal, signal.SIGINT)) == signal.SIG_IGN:
        signal.signal(getattr(signal, _signal), _usual)
TINY = (
    f"--config-dir={TESTS / 'conf'}",
    "data=synthetic",
    "allowed_packages=[synthetic]",
    "model.ratio=16",
    "trainer.precision=32-true",
    "inspect=off",
)
"""Command-line arguments that train a tiny network on the synthetic set."""
QUICK = (*TINY, "optimizer.lr=0.002", "trainer.accelerator=cpu", "trainer.max_epochs=2", "model.init=kaiming")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run every trial of tests/faults, not a sample")


LONGEST = (
    *(
        "test_portability",
        "test_launchers",
        "test_search",
        "test_benchmarks",
        "test_summary",
        "test_stops",
        "test_sweep",
        "test_fused",
    ),
    *("test_precision", "test_options", "test_inspection", "test_processes", "test_resume", "test_terminal"),
    *("test_photos", "test_export"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin, so that no worker is left with one of them; what needs Linux is skipped elsewhere."""
    for item in items if sys.platform != "linux" else ():
        if item.get_closest_marker("linux"):
            item.add_marker(pytest.mark.skip(reason="needs Linux"))
    names = [*LONGEST, ""]
    items.sort(key=lambda item: names.index(item.path.stem if item.path.stem in LONGEST else ""))


def configure(*overrides: str) -> Config:
    """Composes and checks the config of a command line."""
    return compose.config(*overrides)


def refusal(call: Callable[[], object]) -> str:
    """The one-line message of the `UserError` that a call raises."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="session", autouse=True)
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Writes the synthetic data set, and keeps it out of the user's cache."""
    import synthetic

    root = synthetic.write(tmp_path_factory.mktemp("synthetic"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGGEXP_TEST_ROOT", str(root))
        patch.setenv("VGGEXP_REAL_CACHE", str(paths.cache(None)))
        patch.setenv("VGGEXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_cache(_folders: None) -> str:
    """A cache folder with the real data set. It is required in CI; elsewhere, tests that need it are skipped."""
    cache = os.environ["VGGEXP_REAL_CACHE"]
    try:
        idx.obtain(idx.FASHION_MNIST, cache_dir=cache, online=False)
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"Fashion-MNIST is not available; `make data` fetches it ({error})")
    return cache


class Run(NamedTuple):
    cfg: Config
    folder: Path
    result: dict[str, object]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Trains on the synthetic data set, in this process."""
    from vggexp.training.run import run

    def call(*overrides: str) -> Run:
        cfg = configure(*QUICK, *overrides)
        folder = tmp_path_factory.mktemp("run")
        return Run(cfg, folder, run(cfg, folder))

    return call


@pytest.fixture(scope="session")
def trained(train: Callable[..., Run]) -> Run:
    """A finished run of two epochs, with the manifest that the command would have written. Tests only read it."""
    done = train()
    manifest.write(done.folder, manifest.collect(done.cfg) | {"status": "completed"} | done.result)
    return done


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hides the C++ compiler, so that no kernels can be compiled."""
    from vggexp.models.cpu import compiler as kernels

    monkeypatch.setattr(shutil, "which", lambda name: None)
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium. It is required in CI; elsewhere, tests that need it are skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    assert found is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()
