"""Runs named by what sets them apart, in a folder that TensorBoard looks into."""

from collections.abc import Sequence
from pathlib import Path

from vggexp.runs import read as runs
from vggexp.runs.read import Run


def names(found: Sequence[Run]) -> dict[str, Run]:
    """Runs by what sets them apart from those beside them, below the name of their sweep if there are several."""
    beside: dict[Path, list[Run]] = {}
    for run in found:
        if run.status != "waiting":
            beside.setdefault(run.folder.parent, []).append(run)
    named: dict[str, Run] = {}
    for parent, together in beside.items():
        in_sweep = runs.is_sweep(parent)
        axes = runs.varied([run.config for run in together]) if in_sweep else []
        for run in together:
            parts = [f"{axis.rpartition('.')[2]}={runs.text(run.config.get(axis))}" for axis in axes]
            name = " ".join(parts).replace("/", "-") or run.folder.name
            name = f"{parent.name}/{name}" if in_sweep and len(beside) > 1 else name
            named[name if name not in named else f"{name} ({run.folder.name})"] = run
    return named


def link(places: Sequence[Path], folder: Path) -> None:
    """Links each run that is not linked yet under its name in `folder`."""
    for name, run in names(runs.find(places)).items():
        target = folder / name
        if not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(run.folder.resolve(), target_is_directory=True)
