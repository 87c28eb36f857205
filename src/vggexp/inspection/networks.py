"""What networks cost side by side: tables and a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.schema import Config
from vggexp.inspection import figures
from vggexp.inspection.cost import Cost, Measured
from vggexp.system import files, terminal

Columns = dict[str, Callable[[Any], str] | None]
"""The columns of a table, each with how the terminal prints it; None: only the file has it."""


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _exactly(count: int) -> str:
    return f"{_millions(count)} ({count:,})"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


LAYER: Columns = {"layer": str, "kind": str, "output shape": str, "parameters": "{:,}".format}
LAYER |= {"MACs": _millions, "activation bytes": _mib}
TOTAL: Columns = {"network": str, "resize": None, "batch size": None, "parameters": _exactly, "MACs": _exactly}
TOTAL |= {"activation bytes": _mib, "estimated training bytes": _mib}
MEASURED: Columns = {"measured training bytes": _mib, "measured seconds per step": "{:.3f}".format}
MEASURED |= {"images per second": "{:,.0f}".format}


class Network(NamedTuple):
    """A network and what it costs."""

    name: str
    cfg: Config
    cost: Cost
    measured: Measured | None

    def layers(self) -> list[list[Any]]:
        """Rows of LAYER's columns."""
        return [[*layer[:2], "×".join(map(str, layer.shape)), *layer[3:]] for layer in self.cost.layers]

    def total(self) -> list[Any]:
        """The row of TOTAL's columns and, where the network was measured, of MEASURED's."""
        batch, found = self.cfg.data.batch_size, self.measured
        row = [self.name, self.cfg.data.size, batch, *self.cost[1:]]  # the sums over the layers, and the peak
        return row + ([found.memory_bytes, found.seconds, batch / found.seconds] if found else [])


def show(columns: Columns, rows: Sequence[Sequence[Any]], left: int = 1) -> None:
    """Prints a table on the terminal."""
    shown = [(n, form) for n, form in enumerate(columns.values()) if form]
    header = [name.removesuffix(" bytes") for name, form in columns.items() if form]
    texts = [[form(row[n]) if n < len(row) else "" for n, form in shown] for row in rows]
    terminal.console().print(terminal.table(header, texts, left=left))


def write(networks: Sequence[Network], folder: Path, measured: bool) -> None:
    """Writes `NETWORK.csv` with the layers of each, and `networks.csv` and `networks.png` with the totals of all."""
    for network in networks:
        files.write_csv(folder / f"{network.name.replace(' ', '-')}.csv", list(LAYER), network.layers())
    columns = [*TOTAL, *(MEASURED if measured else ())]
    files.write_csv(folder / "networks.csv", columns, [network.total() for network in networks])
    panels: dict[str, dict[str, list[float | None]]] = {
        "parameters (millions)": {"": [network.cost.parameters / 1e6 for network in networks]},
        "forward GMACs per image": {"": [network.cost.macs / 1e9 for network in networks]},
        "training memory (GiB)": {"estimated": [network.cost.memory_bytes / 2**30 for network in networks]},
    }
    if measured:
        runs = [network.measured for network in networks]
        panels["training memory (GiB)"]["measured"] = [run and run.memory_bytes / 2**30 for run in runs]
        panels["seconds per training step"] = {"": [run and run.seconds for run in runs]}
    figures.bars([network.name for network in networks], panels, folder / "networks.png")
