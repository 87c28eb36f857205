"""The data set is searched in the documented order, and only its sha256 is trusted."""

import gzip
import io
import logging
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synthetic
from conftest import TINY, refusal, vggexp
from processes import PATIENCE
from vggexp.data import idx
from vggexp.errors import UserError

IMAGES = idx.TRAIN_IMAGES


def obtain(tmp_path: Path, spec: idx.IDXSet = synthetic.SOURCE, root: Path | None = None, online: bool = False) -> dict:
    return idx.obtain(spec, str(root) if root else None, str(tmp_path / "cache"), online=online)


@pytest.fixture
def system(tmp_path: Path) -> idx.IDXSet:
    """The data set, with intact files in the system folder."""
    return replace(synthetic.SOURCE, system_dir=str(synthetic.write(tmp_path / "system")))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_named_folder_fills_the_cache(tmp_path: Path, compressed: bool) -> None:
    root = synthetic.write(tmp_path / "root", compressed)
    assert obtain(tmp_path, root=root) == synthetic.FILES
    assert obtain(tmp_path) == synthetic.FILES  # now from the cache only
    assert {p.name for p in (tmp_path / "cache" / "synthetic").iterdir()} - {".lock"} == set(synthetic.FILES)


def test_a_cache_that_cannot_be_written_is_not_needed_where_a_folder_has_all(
    tmp_path: Path, system: idx.IDXSet
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    assert obtain(tmp_path, root=synthetic.write(tmp_path / "root")) == synthetic.FILES
    assert obtain(tmp_path, system) == synthetic.FILES
    assert f"data.cache_dir={tmp_path / 'cache' / 'synthetic'}: Not a directory" in refusal(lambda: obtain(tmp_path))


def test_torchvisions_folder_layout_is_recognized(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "root" / "FashionMNIST" / "raw")
    assert obtain(tmp_path, root=tmp_path / "root") == synthetic.FILES


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


def swapped(content: bytes) -> bytes:
    return synthetic.FILES[idx.TEST_IMAGES]


def empty(content: bytes) -> bytes:
    return b""


FAULTS = [truncated, flipped, swapped, empty]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_is_named_and_replaced_from_the_next_source(
    fault: Callable[[bytes], bytes],
    compressed: bool,
    tmp_path: Path,
    system: idx.IDXSet,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = synthetic.write(tmp_path / "root", compressed)
    path = root / (f"{IMAGES}.gz" if compressed else IMAGES)
    path.write_bytes(fault(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "vggexp.data"):
        assert obtain(tmp_path, system, root) == synthetic.FILES
    assert f"refused {path}" in caplog.text


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_in_the_cache_is_named_and_replaced(
    fault: Callable[[bytes], bytes], tmp_path: Path, system: idx.IDXSet, caplog: pytest.LogCaptureFixture
) -> None:
    obtain(tmp_path, system)
    path = tmp_path / "cache" / "synthetic" / IMAGES
    path.write_bytes(fault(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "vggexp.data"):
        assert obtain(tmp_path, system) == synthetic.FILES
    assert f"refused {path}" in caplog.text
    assert path.read_bytes() == synthetic.FILES[IMAGES]


def test_if_no_source_is_left_one_line_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=FOLDER") as error:
        obtain(tmp_path)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert IMAGES in str(error.value)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path, system: idx.IDXSet) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*nowhere: no such folder"):
        obtain(tmp_path, root=tmp_path / "nowhere")
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*can be written"):
        obtain(tmp_path)
    assert obtain(tmp_path, system) == synthetic.FILES  # which the cache is not needed for


class Mirrors:
    """Replaces the network: answers `urlopen` and records the requested addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bytes]) -> None:
        self.asked: list[str] = []
        self.answer = answer
        monkeypatch.setattr(urllib.request, "urlopen", self.urlopen)

    def urlopen(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append(url)
        return io.BytesIO(self.answer(url))


def gz_of(url: str) -> bytes:
    return gzip.compress(synthetic.FILES[url.rsplit("/", 1)[1].removesuffix(".gz")])


ONLINE = replace(synthetic.SOURCE, mirrors=("https://one.example/a", "https://two.example/b"))


def test_mirrors_use_https_only() -> None:
    assert idx.FASHION_MNIST.mirrors
    assert all(url.startswith("https://") for url in idx.FASHION_MNIST.mirrors)


def test_a_mirror_is_used_if_no_folder_has_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = Mirrors(monkeypatch, gz_of)
    assert obtain(tmp_path, ONLINE, online=True) == synthetic.FILES
    assert mirrors.asked == [f"https://one.example/a/{name}.gz" for name in synthetic.FILES]


def test_a_mirror_with_wrong_files_is_refused_and_the_next_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = Mirrors(monkeypatch, lambda url: b"<html>moved</html>" if "one" in url else gz_of(url))
    assert obtain(tmp_path, ONLINE, online=True) == synthetic.FILES
    assert len(mirrors.asked) == 8


def test_an_unreachable_mirror_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(url: str) -> bytes:
        if "one" in url:
            raise urllib.error.URLError("no route")
        return gz_of(url)

    mirrors = Mirrors(monkeypatch, answer)
    assert obtain(tmp_path, ONLINE, online=True) == synthetic.FILES
    assert sum("one" in url for url in mirrors.asked) == 1


def test_an_endless_download_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "MAX_BYTES", 1 << 19)
    Mirrors(monkeypatch, lambda url: bytes(1 << 20))
    with pytest.raises(UserError):
        obtain(tmp_path, ONLINE, online=True)


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "MAX_BYTES", 1 << 20)
    root = tmp_path / "root"
    root.mkdir()
    (root / f"{IMAGES}.gz").write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(UserError):
        obtain(tmp_path, root=root)


@pytest.mark.slow
def test_eight_processes_at_once_all_succeed(tmp_path: Path) -> None:
    root = synthetic.write(tmp_path / "root")
    code = f"""
from vggexp.data import idx
spec = idx.IDXSet("synthetic", (), {dict(synthetic.SOURCE.sha256)!r})
assert len(idx.obtain(spec, {str(root)!r}, {str(tmp_path / "cache")!r})) == 4
"""
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    assert [(p.wait(PATIENCE), p.communicate()[1]) for p in started] == [(0, "")] * 8
    assert {p.name for p in (tmp_path / "cache" / "synthetic").iterdir()} - {".lock"} == set(synthetic.FILES)


def test_idx_headers_are_checked() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(idx.parse(synthetic.encode(array)), array)
    for broken in (b"", b"\0\0\x09\x01", synthetic.encode(array)[:-1], synthetic.encode(array) + b"\0"):
        with pytest.raises(ValueError, match=r"IDX|header"):
            idx.parse(broken)


@pytest.mark.slow
def test_the_data_command_fetches_and_trains_nothing(tmp_path: Path) -> None:
    done = vggexp("data", *TINY, f"data.cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cache          cache " in done.stdout
    assert set(synthetic.FILES) <= {path.name for path in (tmp_path / "cache" / "synthetic").iterdir()}
    assert {path.name.split()[0] for path in (tmp_path / "outputs").rglob("*")} == {"data", "SyntheticMNIST"}


@pytest.mark.slow
@pytest.mark.real
def test_the_real_data_set_has_the_expected_shapes(real_cache: str) -> None:
    files = idx.obtain(idx.FASHION_MNIST, cache_dir=real_cache, online=False)
    assert [idx.parse(files[name]).shape for name in (IMAGES, idx.TRAIN_LABELS, idx.TEST_IMAGES, idx.TEST_LABELS)] == [
        (60000, 28, 28), (60000,), (10000, 28, 28), (10000,)
    ]  # fmt: skip


def test_a_package_is_fetched_by_the_systems_lists_or_else_by_new_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for known in (True, False):
        commands: list[list[str]] = []

        def run(command: list[str], *, known: bool = known, commands: list[list[str]] = commands, **_: object) -> Any:
            commands.append(command)
            if "download" in command:
                (tmp_path / str(known) / "x.deb").touch()
            return subprocess.CompletedProcess(command, 0 if known or len(commands) > 1 else 100)

        monkeypatch.setattr(subprocess, "run", run)
        (tmp_path / str(known)).mkdir()
        idx._unpack(idx.FASHION_MNIST, tmp_path / str(known))
        assert ["update" in command for command in commands].count(True) == (not known)
        assert commands[-1][0] == "dpkg-deb"
