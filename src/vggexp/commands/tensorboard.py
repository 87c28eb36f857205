"""vggexp tensorboard [FOLDER | last] ... [port=6006]

Opens TensorBoard on this machine (http://localhost:6006) for runs and sweeps; without a folder, for all under outputs/.

  FOLDER    of a run, of a sweep, or of anything above them
  last      the sweep or run that was started last
  port      another than the first that is free from 6006 on

A run is called by what sets it apart, not by the time of day. Runs that begin later appear by themselves.
"""

import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from vggexp.commands import options
from vggexp.errors import UserError
from vggexp.jobs import sweep
from vggexp.runs import read as runs
from vggexp.runs.read import Run
from vggexp.system import paths, terminal


class Port(options.Options):
    port: int | None = None


def main(args: list[str]) -> int:
    """Returns the exit code, when TensorBoard has been stopped."""
    named = [arg for arg in args if "=" not in arg or Path(arg).exists()]
    given = options.parse(Port, [arg for arg in args if arg not in named])[0]
    places = [sweep.latest() if name == "last" and not Path(name).exists() else Path(name) for name in named]
    places = places or [paths.outputs()]
    runs.find(places)
    with tempfile.TemporaryDirectory(prefix="vggexp-tensorboard-") as folder:
        link(places, Path(folder))
        threading.Thread(target=_keep_linking, args=(places, Path(folder)), daemon=True).start()
        return _serve(folder, given.port)


def _serve(folder: str, port: int | None) -> int:
    from tensorboard import program

    server = program.TensorBoard()
    where = ["--port", str(port)] if port is not None else []
    server.configure(argv=["tensorboard", "--logdir", folder, "--host", "localhost", "--reload_interval", "5", *where])
    try:
        url = server.launch()
    except program.TensorBoardServerException as error:
        raise UserError(f"port={port}: {error.msg}", 1) from error
    terminal.console().print(f"TensorBoard: {url} (Ctrl-C ends it)", soft_wrap=True)
    sys.stdout.flush()
    threading.Event().wait()
    return 0


def link(places: Sequence[Path], folder: Path) -> None:
    """Gives each run its name in a folder that TensorBoard looks into."""
    for name, run in names(runs.find(places)).items():
        target = folder / name
        if not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(run.folder.resolve(), target_is_directory=True)


def _keep_linking(places: Sequence[Path], folder: Path) -> None:
    while not threading.Event().wait(10):
        link(places, folder)


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
