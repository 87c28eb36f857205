"""python -m vggexp.predict run=PATH input=FILES [KEY=VALUE ...]

Names what pictures show.

  run         a run folder, a checkpoint file, or last: the newest run under outputs/
  input       PNG and JPEG files of any size, a folder of them, or an IDX file; several between commas, or a pattern
  invert      true for dark things on light ground (default: false). Fashion-MNIST shows light things on black, and a
              photograph on a white wall is nothing that the network has ever seen.
  format      table, csv or json (default: table, or what the ending of output says)
  output      a file for the predictions (default: the terminal)
  batch_size  pictures at a time (default: 256)
  device      auto, cpu, cuda or mps (default: auto)

Colours become grey by their luma; a picture that is not square is padded with black, and every picture is brought to
28×28 pixels, as the training images, before it is enlarged for the network. A file that cannot be read is named and
left out; the exit code is then 1.
"""

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vggexp.commands import options
from vggexp.data import pictures as images
from vggexp.errors import UserError
from vggexp.inference import load as trained
from vggexp.system import terminal

if TYPE_CHECKING:
    import numpy as np
    import torch

Format = Literal["table", "csv", "json"]
Prediction = tuple[str, list[float]]
"""The name of a picture and the probabilities, by label."""


class Predict(options.Options):
    run: str
    input: str
    invert: bool = False
    format: Format | None = None
    output: Path | None = None
    batch_size: int = Field(default=256, ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(args: list[str]) -> int:
    """Returns the exit code."""
    console = terminal.console(stderr=True)
    refused: list[Path] = []

    def refuse(path: Path, reason: str) -> None:
        refused.append(path)
        console.print(f"vggexp: {path}: {reason}; left out", soft_wrap=True, markup=False)

    given, overrides = options.parse(Predict, args, ("allowed_packages",))
    paths = images.files(given.input)
    found = trained.load(given.run, overrides)
    pictures = images.read(_watched(paths, console), given.invert, refuse)
    predictions = predict(found, pictures, given.batch_size, _device(given.device))
    suffix = given.output.suffix[1:] if given.output else ""
    form: Format = given.format or (suffix if suffix in ("csv", "json") else "table")  # type: ignore[assignment]
    with contextlib.ExitStack() as stack:
        file: IO[str] = sys.stdout
        if given.output:
            stack.enter_context(options.output(given.output.parent))
            file = stack.enter_context(open(given.output, "w", newline="", encoding="utf-8"))
        _write(predictions, found.classes, form, file)
    if refused:
        print(f"vggexp: {len(refused)} of {len(paths)} files could not be read", file=sys.stderr)
    return 1 if refused else 0


def predict(
    found: trained.Trained, pictures: Iterable[tuple[str, "np.ndarray"]], batch_size: int, device: "torch.device"
) -> Iterator[Prediction]:
    """The probabilities of named (28, 28) uint8 images, read and scored a batch at a time."""
    import numpy as np
    import torch

    from vggexp.data.resize import prepared

    net = found.module.predictor.to(device)
    stream = iter(pictures)
    while batch := list(itertools.islice(stream, batch_size)):
        names, arrays = zip(*batch, strict=True)
        grey = torch.from_numpy(np.stack(arrays)).to(device)
        with torch.inference_mode():
            logits = net(prepared(grey, found.cfg.model.image_size))
        yield from zip(names, logits.softmax(dim=1).tolist(), strict=True)


def _write(predictions: Iterator[Prediction], classes: tuple[str, ...], form: Format, file: IO[str]) -> None:
    ranked = ((name, row, sorted(range(len(row)), key=row.__getitem__, reverse=True)) for name, row in predictions)
    names = dict(enumerate(classes))
    if form == "csv":
        writer = csv.writer(file)
        writer.writerow(["file", "class", "probability", *classes])
        writer.writerows([name, names.get(best[0], best[0]), row[best[0]], *row] for name, row, best in ranked)
    elif form == "json":
        lines = (
            {
                "file": name,
                "class": names.get(best[0], best[0]),
                "probability": row[best[0]],
                "probabilities": {str(names.get(n, n)): value for n, value in enumerate(row)},
            }
            for name, row, best in ranked
        )
        separator = "["
        for line in lines:
            file.write(f"{separator}\n{json.dumps(line)}")
            separator = ","
        file.write("\n]\n" if separator == "," else "[]\n")
    else:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("file", "class", "probability", "next", "after"):
            table.add_column(column, overflow="fold", justify="right" if column == "probability" else "left")
        for name, row, best in ranked:
            others = [f"{names.get(n, n)} {row[n]:.1%}" for n in best[1:3]]
            table.add_row(name, str(names.get(best[0], best[0])), f"{row[best[0]]:.1%}", *others)
        width = None if file.isatty() else 140
        Console(file=file, highlight=False, width=width).print(table)


def _watched(paths: list[Path], console: Console) -> Iterable[Path]:
    """With a progress bar, where there is somebody to see it."""
    return track(paths, "reading", console=console, disable=len(paths) < 2 or not console.is_terminal)


def _device(name: str) -> "torch.device":
    import torch

    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return best or torch.device("cpu")
    if name != "cpu" and (best is None or best.type != name):
        raise UserError(f"device={name}: is not here; set device=auto")
    return torch.device(name)
