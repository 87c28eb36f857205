"""MNIST, KMNIST and CIFAR are found, verified by md5 before anything reads them, and kept in the cache as a whole."""

import errno
import gzip
import hashlib
import http.server
import io
import logging
import multiprocessing
import pickle
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from torchvision import datasets

from conftest import refusal
from synthetic import encode
from vggexp.data import torchvision_sets
from vggexp.data.source import Split
from vggexp.data.torchvision_sets import TorchvisionSet
from vggexp.errors import UserError
from vggexp.system.paths import CONF

NAMES = ("MNIST", "KMNIST", "CIFAR10", "CIFAR100")
SIZES: dict[Split, int] = {"train": 10, "test": 4}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


class Made(NamedTuple):
    """A small set in the true format."""

    name: str
    files: dict[str, bytes]  # as they are read
    archives: dict[str, bytes]  # as they are downloaded
    pixels: dict[Split, np.ndarray]
    labels: dict[Split, np.ndarray]

    def load(self, folder: Path, **options: Any) -> TorchvisionSet:
        return TorchvisionSet(dataset=self.name, cache_dir=str(folder / "cache"), **options)  # type: ignore[arg-type]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Made]:
    """Makes a set, whose md5s then are torchvision's, and whose mirrors cannot be reached."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        nowhere = f"http://127.0.0.1:{server.getsockname()[1]}/"

    def call(name: str) -> Made:
        reader = getattr(datasets, name)
        generator = np.random.default_rng(NAMES.index(name))
        shape = (28, 28) if name.endswith("MNIST") else (3, 32, 32)
        pixels = {split: generator.integers(0, 256, (n, *shape), dtype=np.uint8) for split, n in SIZES.items()}
        labels = {split: generator.integers(0, 10, n, dtype=np.uint8) for split, n in SIZES.items()}
        files: dict[str, bytes] = {}
        if name.endswith("MNIST"):
            for split, prefix in (("train", "train"), ("test", "t10k")):
                files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(encode(pixels[split]))
                files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(encode(labels[split]))
            monkeypatch.setattr(reader, "resources", [(file, md5(content)) for file, content in files.items()])
            monkeypatch.setattr(reader, "mirrors", [nowhere])
            return Made(name, files, files, pixels, labels)
        for split in SIZES:
            listed = getattr(reader, f"{split}_list")
            parts = zip(*(np.split(array[split], len(listed)) for array in (pixels, labels)), strict=True)
            for (file, _), (images, targets) in zip(listed, parts, strict=True):
                key = "fine_labels" if name == "CIFAR100" else "labels"
                batch = {"data": images.reshape(len(images), -1), key: targets.tolist(), "coarse_labels": [0]}
                files[f"{reader.base_folder}/{file}"] = pickle.dumps(batch)
            monkeypatch.setattr(
                reader, f"{split}_list", [(file, md5(files[f"{reader.base_folder}/{file}"])) for file, _ in listed]
            )
        meta = pickle.dumps({reader.meta["key"]: [f"{name} {n}" for n in range(10)], "coarse_label_names": ["x"]})
        files[f"{reader.base_folder}/{reader.meta['filename']}"] = meta
        monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5(meta)})
        archive = tar({**files, f"{reader.base_folder}/readme.html": b"words"})
        monkeypatch.setattr(reader, "tgz_md5", md5(archive))
        monkeypatch.setattr(reader, "url", f"{nowhere}{reader.filename}")
        return Made(name, files, {reader.filename: archive}, pixels, labels)

    return call


def check(made: Made, source: TorchvisionSet) -> None:
    """That all of a set is right."""
    assert source.channels == (1 if made.name.endswith("MNIST") else 3)
    for split in SIZES:
        images = source.load(split)
        assert images is not None
        assert (images.pixels.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
        expected = made.pixels[split]
        assert images.pixels.is_contiguous()
        assert np.array_equal(images.pixels, expected if expected.ndim == 4 else expected[:, None])
        assert images.labels.tolist() == made.labels[split].tolist()
        batches = 1 if source.channels == 1 else len(getattr(datasets, made.name).train_list) ** (split == "train")
        assert len(images.hashes) == batches + 1
        assert all(found == md5(made.files[file]) for file, found in images.hashes.items())
    assert source.load("val") is None
    assert len(source.classes) == 10
    assert source.classes[1] == {"MNIST": "1 - one", "KMNIST": "ki"}.get(made.name, f"{made.name} 1")


def cached(made: Made, folder: Path) -> Path:
    """The set's folder in the cache."""
    return folder / "cache" / made.name.lower()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["files", "layout", "archive", "cache"])
def test_a_set_is_read_from_wherever_it_lies(
    place: str, name: str, make: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, root = make(name), tmp_path / "root"
    root.mkdir()
    if place == "cache":
        write(cached(made, tmp_path), made.files)
        monkeypatch.setattr(torchvision_sets, "writing", None)  # a cache that is complete may be read-only
        check(made, made.load(tmp_path))
    else:
        layout = root / name / "raw" if place == "layout" and name.endswith("MNIST") else root
        write(layout, made.archives if place == "archive" else made.files)
    before = sorted(root.rglob("*"))
    check(made, made.load(tmp_path, root=str(root)))
    assert sorted(root.rglob("*")) == before
    extracted = place == "archive" and name.startswith("CIFAR")
    assert cached(made, tmp_path).exists() == (extracted or place == "cache")
    if extracted:
        check(made, made.load(tmp_path))  # now from the cache only


def test_red_comes_first_and_rows_before_columns(make: Callable[[str], Made], tmp_path: Path) -> None:
    made = make("CIFAR10")
    images = made.load(tmp_path, root=str(write(tmp_path / "root", made.files))).load("train")
    assert images is not None
    row = pickle.loads(made.files["cifar-10-batches-py/data_batch_1"])["data"][0]
    assert images.pixels[0, 0, 0, :].tolist() == row[:32].tolist()
    assert images.pixels[0, 2, 31, :].tolist() == row[-32:].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_file_is_named_and_the_next_source_is_used(
    name: str, make: Callable[[str], Made], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(name)
    write(cached(made, tmp_path), made.files)
    for n, (file, content) in enumerate(made.files.items()):
        root = write(tmp_path / f"root{n}", made.files | {file: content[:-1]})
        with caplog.at_level(logging.WARNING, "vggexp.data"):
            check(made, made.load(tmp_path, root=str(root)))
        assert f"refused {root / file}: its md5 is not {md5(content)}" in caplog.text


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
@pytest.mark.parametrize("place", ["root", "cache", "archive"])
def test_a_pickle_with_a_wrong_md5_is_never_loaded(
    place: str, file: str, make: Callable[[str], Made], tmp_path: Path
) -> None:
    made, sprung = make("CIFAR10"), tmp_path / "sprung"
    files = made.files | {f"cifar-10-batches-py/{file}": pickle.dumps(Trap(sprung))}
    root = tmp_path / "root"
    root.mkdir()
    write(cached(made, tmp_path) if place == "cache" else root,
          {"cifar-10-python.tar.gz": tar(files)} if place == "archive" else files)  # fmt: skip
    source = made.load(tmp_path, root=str(root))
    for call in (lambda: source.load("train"), lambda: source.load("test"), lambda: source.classes):
        assert "with a wrong md5" in refusal(call)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def test_an_archive_with_a_wrong_md5_is_not_extracted(
    make: Callable[[str], Made], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make("CIFAR10")
    archive = tar({"../../../x": b"", **made.files})
    root = write(tmp_path / "root", {"cifar-10-python.tar.gz": archive})
    with caplog.at_level(logging.WARNING, "vggexp.data"):
        refusal(lambda: made.load(tmp_path, root=str(root)).load("train"))
    assert "its md5 is not" in caplog.text
    assert not list(tmp_path.rglob("x"))
    assert [path.name for path in cached(made, tmp_path).iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("name", NAMES)
def test_offline_one_line_says_what_to_copy_where(name: str, make: Callable[[str], Made], tmp_path: Path) -> None:
    made = make(name)
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError) as error:
        made.load(tmp_path, root=str(tmp_path / "root")).load("train")
    assert error.value.exit_code == 1
    text = str(error.value)
    assert text.startswith(f"data.dataset={name}: not found, or with a wrong md5, in {tmp_path / 'root'}, ")
    assert f"copy {', '.join(made.archives)} into a folder and set data.root=FOLDER" in text
    assert str(cached(made, tmp_path)) in text
    assert "http://127.0.0.1" in text
    assert "\n" not in text


def test_a_file_that_may_not_be_read_is_named(
    make: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, root, is_file = make("MNIST"), tmp_path / "root", Path.is_file
    root.mkdir()
    write(cached(made, tmp_path), made.files)

    def closed(path: Path) -> bool:  # as Python up to 3.13 does in a folder without the right to search it
        if path.parent == root:
            raise PermissionError(errno.EACCES, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", closed)
    check(made, made.load(tmp_path, root=str(root)))
    assert f"refused {root / 'train-images-idx3-ubyte.gz'}: Permission denied" in caplog.text


def test_what_the_user_named_wrongly_is_said(make: Callable[[str], Made], tmp_path: Path) -> None:
    made = make("MNIST")
    nowhere = tmp_path / "nowhere"
    text = refusal(lambda: made.load(tmp_path, root=str(nowhere)).load("train"))
    assert text.startswith(f"data.root={nowhere}: no such folder; name one that holds train-images-idx3-ubyte.gz")
    (tmp_path / "cache").write_text("a file, not a folder")
    assert "data.cache_dir=" in refusal(lambda: made.load(tmp_path).load("train"))


def test_what_the_machine_lacks_is_said(
    make: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("CIFAR10")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.utils, "download_url", full)
        text = refusal(lambda: made.load(tmp_path).load("train"))
        assert text.startswith(f"data.cache_dir={cached(made, tmp_path)}: No space left on device; ")


class Mirror(NamedTuple):
    url: str
    asked: list[str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[dict[str, bytes]], Mirror]]:
    """Starts mirrors that hold these files."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def call(files: dict[str, bytes]) -> Mirror:
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                if "Method" not in self.headers:  # with which torchvision first asks for redirections
                    asked.append(self.path.lstrip("/"))
                time.sleep(0.05)  # another process finds the cache half full
                super().do_GET()

            def log_message(self, *_: object) -> None: ...

        folder = write(tmp_path / f"mirror{len(servers)}", files)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        return Mirror(f"http://127.0.0.1:{server.server_port}/", asked)

    yield call
    for server in servers:
        server.shutdown()
        server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, made: Made, *mirrors: Mirror) -> None:
    """Makes these torchvision's mirrors; those of CIFAR are one."""
    reader = getattr(datasets, made.name)
    if made.name.endswith("MNIST"):
        monkeypatch.setattr(reader, "mirrors", [mirror.url for mirror in mirrors])
    else:
        monkeypatch.setattr(reader, "url", mirrors[-1].url + reader.filename)


def test_a_mirror_with_wrong_files_is_refused_and_the_next_is_tried(
    make: Callable[[str], Made],
    serve: Callable[[dict[str, bytes]], Mirror],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = make("KMNIST")
    moved, right = serve(dict.fromkeys(made.archives, b"<html>moved</html>")), serve(made.archives)
    use(monkeypatch, made, moved, right)
    check(made, made.load(tmp_path))
    assert f"cannot download {moved.url}{next(iter(made.archives))}" in caplog.text
    assert sorted(right.asked) == sorted(made.archives)


def test_a_mirror_that_does_not_answer_is_given_up(
    make: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("MNIST")
    monkeypatch.setattr(torchvision_sets, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        end = threading.Timer(5, silent.close)  # if nothing else does
        end.start()
        began = time.monotonic()
        use(monkeypatch, made, Mirror(f"http://127.0.0.1:{silent.getsockname()[1]}/", []))
        assert "not found" in refusal(lambda: made.load(tmp_path).load("train"))
        end.cancel()
    assert time.monotonic() - began < 4
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_what_a_killed_download_or_extraction_left_is_repaired(
    name: str,
    make: Callable[[str], Made],
    serve: Callable[[dict[str, bytes]], Mirror],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make(name)
    cache = write(cached(made, tmp_path), dict(list(made.files.items())[:2]))
    last = next(reversed(made.files))
    write(cache, {last: made.files[last][:9], **{name: content[:9] for name, content in made.archives.items()}})
    use(monkeypatch, made, serve(made.archives))
    check(made, made.load(tmp_path))


def test_a_killed_extraction_is_done_again(
    make: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("CIFAR100")
    source = made.load(tmp_path, root=str(write(tmp_path / "root", made.archives)))
    extract = tarfile.TarFile.extractall

    def killed(*args: Any, **options: Any) -> None:
        extract(*args, **options)
        (cached(made, tmp_path) / "cifar-100-python" / "test").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", killed)
        with pytest.raises(KeyboardInterrupt):
            source.load("train")
    check(made, source)


@pytest.mark.linux
@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_processes_at_once_download_once(
    name: str,
    make: Callable[[str], Made],
    serve: Callable[[dict[str, bytes]], Mirror],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make(name)
    mirror = serve(made.archives)
    use(monkeypatch, made, mirror)
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=check, args=(made, made.load(tmp_path))) for _ in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    assert sorted(mirror.asked) == sorted(made.archives)


@pytest.mark.parametrize("name", NAMES)
def test_each_set_has_its_config(name: str) -> None:
    loaded = yaml.safe_load((CONF / "data" / f"{name.lower()}.yaml").read_text())
    assert (loaded["_target_"], loaded["dataset"]) == ("vggexp.data.TorchvisionSet", name)
