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

SHOWN, CHANNELS, SIDE = 6, 8, 48


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
            rows = []
            for one, picture in zip(found[:, :CHANNELS].float().relu().cpu(), inputs, strict=True):
                rows += [picture, *(scaled(channel, SIDE) for channel in gray(one / one.amax().clamp_min(1e-12)))]
            self.board.picture(f"maps/block_{n}", grid(rows, 1 + min(CHANNELS, found.shape[1])), step(trainer))


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
    """`where_it_looks`: the input's parts that speak for the predicted class (Selvaraju et al. 2017), by captum."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        net, data = pl_module.net, pl_module.trainer.datamodule
        convs = list(of_kind(net, nn.Conv2d).values())
        if not self.is_due(trainer) or not convs:
            return
        from captum.attr import LayerGradCam
        from matplotlib import colormaps

        batch = images(trainer, data, examples(data, 10))
        with watched(trainer, net, {}):
            targets = call(trainer, net, batch).argmax(1)
            looks = LayerGradCam(lambda x: call(trainer, net, x), convs[-1]).attribute(
                batch, targets, relu_attributions=True
            )
        looks = looks.detach().float().cpu()
        shares = looks / looks.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        shares = F.interpolate(shares, size=96, mode="bilinear")[:, 0].numpy()
        inputs = F.interpolate(batch.float().cpu(), size=96)[:, 0]
        overlays = [
            (0.55 * picture + 0.45 * 255 * colormaps["inferno"](share)[..., :3]).astype(np.uint8)
            for picture, share in zip(gray(inputs), shares, strict=True)
        ]
        pairs = [each for pair in zip(gray(inputs), overlays, strict=True) for each in pair]
        self.board.picture("where_it_looks/gradcam", grid(pairs, 4), step(trainer))
