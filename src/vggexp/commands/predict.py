"""vggexp predict run=PATH input=FILES [KEY=VALUE ...]

Names what pictures show: the five most probable classes of each.

  run         a run folder, a checkpoint file, or last: the newest run under outputs/
  input       pictures of any size (PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, PPM), a folder of them, or an IDX
              file; several between commas, a pattern such as photos/**/*.jpg, or - for one from standard input
  invert      true for dark things on light ground (default: false). Fashion-MNIST shows light things on black, and a
              photograph on a white wall is nothing that the network has ever seen.
  format      table, csv or json (default: table, or what the ending of output says)
  output      a file for the predictions (default: the terminal)
  batch_size  pictures at a time (default: 256)
  device      auto, cpu, cuda or mps (default: auto)

Pictures are made like the images that the network was trained on: gray or colored, of their size, and square as
data.fit says. For Fashion-MNIST, colors become gray by their luma, and a picture is padded with black and brought to
28×28 pixels before it is enlarged for the network. A file that cannot be read is named and left out; the exit code is
then 1.
"""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import numpy as np
from pydantic import Field
from rich.progress import track

from vggexp.commands import options
from vggexp.data import pictures
from vggexp.errors import UserError
from vggexp.inference import load
from vggexp.runs import layout
from vggexp.system import files, hardware, terminal, text

Format = Literal["table", "csv", "json"]
TOP = 5  # classes that are listed of each picture, the most probable first


class Predict(options.Options):
    run: str
    input: str
    invert: bool = False
    format: Format | None = None
    output: Path | None = None
    batch_size: int = Field(default=256, ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(args: list[str]) -> int:
    """Returns the exit code: 1 if a file could not be read."""
    console = terminal.console(stderr=True)
    refused: list[Path] = []

    def note(path: Path, words: str) -> None:
        console.print(f"vggexp: {path}: {words}", soft_wrap=True)

    def refuse(path: Path, reason: str) -> None:
        refused.append(path)
        note(path, f"{reason}; left out")

    given, overrides = options.parse(Predict, args, ("allowed_packages",))
    paths = pictures.files(given.input, note)
    if given.output is not None:
        layout.check_output(given.output, "output")
    if given.output and any(given.output.resolve() == path.resolve() for path in paths):
        raise UserError(f"output={given.output}: is one of the pictures; name another file")
    network = load.load(given.run, overrides)
    from vggexp.inference.predict import form_of, predict

    hidden = len(paths) < 2 or not console.is_terminal
    device = hardware.device(given.device)
    if given.device not in ("auto", device.type):
        raise UserError(f"device={given.device}: is not available here; set device=auto")
    prepared = form_of(network, given.invert)
    on_black = prepared.channels == 1 and network.cfg.data.target != "vggexp.data.Folder" and not given.invert
    images = pictures.read(track(paths, "reading", console=console, disable=hidden), prepared, refuse, note)
    light: list[str] = []

    def seen() -> Iterator[tuple[str, np.ndarray]]:
        for name, image in images:
            light.extend([name] if on_black and pictures.looks_inverted(image) else [])
            yield os.fsencode(name).decode("utf-8", "backslashreplace"), image

    predictions = predict(network, seen(), given.batch_size, device)
    suffix = given.output.suffix[1:] if given.output else ""
    form: Format = given.format or (suffix if suffix in ("csv", "json") else "table")  # type: ignore[assignment]
    with contextlib.ExitStack() as stack:
        file: IO[str] = sys.stdout
        if given.output:
            stack.enter_context(files.writing(given.output.parent, f"output={given.output}"))
            temporary = stack.enter_context(files.replacing(given.output))
            file = stack.enter_context(open(temporary, "w", newline="", encoding="utf-8"))
        _write(predictions, network.classes, form, file)
    if light:
        others = f", as {len(light) - 1} more have" if len(light) > 1 else ""
        note(Path(light[0]), f"has a light border{others}; if it shows dark things on light ground, set invert=true")
    if refused:
        print(f"vggexp: {len(refused)} of {len(paths)} files could not be read", file=sys.stderr)
    return 1 if refused else 0


def _write(found: Iterator[tuple[str, list[float]]], classes: tuple[str, ...], form: Format, file: IO[str]) -> None:
    ranked = ((name, row, sorted(range(len(row)), key=row.__getitem__, reverse=True)) for name, row in found)
    top = min(TOP, len(classes))
    if form == "csv":
        writer = csv.writer(file)
        named = list(map(text.cell, classes))
        numbers = ["", *(f"_{n}" for n in range(2, top + 1))]
        writer.writerow(["file", *(f"{word}{n}" for n in numbers for word in ("class", "probability")), *named])
        for name, row, best in ranked:
            writer.writerow([text.cell(name), *(each for n in best[:top] for each in (named[n], row[n])), *row])
    elif form == "json":
        answers = []
        for name, row, best in ranked:
            top_five = [{"class": classes[n], "probability": row[n]} for n in best[:top]]
            probabilities = dict(zip(classes, row, strict=True))
            answers.append({"file": name, **top_five[0], "top": top_five, "probabilities": probabilities})
        file.write(json.dumps(answers, indent=1) + "\n")
    else:
        rows = [
            [name, classes[best[0]], f"{row[best[0]]:.1%}", *(f"{classes[n]} {row[n]:.1%}" for n in best[1:top])]
            for name, row, best in ranked
        ]
        names = ("file", "class", "probability", "second", "third", "fourth", "fifth")
        table = terminal.table(names[: top + 2], rows, left=2)
        terminal.console(file=file).print(table)
