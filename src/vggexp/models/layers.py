"""What the networks share: the classifier, dropout and the initial weights."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Init = Literal["default", "kaiming", "xavier"]


def classifier(channels: int, side: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """(N, C, H, W) feature maps, H = W = `side` → (N, K) logits; `hidden=0` leaves out the two hidden layers."""
    features = channels * side**2
    if hidden == 0:
        return nn.Sequential(Flatten(side), nn.Linear(features, num_classes))
    return nn.Sequential(
        Flatten(side),
        nn.Linear(features, hidden),
        nn.ReLU(inplace=True),
        Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )


class Flatten(nn.Flatten):
    """nn.Flatten; in training, maps of another size, from other images, are first averaged to that of the network."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C·side·side)."""
        if self.training and maps.shape[2:] != (self.side, self.side):
            maps = F.adaptive_avg_pool2d(maps, self.side)
        return super().forward(maps)


class Mirrored(nn.Module):
    """Predicts the mean of a network's logits for an image and for its mirror image: (N, C, H, W) → (N, K)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (self.net(images) + self.net(images.flip(-1))) / 2
        return logits


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU the mask is drawn from uniform numbers, in a quarter of the time that Bernoulli's take."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or values.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(values)
        return values.mul(torch.rand(values.shape) >= self.p).mul_(1 / (1 - self.p))


def initialize(net: nn.Module, init: Init) -> None:
    """Sets the weights and biases of all convolutions and linear layers; `default` keeps torch's.

    `kaiming` (He et al. 2015) keeps the signal's size through any number of ReLU layers; `xavier` is Glorot & Bengio
    2010. Under `kaiming` the last layer starts at a tenth, so that the first loss is near ln K.
    """
    if init == "default":
        return
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if init == "kaiming":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # our layers have one
    if init == "kaiming":
        layers[-1].weight.data.mul_(0.1)
