"""Runs named by what sets them apart, in a folder that TensorBoard looks into."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vggexp.runs import layout
from vggexp.runs import read as runs
from vggexp.runs.read import Run
from vggexp.system import files, paths
from vggexp.system.text import clean

FORBIDDEN = r'[<>:"/\\|?*]' if paths.WINDOWS else "/"  # in a name
LONGEST = 120  # bytes of a name, of which a file system allows 255


def names(found: Sequence[Run]) -> dict[str, Run]:
    """Runs by what sets them apart from those beside them, below the name of their sweep if there are several."""
    begun = [run for run in found if run.status != "waiting"]
    labels, several = runs.labels(begun), len({run.folder.parent for run in begun}) > 1
    named: dict[str, Run] = {}
    for run in begun:
        parent = run.folder.parent
        in_sweep = runs.is_sweep(parent)
        name = _bounded((labels[run.folder] if in_sweep else "") or run.folder.name)
        name = f"{_bounded(parent.name)}/{name}" if in_sweep and several else name
        named[name if name not in named else f"{name} ({_bounded(run.folder.name)})"] = run
    return named


def _bounded(name: str) -> str:
    """A name that a file can have; one that has to be cut ends in digits that no other has."""
    name = re.sub(FORBIDDEN, "-", clean(name))
    data = name.encode(errors="surrogateescape")
    if len(data) <= LONGEST:
        return name
    return f"{data[:LONGEST].decode(errors='ignore')}… {hashlib.sha256(data).hexdigest()[:8]}"


def link(places: Sequence[Path], folder: Path) -> None:
    """Links each run that is not linked yet under its name in `folder`; where links are not allowed, copies it."""
    for name, run in names(runs.find(places)).items():
        target = folder / name
        if not target.is_symlink() and not run.reason.endswith(files.REMOVE):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.symlink_to(run.folder.resolve(), target_is_directory=True)
            except OSError:  # a usual user of Windows may not
                _copy(run.folder, target)


def _copy(run: Path, target: Path) -> None:
    """Copies what TensorBoard reads of a run; of events that were copied before, only those that have come since."""
    for file in (path for path in run.rglob("*") if path.is_file()):
        copy = target / (name := file.relative_to(run))
        if name.parts[0] in (layout.CHECKPOINTS, layout.CODE):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        how = "ab" if "tfevents" in name.name else "wb"
        with open(file, "rb", opener=files.no_link) as source, open(copy, how) as sink:
            source.seek(sink.tell())
            shutil.copyfileobj(source, sink)
