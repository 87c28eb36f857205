"""Names what pictures show."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vggexp.data import pictures
from vggexp.errors import UserError
from vggexp.inference.load import Network

BATCH = 256
Prediction = tuple[str, list[float]]  # the name of a picture and the probabilities, by label


def predict(
    network: Network, pictures: Iterable[tuple[str, np.ndarray]], batch_size: int, device: torch.device
) -> Iterator[Prediction]:
    """The probabilities of named (C, H, W) uint8 images of one size, read and scored a batch at a time."""
    net = network.classifier.predictor.to(device)
    stream = iter(pictures)
    while batch := list(itertools.islice(stream, batch_size)):
        names, arrays = zip(*batch, strict=True)
        images = torch.from_numpy(np.stack(arrays)).to(device)
        with torch.inference_mode():
            logits = net(network.preparation(images))
        yield from zip(names, logits.softmax(dim=1).tolist(), strict=True)


class Predictions(NamedTuple):
    """What images show."""

    classes: list[str]  # the most probable of each image
    probabilities: Tensor  # (N, K) float32


def of_images(
    network: Network, images: Tensor | np.ndarray | str | Path | Sequence[str | Path], invert: bool = False
) -> Predictions:
    """See `Network.predict`."""
    channels = network.dimensions["in_channels"]
    if isinstance(images, Tensor | np.ndarray):
        found = images.cpu().numpy() if isinstance(images, Tensor) else images
        found = found[:, None] if found.ndim == 3 else found
        if found.dtype != np.uint8 or found.ndim != 4 or found.shape[1] != channels:
            given = f"{tuple(images.shape)} {images.dtype}"
            raise UserError(f"images: are {given}; the network takes (N, {channels}, H, W) uint8, 0 to 255")
        named: Iterable[tuple[str, np.ndarray]] = (("", image) for image in found)
    else:
        names = [images] if isinstance(images, str | Path) else images
        if not isinstance(names, Sequence):
            raise UserError(f"images: are a {type(images).__name__}; give files, or (N, {channels}, H, W) uint8")
        paths = [path for name in names for path in pictures.files(str(name))]
        named = pictures.read(paths, form_of(network, invert), refuse)
    rows = [row for _, row in predict(network, named, BATCH, torch.device("cpu"))]
    probabilities = torch.tensor(rows).reshape(-1, len(network.classes))
    return Predictions([network.classes[n] for n in probabilities.argmax(1).tolist()], probabilities)


def form_of(network: Network, invert: bool) -> pictures.Form:
    """How pictures from files become the network's, which must take gray pictures or those in color."""
    if (channels := network.dimensions["in_channels"]) not in (1, 3):
        raise UserError(f"run={network.path}: its network takes {channels} channels; predict reads pictures of 1 or 3")
    ready = network.preparation
    return pictures.Form(3 if channels == 3 else 1, ready.side, ready.fit, invert)


def refuse(path: Path, reason: str) -> None:
    """Refuses a file that cannot be read."""
    raise UserError(f"{path}: {reason}")
