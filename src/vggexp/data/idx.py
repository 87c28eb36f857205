"""Fashion-MNIST, and sets like it: finds the four IDX files, verifies them by sha256 and keeps them in a cache.

The sources, in this order: the cache, a folder that the user names, the system folder of Debian's package, the mirrors,
and Debian's package, downloaded and unpacked in a temporary folder (no root needed). A file whose sha256, decompressed,
is wrong is reported, and the next source is tried.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import logging
import os
import shutil
import subprocess
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
from filelock import FileLock

from vggexp.data.source import Images, Source, Split
from vggexp.errors import UserError
from vggexp.system import paths, terminal
from vggexp.system.files import replacing, writing

log = logging.getLogger("vggexp.data")

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
MAX_BYTES = 1 << 28  # for one file, from any source


@dataclass(frozen=True)
class IDXSet:
    """A data set and where to get it."""

    name: str  # of its folder in the cache
    classes: tuple[str, ...]  # names, by label
    sha256: Mapping[str, str]  # of the four decompressed files, by file name
    system_dir: str = ""  # where the system's package manager puts the files
    debian_package: str = ""  # the package with these files
    mirrors: tuple[str, ...] = ()  # https folders that hold the files as .gz


FASHION_MNIST = IDXSet(
    name="fashion-mnist",
    classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    sha256={
        TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    system_dir="/usr/share/datasets/fashion-mnist",
    debian_package="dataset-fashion-mnist",
    mirrors=(
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
    ),
)


@dataclass(kw_only=True)
class FashionMNIST(Source):
    """Fashion-MNIST (Xiao et al. 2017); a subclass with its own `spec` is another set in four IDX files."""

    spec: ClassVar[IDXSet] = FASHION_MNIST
    channels = 1

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    def load(self, split: Split) -> Images | None:
        if split == "val":
            return None
        import torch  # here, because what else is in this file does without

        names = (TRAIN_IMAGES, TRAIN_LABELS) if split == "train" else (TEST_IMAGES, TEST_LABELS)
        files = obtain(self.spec, self.root, self.cache_dir, names=names)
        pixels, labels = (torch.from_numpy(parse(files[name]).copy()) for name in names)
        return Images(pixels.unsqueeze(1), labels.long(), {name: self.spec.sha256[name] for name in names})


def obtain(
    spec: IDXSet,
    root: str | None = None,
    cache_dir: str | None = None,
    *,
    names: Sequence[str] | None = None,
    online: bool = True,
) -> dict[str, bytes]:
    """Returns the files by name, verified and decompressed, and fills the cache with them.

    Args:
        root: a folder to search right after the cache; its files may be .gz and lie in torchvision's sub-folders.
        names: those wanted of the four files; None: all.
    """
    if root is not None and not os.path.isdir(root):  # noqa: PTH112  Path's may raise
        raise UserError(f"data.root={root}: no such folder; name one that holds {TRAIN_IMAGES}(.gz) and the others")
    folder = paths.cache(cache_dir) / spec.name
    others = [] if root is None else [Path(root), Path(root, "FashionMNIST", "raw"), Path(root, spec.name)]
    others += [Path(spec.system_dir)] if spec.system_dir else []
    wanted = list(spec.sha256) if names is None else names

    def found(place: Path) -> dict[str, bytes]:
        raw = {name: _read(*_either(place, name)) for name in wanted}
        return {name: _verified(content, spec.sha256[name]) for name, content in raw.items()}

    with contextlib.suppress(OSError, ValueError):  # then fill the cache and report what is wrong in it
        return found(folder)
    try:
        with writing(folder, f"data.cache_dir={folder}"), FileLock(folder / ".lock"), TemporaryDirectory() as scratch:
            search = _Search(spec, root, [folder, *others], Path(scratch), online)
            return {name: search.fill(name) for name in wanted}
    except UserError:
        for place in others:
            with contextlib.suppress(OSError, ValueError):
                return found(place)
        raise


def parse(content: bytes) -> np.ndarray:
    """The uint8 array of an IDX file (format: LeCun's MNIST page), read-only, without a copy.

    Raises:
        ValueError: the header does not match the content.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    rank = content[3]
    start = 4 + 4 * rank
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], dtype=">u4"))
    if len(shape) != rank or len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"the header says {shape}, the file holds {len(content) - start} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def unpacked(raw: bytes) -> bytes:
    """The content of a file that may be gzipped, at most MAX_BYTES of it.

    Raises:
        ValueError: the gzip data are broken or incomplete.
    """
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.open(io.BytesIO(raw)) as file:
            return file.read(MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"broken gzip: {error}") from error


@dataclass
class _Search:
    """The arguments of `obtain`, the folders where the files may be, and a temporary one."""

    spec: IDXSet
    root: str | None
    folders: list[Path]  # the first is that of the set in the cache
    scratch: Path
    online: bool
    unreachable: set[str] = field(default_factory=set)  # hosts, each of which is asked once, not for each file

    def fill(self, name: str) -> bytes:
        """Copies one file into the cache from the first source that has the right one."""
        spec, path = self.spec, self.folders[0] / name
        for place, read in self._sources(name):
            try:
                content = _verified(read(), spec.sha256[name])
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                log.warning("refused %s: %s", place, getattr(error, "strerror", None) or error)
                continue
            if not path.exists() or path.read_bytes() != content:
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
            return content
        searched = ", ".join(filter(None, [self.root, spec.system_dir, *(spec.mirrors if self.online else ())]))
        package = f" or install Debian's {spec.debian_package}" if spec.debian_package else ""
        raise UserError(
            f"{name}: not found, or with a wrong sha256, in {self.folders[0]}, {searched}; "
            f"copy the four files of {spec.name} into a folder and set data.root=FOLDER,{package}",
            1,
        )

    def _sources(self, name: str) -> Iterator[tuple[object, Callable[[], bytes]]]:
        """Where the file may be, to be named, and what reads it there."""
        spec = self.spec
        for folder in self.folders:
            for path in _either(folder, name):
                yield path, functools.partial(_read, path)
        if self.online:
            for mirror in spec.mirrors:
                url = f"{mirror}/{name}.gz"
                yield url, functools.partial(self._download, url)
            if spec.debian_package and shutil.which("apt-get") and shutil.which("dpkg-deb"):
                package = f"Debian's package {spec.debian_package}"
                yield package, lambda: _read(*_either(_unpack(spec, self.scratch), name))

    def _download(self, url: str) -> bytes:
        (host, *_, file), received = url.split("/")[2:], bytearray()
        if host in self.unreachable:
            raise FileNotFoundError(url)
        try:
            with urllib.request.urlopen(url, timeout=20) as response, terminal.counting(f"{file}, bytes", None) as add:
                while chunk := response.read(1 << 18):
                    received += chunk
                    add(len(chunk))
                    if len(received) > MAX_BYTES:
                        raise ValueError(f"more than {MAX_BYTES} bytes")
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            log.warning("cannot reach %s: %s", host, getattr(error, "reason", error))
            self.unreachable.add(host)
            raise FileNotFoundError(url) from error
        return bytes(received)


def _either(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def _read(*candidates: Path) -> bytes:
    """The first of these files that is there."""
    for path in candidates:
        if path.is_file():
            return path.read_bytes()
    raise FileNotFoundError(candidates[0])


def _verified(raw: bytes, sha256: str) -> bytes:
    """The content of a file that may be gzipped; a ValueError where it is not the right one."""
    content = unpacked(raw)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"its sha256 is not {sha256[:12]}… ({len(content)} bytes)")
    return content


def _unpack(spec: IDXSet, scratch: Path) -> Path:
    """Downloads and unpacks Debian's package once, below `scratch`; without package lists, downloads these, too."""
    tree = scratch / "package"
    files = tree / spec.system_dir.lstrip("/")
    if tree.exists():
        return files
    tree.mkdir()
    log.warning("downloading Debian's package %s", spec.debian_package)
    lists, cache = scratch / "apt" / "lists", scratch / "apt" / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    quiet = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=20"]
    own = [*quiet, "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
    download = ["download", spec.debian_package]
    run = functools.partial(subprocess.run, cwd=scratch, capture_output=True, text=True, timeout=300)
    try:
        if run([*quiet, *download]).returncode != 0:
            run([*own, "update"], check=True)
            run([*own, *download], check=True)
        (archive,) = scratch.glob("*.deb")
        run(["dpkg-deb", "-x", str(archive), str(tree)], check=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise ValueError(reason) from error
    return files
