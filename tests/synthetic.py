"""A small data set like MNIST, generated on the fly: each class is a bright bar at its own height, with noise."""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vggexp.data import DataModule, FashionMNIST, idx

TRAIN, TEST = 400, 130


def _make() -> dict[str, bytes]:
    generator = np.random.default_rng(7)
    files = {}
    for size, images_name, labels_name in (
        (TRAIN, idx.TRAIN_IMAGES, idx.TRAIN_LABELS),
        (TEST, idx.TEST_IMAGES, idx.TEST_LABELS),
    ):
        labels = generator.permutation(np.arange(size) % 10).astype(np.uint8)
        images = generator.integers(0, 60, (size, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 2 : 2 * label + 6, 4:24] += 180
        files[images_name] = encode(images)
        files[labels_name] = encode(labels)
    return files


def encode(array: np.ndarray) -> bytes:
    """Encodes an array as an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


FILES = _make()
SOURCE = idx.IDXSet(
    name="synthetic",
    classes=tuple(f"bar {n}" for n in range(10)),
    sha256={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
)


class SyntheticMNIST(FashionMNIST):
    spec = SOURCE


class Linear(torch.nn.Linear):
    """A network of one layer, which has no part that is called features."""

    def __init__(self, image_size: int, in_channels: int, num_classes: int, **_: Any) -> None:
        super().__init__(in_channels * image_size**2, num_classes)


def module(*, root: str | None = None, **options: Any) -> DataModule:
    """The data module of the set."""
    source = SyntheticMNIST(root=root or os.environ["VGGEXP_TEST_ROOT"])
    return DataModule(source=source, **{"val_size": 100, "resize": 32} | options)


def write(folder: Path, compressed: bool = True) -> Path:
    """Writes the four files to a folder, which then is a source of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
        else:
            (folder / name).write_bytes(content)
    return folder
