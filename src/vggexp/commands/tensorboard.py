"""vggexp tensorboard [FOLDER | last] ... [port=6006]

Opens TensorBoard on this machine (http://localhost:6006) for runs and sweeps; without a folder, for all under outputs/.

  vggexp tensorboard         all runs
  vggexp tensorboard last    the sweep or run that was started last

  FOLDER    of a run, of a sweep, or of anything above them
  last      the sweep or run that was started last
  port      by default the first from 6006 on that is free

A run is called by what sets it apart, not by the time of day. Runs that begin later appear by themselves.
"""

import io
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from vggexp.commands import options
from vggexp.errors import UserError
from vggexp.report import columns, names
from vggexp.runs import read, select
from vggexp.system import paths, terminal


class Port(options.Options):
    port: int | None = None


def main(args: list[str]) -> int:
    """Returns the exit code, when TensorBoard has been stopped."""
    named, others = options.folders(args)
    given, _ = options.parse(Port, others)
    places = select.places(named, [paths.outputs()])
    with tempfile.TemporaryDirectory(prefix="vggexp-tensorboard-", ignore_cleanup_errors=True) as folder:
        shown = _link(places, Path(folder), {})
        threading.Thread(target=_keep_linking, args=(places, Path(folder), shown), daemon=True).start()
        from tensorboard import program

        server = program.TensorBoard()
        port = [] if given.port is None else ["--port", str(given.port)]
        flags = ["--logdir", folder, "--host", "localhost", "--reload_interval", "5", *port]
        server.configure(argv=["tensorboard", *flags])
        try:
            with redirect_stderr(io.StringIO()):  # takes a note that fast loading is an experiment
                url = server.launch()
        except program.TensorBoardServerException as error:
            raise UserError(f"port={given.port}: {error.msg}", 1) from error
        terminal.say(f"TensorBoard: {url}#custom_scalars (Ctrl-C ends it)")
        sys.stdout.flush()
        while True:
            time.sleep(1)  # not for an event: on Windows, Ctrl-C would wait for it


def _keep_linking(places: Sequence[Path], folder: Path, shown: columns.Columns) -> None:
    while not threading.Event().wait(10):
        shown = _link(places, folder, shown)


def _link(places: Sequence[Path], folder: Path, shown: columns.Columns) -> columns.Columns:
    """Links the runs, and writes which columns their table has where it has `shown` others; returns the columns."""
    names.link(places, folder)
    wanted = columns.columns(read.find(places))
    if wanted != shown:
        columns.write(wanted, folder)
    return wanted
