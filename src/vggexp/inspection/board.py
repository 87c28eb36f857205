"""Where an inspection's pictures, histograms and texts go: each logger shows what it can."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

Picture = NDArray[np.uint8]  # (H, W, 3)


class Board:
    """Shows nothing; its subclasses override what their logger can show."""

    def __init__(self, logger: Any = None) -> None:
        self.logger = logger

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """One image under a tag, at a step."""

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """The distribution of values of any shape."""

    def text(self, tag: str, markdown: str) -> None:
        """A text that belongs to the whole run."""

    def pr_curve(self, tag: str, labels: Tensor, probabilities: Tensor, step: int) -> None:
        """A precision-recall curve: (N,) whether each image is of a class, (N,) the probability it was given."""

    def graph(self, net: nn.Module, images: Tensor) -> None:
        """The network's graph, traced with (N, C, H, W) images."""

    def projector(self, tag: str, features: Tensor, labels: Sequence[str], images: Tensor, step: int) -> None:
        """(N, F) features with a label and an image, (N, H, W) uint8, each."""

    def charts(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Which scalars share a chart, by section and title."""


class TensorBoard(Board):
    """Shows everything."""

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        self.logger.experiment.add_image(tag, picture, step, dataformats="HWC")

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self.logger.experiment.add_histogram(tag, values, step, bins=60)

    def text(self, tag: str, markdown: str) -> None:
        self.logger.experiment.add_text(tag, markdown, 0)

    def pr_curve(self, tag: str, labels: Tensor, probabilities: Tensor, step: int) -> None:
        self.logger.experiment.add_pr_curve(tag, labels, probabilities, step)

    def graph(self, net: nn.Module, images: Tensor) -> None:
        self.logger.experiment.add_graph(net, images)

    def projector(self, tag: str, features: Tensor, labels: Sequence[str], images: Tensor, step: int) -> None:
        thumbnails = 1 - images.unsqueeze(1).float().expand(-1, 3, -1, -1) / 255  # dark on light, as the page
        self.logger.experiment.add_embedding(features, list(labels), thumbnails, step, tag)

    def charts(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        kinds = {
            key: {title: ["Multiline", list(tags)] for title, tags in part.items()} for key, part in layout.items()
        }
        self.logger.experiment.add_custom_scalars(kinds)


class MLflow(Board):
    """Keeps pictures and texts as a run's artifacts."""

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        self.logger.experiment.log_image(self.logger.run_id, Image.fromarray(picture), f"{tag}/{step:06}.png")

    def text(self, tag: str, markdown: str) -> None:
        self.logger.experiment.log_text(self.logger.run_id, markdown, f"{tag}.md")


class WandB(Board):
    """Shows pictures, histograms and texts."""

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        self.logger.log_image(tag, [Image.fromarray(picture)], step=None)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        import wandb

        counts, edges = np.histogram(values.numpy(), bins=60)
        self.logger.experiment.log({tag: wandb.Histogram(np_histogram=(counts, edges))}, commit=False)

    def text(self, tag: str, markdown: str) -> None:
        self.logger.log_text(tag, columns=["text"], data=[[markdown]])


BOARDS: dict[str, type[Board]] = {"TensorBoardLogger": TensorBoard, "MLFlowLogger": MLflow, "WandbLogger": WandB}
"""The board of each logger, by the name of the logger's class."""


def tag(text: str) -> str:
    """The text as a part of a tag, without the characters that tags may not have."""
    return re.sub(r"[^\w.-]+", "_", text)
