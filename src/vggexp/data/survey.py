"""What is in a data set, for a reader, and the set as a folder of pictures."""

import contextlib
import re
import warnings
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vggexp.data import pictures
from vggexp.data.datamodule import DataModule
from vggexp.data.source import digest, distinct
from vggexp.errors import UserError
from vggexp.system import terminal

MOST_KINDS = 5  # of pictures that are told apart


def counts(data: DataModule) -> list[list[int]]:
    """How many training, validation and test images each class has."""
    parts = [data.labels(name).bincount(minlength=len(data.classes)).tolist() for name in ("train", "val", "test")]
    return [list(row) for row in zip(*parts, strict=True)]


def kinds(data: DataModule) -> str:
    """The pictures' sizes and color modes, from the beginnings of their files; empty where images have none."""
    files = [file for part in distinct(data.parts) for file in part.files]
    sizes: set[tuple[int, int]] = set()
    modes: Counter[str] = Counter()
    root = Path(data.source.root or "").expanduser()
    with terminal.counting("looking at pictures", len(files)) as add, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's of large pictures
        for file in files:
            with contextlib.suppress(OSError), Image.open(root / file, formats=pictures.FORMATS) as picture:
                sizes.add(picture.size)
                modes[picture.mode] += 1
            add(1)
    if not sizes:
        return ""
    (wide, high), (wider, higher) = map(min, zip(*sizes, strict=True)), map(max, zip(*sizes, strict=True))
    shown = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common(MOST_KINDS))
    return f"{wide} to {wider} pixels wide, {high} to {higher} high, {len(sizes):,} sizes; {shown}"


def repeated(data: DataModule) -> str:
    """How many images are the same, pixel by pixel, as an earlier one of any part, and how many of these by label."""
    first: dict[int, tuple[int, str]] = {}
    same, others = 0, []
    for number, part in enumerate(distinct(data.parts)):
        files = part.files or [f"image {n} of part {number}" for n in range(len(part.labels))]
        given = part.digests
        digests = given.tolist() if given is not None else [digest(image.numpy().tobytes()) for image in part.pixels]
        for found, label, file in zip(digests, part.labels.tolist(), files, strict=True):
            same += found in first
            before = first.setdefault(found, (label, file))
            others += [f"{before[1]} = {file}"] if before[0] != label else []
    text = f"{same:,} images are the same as another"
    return f"{text}, {len(others):,} of them in another class, the first: {others[0]}" if others else text


def first_of_each(labels: Tensor, classes: int, each: int) -> Tensor:
    """Positions of the first images of each class, class after class."""
    return torch.cat([torch.nonzero(labels == label).flatten()[:each] for label in range(classes)])


def export(data: DataModule, folder: Path) -> int:
    """Writes the images as `PART/CLASS/NUMBER.png`, from which `data=folder` makes the same data set; returns how many.

    The names of the classes begin with their labels, so that the order of the classes stays.
    """
    if data.source.channels not in (1, 3):
        raise UserError(f"export={folder}: needs images of 1 or 3 channels; these have {data.source.channels}")
    digits, safe = len(str(len(data.classes) - 1)), [re.sub(r"[^\w.-]+", "-", name) for name in data.classes]
    names = [f"{n:0{digits}}_{name}" for n, name in enumerate(safe)]
    parts = {name: part for name, part in data.parts.items() if name == "train" or part is not data.parts["train"]}
    total = sum(len(part.labels) for part in parts.values())
    with terminal.counting("writing pictures", total) as add:
        for split, part in parts.items():
            for name in names:
                (folder / split / name).mkdir(parents=True)
            width = len(str(len(part.labels) - 1))
            for n, (image, label) in enumerate(zip(part.pixels, part.labels.tolist(), strict=True)):
                array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
                Image.fromarray(array).save(folder / split / names[label] / f"{n:0{width}}.png")
                add(1)
    return total
