"""vggexp data [KEY=VALUE] ...

Finds or downloads the data set, verifies it and keeps it in the cache; trains nothing.

  data.root=FOLDER        a folder that holds the files, plain or .gz
  data.cache_dir=FOLDER   where to keep them; default: $VGGEXP_CACHE, else the user's cache folder
  data=NAME               another data set of conf/data
"""

import logging

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vggexp.config import compose
from vggexp.data import idx
from vggexp.system import paths, terminal


def main(args: list[str]) -> int:
    """Returns the exit code."""
    logging.basicConfig(format="%(message)s")
    cfg = compose.config(*args)
    spec = idx.FASHION_MNIST
    if cfg.data.target != "vggexp.data.FashionMNIST":  # else the import of Lightning is spared
        from vggexp.config.instantiate import locate
        from vggexp.data.datamodule import FashionMNIST

        spec = locate(cfg.data.target, FashionMNIST).source
    columns = TextColumn("{task.description:24}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=terminal.console()) as bar:
        tasks = {name: bar.add_task(name, total=None) for name in spec.sha256}

        def advance(name: str, count: int) -> None:
            bar.update(tasks[name], advance=count)

        files = idx.obtain(spec, cfg.data.root, cfg.data.cache_dir, fill=True, progress=advance)
        for name, content in files.items():
            bar.update(tasks[name], total=len(content), completed=len(content))
    terminal.say(f"{spec.name}: {len(files)} files verified in {paths.cache(cfg.data.cache_dir) / spec.name}")
    return 0
