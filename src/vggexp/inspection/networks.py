"""What networks cost side by side: tables and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.schema import Config
from vggexp.inspection import figures
from vggexp.inspection.cost import Cost, Layer, Measured
from vggexp.system import files

LAYER = ("layer", "kind", "output shape", "parameters", "MACs", "activation bytes")
TOTAL = ("network", "resize", "batch size", "parameters", "MACs", "activation bytes", "estimated training bytes")
MEASURED = ("measured training bytes", "measured seconds per step", "images per second")


class Network(NamedTuple):
    """A network and what it costs."""

    name: str
    cfg: Config
    cost: Cost
    measured: Measured | None

    @property
    def images_per_second(self) -> float | None:
        return self.cfg.data.batch_size / self.measured.seconds if self.measured else None


def layer_row(layer: Layer) -> list[Any]:
    """The values of LAYER's columns."""
    shape = "×".join(map(str, layer.shape))
    return [layer.name, layer.kind, shape, layer.parameters, layer.macs, layer.activation_bytes]


def write(networks: Sequence[Network], folder: Path, measured: bool) -> None:
    """Writes `NETWORK.csv` with the layers of each, and `networks.csv` and `networks.png` with the totals of all."""
    rows = []
    for network in networks:
        name, cfg, cost, found = network
        files.write_csv(folder / f"{name.replace(' ', '-')}.csv", LAYER, map(layer_row, cost.layers))
        row = [name, cfg.data.resize, cfg.data.batch_size, *cost[1:]]  # the sums over the layers, and the peak
        rows.append(row + ([found.memory_bytes, found.seconds, network.images_per_second] if found else []))
    files.write_csv(folder / "networks.csv", (*TOTAL, *MEASURED) if measured else TOTAL, rows)
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
