"""What the networks have in common: the classifier, and how weights start."""

from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["default", "kaiming", "xavier"]


def classifier(features: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """(N, C, H, W) feature maps, C·H·W = `features` → (N, K) logits, through two layers of `hidden` units, if any."""
    if hidden == 0:
        return nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(inplace=True),
        Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )


class Mirrored(nn.Module):
    """A network of images that looks twice: (N, C, H, W) → (N, K), the mean over the image and its mirror image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (self.net(images) + self.net(images.flip(-1))) / 2
        return logits


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU the mask is made of uniform numbers, which takes a quarter of the time of Bernoulli's."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or values.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(values)
        return values.mul(torch.rand(values.shape) >= self.p).mul_(1 / (1 - self.p))


def initialise(net: nn.Module, init: Init) -> None:
    """Sets weights and biases of all convolutions and linear layers; `default` leaves torch's.

    `kaiming` (He et al. 2015) keeps the signal's size through ReLU layers of any depth; `xavier` is Glorot & Bengio
    2010. Under `kaiming` the last layer starts at a tenth, so that the first loss is near ln K.
    """
    if init == "default":
        return
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if init == "kaiming":
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if init == "kaiming":
        layers[-1].weight.data.mul_(0.1)
