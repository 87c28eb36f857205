"""Names what pictures show."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from vggexp.inference.load import Network

Prediction = tuple[str, list[float]]  # the name of a picture and the probabilities, by label


def predict(
    network: Network, pictures: Iterable[tuple[str, np.ndarray]], batch_size: int, device: torch.device
) -> Iterator[Prediction]:
    """The probabilities of named (C, H, W) uint8 images of one size, read and scored a batch at a time."""
    net = network.module.predictor.to(device)
    stream = iter(pictures)
    while batch := list(itertools.islice(stream, batch_size)):
        names, arrays = zip(*batch, strict=True)
        images = torch.from_numpy(np.stack(arrays)).to(device)
        with torch.inference_mode():
            logits = net(network.preparation(images))
        yield from zip(names, logits.softmax(dim=1).tolist(), strict=True)
