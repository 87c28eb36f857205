"""Train, sweep, find, load and compare runs from Python, as the command line does.

Training happens in a process of its own, which the same command line starts: a notebook, an event loop or a thread
makes no difference, and the numbers are those of the command. A mistake raises `UserError` with the command's text.
"""

import base64
import codecs
import html
import io
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from vggexp.errors import UserError
from vggexp.runs import layout, query, read, select
from vggexp.system import paths, signals, terminal

if TYPE_CHECKING:
    from vggexp.inference.load import Network
    from vggexp.report.collect import Report
    from vggexp.report.figures import Figure


class Run(read.Run):
    """A run as it was when it was read: `folder`, `status`, `reason`, `result`, and `config` with flat keys."""

    @property
    def metrics(self) -> Any:
        """What was logged at the end of each epoch, as a frame; see `frame`."""
        return frame(read.epochs(self.folder))

    def plot(self, *names: str) -> "Figure":
        """Curves of what was logged at the end of each epoch, by default the losses and the accuracies."""
        from vggexp.report import figures

        return figures.curves_of_run(read.epochs(self.folder), names)

    def load(self, *overrides: str) -> "Network":
        """The network that the run has trained; see `load`."""
        return load(self.folder, *overrides)


class Runs(list[Run]):
    """Several runs."""

    def to_frame(self) -> Any:
        """A row for each run: folder, status, the keys that vary, and its numbers; see `frame`."""
        axes = read.varied([run.config for run in self])
        names = dict.fromkeys(name for run in self for name in run.result if run.number(name) is not None)
        rows = []
        for run in self:
            row = {"run": str(run.folder), "status": run.status, **{axis: run.config.get(axis) for axis in axes}}
            rows.append(row | {name: run.number(name) for name in names})
        return frame(rows)


class Comparison:
    """Runs side by side, as `vggexp report` puts them; a notebook shows the tables and the figures."""

    def __init__(self, report: "Report") -> None:
        self.report = report

    @property
    def tables(self) -> list[Any]:
        """For each part of the report a frame of its groups, the best first: means and deviations over seeds."""
        return [frame([group.values | group.numbers() for group in part.groups]) for part in self.report.parts]

    @property
    def figures(self) -> "dict[str, Figure]":
        """The figures by name, for which there are enough runs."""
        from vggexp.report import figures

        drawn = [figures.drawn(part) for part in self.report.parts]
        return {f"{name}{f' {n}' * (n > 0)}": figure for n, part in enumerate(drawn) for name, figure in part.items()}

    def write(self, folder: str | Path) -> Path:
        """Writes `report.html`, `report.md`, `runs.csv` and `figures/`; returns the path of the page."""
        from vggexp.report import tables

        Path(folder).mkdir(parents=True, exist_ok=True)
        tables.write(self.report, Path(folder))
        return Path(folder) / "report.html"

    def _repr_html_(self) -> str:
        from vggexp.report import tables

        shown: list[str] = []

        def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
            lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in [header, *rows])
            shown.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")

        for part in self.report.parts:
            tables.tables_of(part, table, lambda line: shown.append(f"<p>{html.escape(line)}</p>"))
        for name, figure in self.figures.items():
            data = base64.b64encode(figure._repr_png_()).decode()
            shown.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
        return "\n".join(shown)


def train(*arguments: str) -> Run:
    """Trains one network, or with `resume=` trains one further, as `vggexp train ARGUMENTS` does.

    Ctrl-C, or a notebook's stop button, saves the run and returns it with the status `interrupted`.

    Raises:
        UserError: if the arguments are refused, or the run fails.
    """
    if several := {"-m", "--multirun"}.intersection(arguments):
        raise UserError(f"{several.pop()}: trains several networks; use vggexp.sweep")
    code, folder, said = _command(arguments)
    run = None if folder is None else Run(*read.read(folder))
    if run is not None and (code == 0 or (code > 128 and run.status == "interrupted")):
        return run
    failed = f"{run.folder}: {run.status}: {run.reason}" if run else f"{' '.join(arguments)}: trained nothing"
    raise UserError(said or failed, code or 2)


def sweep(*arguments: str) -> Runs:
    """Trains every combination of values, as `vggexp train --multirun ARGUMENTS` does.

    A run that fails says so in its `status` and stops no other. Ctrl-C saves and returns what there is.

    Raises:
        UserError: if the arguments are refused, or the launcher fails.
    """
    code, folder, said = _command(["--multirun", *arguments])
    if folder is None or (said and 0 < code < 128):
        raise UserError(said or f"{' '.join(arguments)}: trained nothing", code or 2)
    return runs(folder)


def runs(*folders: str | Path, where: str | None = None) -> Runs:
    """The runs in folders and below, by default of all outputs; `where` holds conditions, as in `vggexp runs`."""
    places = select.places(list(map(str, folders)), [paths.outputs()])
    return Runs(Run(*run) for run in query.select(read.find(places), where))


def load(run: str | Path | read.Run, *overrides: str) -> "Network":
    """The network of a run, a run folder, a checkpoint file, or `last`; what its file says is not trusted.

    Args:
        overrides: of its config, such as `allowed_packages=[mine]` for a network from a package of your own.
    """
    from vggexp.config import compose
    from vggexp.inference import load as loading

    for override in overrides:
        if not override.startswith(loading.OVERRIDABLE):
            raise UserError(
                f"{override}: belongs to what was trained; only {', '.join(loading.OVERRIDABLE)} may change"
            )
    return loading.load(str(run.folder if isinstance(run, read.Run) else run), compose.values(list(overrides)))


def compare(found: Iterable[read.Run], by: str | Sequence[str] | None = None, against: str | None = None) -> Comparison:
    """Puts runs side by side, as `vggexp report` does.

    Args:
        by: the keys whose values make the groups, such as `data.resize`; by default all that vary but the seed.
        against: conditions that one group meets, with which all others are compared, beside the best.
    """
    from vggexp.report import collect

    members = list(found)
    keys = [by] if isinstance(by, str) else by
    choices = collect.Choices(group=["none"], by=keys, against=against)
    return Comparison(collect.collect([run.folder for run in members[:1]], members, choices))


def frame(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows as a frame of pandas, or of polars where pandas is not installed.

    Raises:
        UserError: if neither is installed.
    """
    if find_spec("pandas"):
        import pandas

        return pandas.DataFrame(rows)
    if find_spec("polars"):
        import polars

        return polars.DataFrame(rows, strict=False, infer_schema_length=None)
    raise UserError(f"pandas: is not installed; {paths.install('notebook')}", 1)


def _command(arguments: Sequence[str]) -> tuple[int, Path | None, str]:
    """Runs `vggexp train`, printing what it prints.

    Returns:
        The exit code, the folder of the run or the sweep if one was begun, and the last message, without `vggexp: `.
    """
    with TemporaryDirectory() as temporary:
        told = Path(temporary, "folder")
        env = {**os.environ, layout.TOLD: str(told), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        env["PYTHONIOENCODING"] = "utf-8"
        env.pop("FORCE_COLOR", None)  # with which a notebook pretends to be a terminal
        if "--multirun" not in arguments and (sys.stdout.isatty() or "ipykernel" in sys.modules):
            env[terminal.BAR] = "text"
        command = [sys.executable, "-m", "vggexp", "train", *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        pipes["creationflags"] = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        process = subprocess.Popen(command, env=env, **pipes)
        messages: list[str] = []
        errors = Thread(target=_errors, args=(process.stderr, messages), daemon=True)
        errors.start()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while True:
                try:
                    if not (data := process.stdout.read1(2**16)):  # type: ignore[union-attr]
                        break
                    sys.stdout.write(decoder.decode(data))
                    sys.stdout.flush()
                except KeyboardInterrupt:
                    process.send_signal(signals.INTERRUPT)  # it saves and ends
            code = process.wait()
            errors.join()
        finally:
            process.terminate()  # where it still runs, because of an error here: it saves and ends
        folder = Path(told.read_text("utf-8")) if told.exists() else None
    if messages and (folder is not None and (code == 0 or code > 128)):
        print(messages[-1], file=sys.stderr)
    return code, folder, messages[-1].removeprefix("vggexp: ") if messages else ""


def _errors(stream: IO[bytes], messages: list[str]) -> None:
    """Passes on what a command writes to its standard error, but its last message, which may be raised instead."""
    for line in io.TextIOWrapper(stream, "utf-8", "replace"):
        if not line.startswith("vggexp: "):
            sys.stderr.write(line)
            continue
        if messages:
            print(messages[-1], file=sys.stderr)
        messages.append(line.rstrip("\n"))
