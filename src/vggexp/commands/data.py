"""python -m vggexp.data [data.root=FOLDER] [data.cache_dir=FOLDER]      obtains and verifies the set, and no more."""

import logging
import sys

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vggexp.config import compose
from vggexp.data import idx
from vggexp.errors import UserError
from vggexp.system import paths


def main() -> int:
    """Returns the exit code."""
    logging.basicConfig(format="%(message)s")
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    try:
        (cfg,), _ = compose.configs(compose.parse(sys.argv[1:]))
        known = cfg.data.target == "vggexp.data.FashionMNIST"  # spares the import of Lightning
        spec = idx.FASHION_MNIST if known else _source(cfg.data.target)
        with Progress(TextColumn("{task.description:24}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()) as bar:
            tasks = {name: bar.add_task(name, total=None) for name in spec.sha256}
            files = idx.obtain(
                spec,
                cfg.data.root,
                cfg.data.cache_dir,
                progress=lambda name, count: bar.update(tasks[name], advance=count),
            )
            for name, content in files.items():
                bar.update(tasks[name], total=len(content), completed=len(content))
    except UserError as error:
        return compose.fail(error)
    print(f"{spec.name}: {len(files)} files verified in {paths.cache(cfg.data.cache_dir) / spec.name}")
    return 0


def _source(target: str) -> idx.IDXSet:
    from vggexp.config.instantiate import locate
    from vggexp.data.datamodule import FashionMNIST

    source: idx.IDXSet = locate(target, FashionMNIST).source
    return source


if __name__ == "__main__":
    sys.exit(main())
