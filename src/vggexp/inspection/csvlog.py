"""`metrics.csv`: what a run logs, one row for each call."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from vggexp.runs import layout, read
from vggexp.system import files


class CSVLogger(Logger):
    """Appends rows; when a new column appears, the file is replaced in one step."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        super().__init__()
        self.path = folder / layout.METRICS
        self.columns: list[str] = []
        self.rows: list[dict[str, float]] = []
        self._keep_below: float = first_step

    name = version = ""

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Does nothing: hyperparameters are in result.json."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.rows.append(values | {"step": len(self.rows) if step is None else step})

    @rank_zero_only
    def save(self) -> None:
        if self._keep_below < math.inf or {name for row in self.rows for name in row} - set(self.columns):
            rows = [row for row in read.rows(self.path) if float(row["step"]) < self._keep_below] + self.rows
            columns = sorted({name for row in rows for name in row})
            files.write_csv(self.path, columns, [[row.get(name) for name in columns] for row in rows])
            self.columns, self._keep_below = columns, math.inf
        elif self.rows:
            with open(self.path, "a", newline="", encoding="utf-8", opener=files.no_link) as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerows(self.rows)
        self.rows = []

    def at(self, step: int) -> list[dict[str, float]]:
        """What the file says of a step."""
        found = [row for row in read.rows(self.path) if row.pop("step") == str(step)]
        return [{name: float(text) for name, text in row.items()} for row in found]

    @rank_zero_only
    def sync(self) -> None:
        """Saves, and waits until the rows are on the disk."""
        self.save()
        files.sync(self.path)

    def finalize(self, status: str) -> None:
        self.save()
