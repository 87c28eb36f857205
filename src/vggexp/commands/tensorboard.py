"""vggexp tensorboard [FOLDER | last] ... [port=6006]

Opens TensorBoard on this machine (http://localhost:6006) for runs and sweeps; without a folder, for all under outputs/.

  vggexp tensorboard         all runs
  vggexp tensorboard last    the sweep or run that was started last

  FOLDER    of a run, of a sweep, or of anything above them
  last      the sweep or run that was started last
  port      by default the first from 6006 on that is free

A run is called by what sets it apart, not by the time of day. Runs that begin later appear by themselves.
"""

import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from vggexp.commands import options
from vggexp.errors import UserError
from vggexp.report import names
from vggexp.runs import select
from vggexp.system import paths, terminal


class Port(options.Options):
    port: int | None = None


def main(args: list[str]) -> int:
    """Returns the exit code, when TensorBoard has been stopped."""
    named, others = options.folders(args)
    given, _ = options.parse(Port, others)
    places = select.places(named, [paths.outputs()])
    with tempfile.TemporaryDirectory(prefix="vggexp-tensorboard-") as folder:
        names.link(places, Path(folder))
        threading.Thread(target=_keep_linking, args=(places, Path(folder)), daemon=True).start()
        from tensorboard import program

        server = program.TensorBoard()
        port = [] if given.port is None else ["--port", str(given.port)]
        flags = ["--logdir", folder, "--host", "localhost", "--reload_interval", "5", *port]
        server.configure(argv=["tensorboard", *flags])
        try:
            url = server.launch()
        except program.TensorBoardServerException as error:
            raise UserError(f"port={given.port}: {error.msg}", 1) from error
        terminal.say(f"TensorBoard: {url} (Ctrl-C ends it)")
        sys.stdout.flush()
        threading.Event().wait()
        return 0


def _keep_linking(places: Sequence[Path], folder: Path) -> None:
    while not threading.Event().wait(10):
        names.link(places, folder)
