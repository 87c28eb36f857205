"""What the network gets, what its first layer looks for, what its blocks see."""

from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vggexp.inspection.board import Picture
from vggexp.inspection.inspection import Inspection, call, examples, images, of_kind, step, watched

SHOWN, CHANNELS, SIDE = 6, 8, 56
"""Test images, channels of each block (the most active ones), and pixels of a tile."""

FINEST = 6
"""Pixels that a map must have on a side for Grad-CAM to be worth a look."""


class Pictures(Inspection):
    """`inputs`, once; `filters` of the first convolution; `maps/BLOCK`: feature maps behind each max-pool."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and trainer.global_step == 0 and batch_idx == 0:
            shown = batch[0][:32, 0].float().cpu()
            self.board.picture("inputs/first_batch", grid(list(gray(shown)), 8), 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.is_due(trainer):
            return
        net, data = pl_module.net, pl_module.trainer.datamodule
        convs = of_kind(net, nn.Conv2d)
        if convs:
            weight = next(iter(convs.values())).weight.detach().float().cpu().mean(1)  # type: ignore[operator]
            self.board.picture("filters/first_layer", grid([signed(w, SIDE) for w in weight[:64]], 8), step(trainer))
        batch = images(trainer, data, examples(data, SHOWN))
        with watched(trainer, net, of_kind(net, nn.MaxPool2d)) as maps, torch.no_grad():
            call(trainer, net, batch)
        inputs = [scaled(picture, SIDE) for picture in gray(batch[:, 0].float().cpu())]
        for n, found in enumerate(maps.values(), start=1):
            active = found.float().relu().cpu()
            channels = active.mean((0, 2, 3)).argsort(descending=True)[:CHANNELS].sort().values
            rows = []
            for one, picture in zip(active[:, channels], inputs, strict=True):
                rows += [picture, *(scaled(channel, SIDE) for channel in gray(one / one.amax().clamp_min(1e-12)))]
            self.board.picture(f"maps/block_{n}", grid(rows, 1 + len(channels)), step(trainer))


def gray(values: Tensor) -> Picture:
    """(N, H, W) in [0, 1] → (N, H, W, 3)."""
    shades = (values.clamp(0, 1) * 255).round().byte().numpy()
    return np.repeat(shades[..., None], 3, axis=-1)


def signed(values: Tensor, side: int) -> Picture:
    """(H, W) around zero → blue below, red above."""
    share = (values / values.abs().max().clamp_min(1e-12)).numpy()
    red, blue = np.clip(1 + share, 0, 1), np.clip(1 - share, 0, 1)
    picture: Picture = (np.stack([red, np.minimum(red, blue), blue], axis=-1) * 255).astype(np.uint8)
    return scaled(picture, side)


def scaled(picture: Picture, side: int) -> Picture:
    """To a square, pixel by pixel."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))


def grid(pictures: list[Picture], columns: int, gap: int = 2) -> Picture:
    """Pictures of one size, row after row."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 128, np.uint8)
    for n, picture in enumerate(pictures):
        y, x = n // columns * (height + gap), n % columns * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return sheet


class GradCAM(Inspection):
    """`where_it_looks/predicted_class`: the parts of an image that speak for the predicted class.

    Gradient times activation, place by place (HiResCAM, Draelos and Carin 2020), by captum. Grad-CAM itself takes the
    gradient's mean over all places first, which is right for networks that end in a mean; VGG's fully connected layers
    weigh each place by itself, and its maps came out empty for most images.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        net, data = pl_module.net, pl_module.trainer.datamodule
        if not self.is_due(trainer):
            return
        from captum.attr import LayerGradientXActivation
        from matplotlib import colormaps

        batch = images(trainer, data, examples(data, 10))
        layers = of_kind(net, nn.ReLU)
        with watched(trainer, net, layers) as outputs, torch.no_grad():
            targets = call(trainer, net, batch).argmax(1)
        fine = [key for key, found in outputs.items() if found.ndim == 4 and min(found.shape[2:]) >= FINEST]
        if not fine:
            return
        with watched(trainer, net, {}):
            method = LayerGradientXActivation(lambda x: call(trainer, net, x), layers[fine[-1]])
            looks = method.attribute(batch, targets).detach().float().cpu().sum(1, keepdim=True).relu()
        shares = looks / looks.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        shares = F.interpolate(shares, size=96, mode="bilinear")[:, 0].numpy()
        inputs = F.interpolate(batch.float().cpu(), size=96)[:, 0]
        overlays = [
            (0.55 * picture + 0.45 * 255 * colormaps["inferno"](share)[..., :3]).astype(np.uint8)
            for picture, share in zip(gray(inputs), shares, strict=True)
        ]
        pairs = [each for pair in zip(gray(inputs), overlays, strict=True) for each in pair]
        self.board.picture("where_it_looks/predicted_class", grid(pairs, 4), step(trainer))
