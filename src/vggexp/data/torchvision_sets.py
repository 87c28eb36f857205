"""The sets that torchvision reads: MNIST, KMNIST, CIFAR-10 and CIFAR-100.

The sources, in this order: a folder that the user names, the cache, archives in that folder, torchvision's mirrors. The
md5 of every file is checked whenever it is used, so that nothing half-written is ever taken for complete.
"""

import errno
import functools
import logging
import os
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from vggexp.data.idx import parse, unpacked
from vggexp.data.source import Images, Source, Split
from vggexp.errors import UserError, described
from vggexp.system import paths
from vggexp.system.files import writing

log = logging.getLogger("vggexp.data")

TIMEOUT = 20.0  # seconds without an answer from a mirror


@dataclass(kw_only=True)
class TorchvisionSet(Source):
    """One of torchvision's sets, (N, 1, 28, 28) or (N, 3, 32, 32); `root` holds its archives, or its own layout."""

    dataset: Literal["MNIST", "KMNIST", "CIFAR10", "CIFAR100"]

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(getattr(self._reader, "classes", None) or self._reader(self._folder, train=False).classes)

    @property
    def channels(self) -> int:
        return 1 if self.dataset.endswith("MNIST") else 3

    def load(self, split: Split) -> Images | None:
        if split == "val":
            return None
        files = self._files(split)
        if self.channels == 1:  # torchvision would read extracted files, which it never verifies
            images, labels = (
                torch.tensor(parse(unpacked((self._folder / name).read_bytes()))) for name in sorted(files)
            )
            return Images(images.unsqueeze(1), labels.long(), files)
        read = self._reader(self._folder, train=split == "train")  # which unpickles a file only if its md5 is right
        return Images(torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(read.targets), files)

    @property
    def _reader(self) -> Any:
        """torchvision's class, whose import takes a second."""
        return getattr(import_module("torchvision.datasets"), self.dataset)

    def _files(self, split: Split) -> dict[str, str]:
        """The md5 of each file of one part, by its path in a folder that holds the set."""
        reader = self._reader
        if self.channels == 1:
            return {name: md5 for name, md5 in reader.resources if name.startswith("train") == (split == "train")}
        files = [*getattr(reader, f"{split}_list"), (reader.meta["filename"], reader.meta["md5"])]
        return {f"{reader.base_folder}/{name}": md5 for name, md5 in files}

    @functools.cached_property
    def _folder(self) -> Path:
        """A folder that holds the whole set; fills the cache if there is none."""
        reader, cache = self._reader, paths.cache(self.cache_dir) / self.dataset.lower()
        if self.channels == 1:  # the md5 and the addresses of each file that torchvision downloads
            archives = {name: (md5, [f"{mirror}{name}" for mirror in reader.mirrors]) for name, md5 in reader.resources}
        else:
            archives = {reader.filename: (reader.tgz_md5, [reader.url])}
        if self.root is not None and not os.path.isdir(self.root):  # noqa: PTH112  Path's may raise
            raise UserError(f"data.root={self.root}: no such folder; name one that holds {', '.join(archives)}")
        folders = [Path(self.root), Path(self.root, self.dataset, "raw"), cache] if self.root else [cache]
        for folder in folders:
            if self._is_whole(folder):
                return folder
        with writing(cache, f"data.cache_dir={cache}"), FileLock(cache / ".lock"), ExitStack() as stack:
            stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(TIMEOUT)  # because torchvision sets no limit
            for name, (md5, urls) in archives.items() if not self._is_whole(cache) else ():
                _bring(name, md5, folders, urls, cache)
        if self._is_whole(cache):
            return cache
        searched = [*map(str, folders), *(url for _, urls in archives.values() for url in urls)]
        raise UserError(
            f"data.dataset={self.dataset}: not found, or with a wrong md5, in {', '.join(searched)}; "
            f"copy {', '.join(archives)} into a folder and set data.root=FOLDER",
            1,
        )

    def _is_whole(self, folder: Path) -> bool:
        return all(_is_right(folder / name, md5) for name, md5 in (self._files("train") | self._files("test")).items())


def _bring(name: str, md5: str, folders: list[Path], urls: list[str], cache: Path) -> None:
    """Puts an archive into the cache, from a folder or the mirrors; one that holds several files is extracted."""
    utils = import_module("torchvision.datasets.utils")
    if (found := next((folder / name for folder in folders if _is_right(folder / name, md5)), None)) is None:
        for url in urls:
            try:
                utils.download_url(url, cache, name, md5)
                found = cache / name
                break
            except (HTTPException, RuntimeError, OSError) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
                log.warning("cannot download %s: %s", url, described(error))
    elif found.parent != cache and ".tar" not in name:
        shutil.copyfile(found, cache / name)
    if found and ".tar" in name:
        utils.extract_archive(str(found), str(cache))


def _is_right(path: Path, md5: str) -> bool:
    """Whether a file is there and has this md5; a wrong one is reported."""
    try:
        if not path.is_file():
            return False
        if import_module("torchvision.datasets.utils").check_md5(path, md5):
            return True
        reason: str | None = f"its md5 is not {md5}"
    except OSError as error:
        reason = error.strerror
    log.warning("refused %s: %s", path, reason)
    return False
