"""What the network is given, what its first layer looks for, what its blocks see, and where it looks."""

from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vggexp.data import DataModule
from vggexp.inspection import figures
from vggexp.inspection.base import Inspection, examples, forward, images, layers_of, watched

Picture = NDArray[np.uint8]  # (H, W, 3)
FINEST = 6  # pixels that a feature map must have on each side: coarser maps cannot tell where something is
EXAMPLES, CHANNELS, SIDE = 6, 8, 56  # test images, channels of each block (the most active ones), and pixels of a tile


class Pictures(Inspection):
    """Shows `inputs` once, the `filters` of the first convolution, and `maps/BLOCK`, each max-pool's feature maps."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and trainer.global_step == 0 and batch_idx == 0:
            shown = pl_module.trainer.datamodule.preparation.shown(batch[0][:32].float().cpu())
            self.board.add_image("inputs/first_batch", grid(list(colored(shown)), 8), 0, dataformats="HWC")

    def show(self, trainer: L.Trainer, net: nn.Module, data: DataModule, step: int) -> None:
        convs = layers_of(net, nn.Conv2d)
        if convs:
            weight = next(iter(convs.values())).weight.detach().float().cpu().mean(1)  # type: ignore[operator]
            filters = grid([signed(kernel, SIDE) for kernel in weight[:64]], 8)
            self.board.add_image("filters/first_layer", filters, step, dataformats="HWC")
        batch = images(trainer, data, examples(data, EXAMPLES))
        with watched(trainer, net, layers_of(net, nn.MaxPool2d)) as maps, torch.no_grad():
            forward(trainer, net, batch)
        inputs = [scaled(picture, SIDE) for picture in colored(data.preparation.shown(batch.float().cpu()))]
        for n, output in enumerate(maps.values(), start=1):
            active = output.float().relu().cpu()
            channels = active.mean((0, 2, 3)).argsort(descending=True)[:CHANNELS].sort().values
            rows = []
            for one, picture in zip(active[:, channels], inputs, strict=True):
                shares = (one / one.amax().clamp_min(1e-12)).unsqueeze(1)
                rows += [picture, *(scaled(channel, SIDE) for channel in colored(shares))]
            sheet = grid(rows, 1 + len(channels))
            self.board.add_image(f"maps/block_{n}", sheet, step, dataformats="HWC")


class GradCAM(Inspection):
    """Shows `where_it_looks/predicted_class`: the parts of ten images that speak for the predicted class.

    Gradient times activation, place by place (HiResCAM, Draelos and Carin 2020), of the last ReLU with maps of at least
    FINEST pixels. Grad-CAM itself first averages the gradient over all places, which is right for networks that end in
    an average; VGG's fully connected layers weigh each place separately, and its maps were empty for most images.
    """

    def show(self, trainer: L.Trainer, net: nn.Module, data: DataModule, step: int) -> None:
        batch = images(trainer, data, examples(data, 10)).requires_grad_().clone()  # also where layers are not trained
        with watched(trainer, net, layers_of(net, nn.ReLU)) as outputs, torch.enable_grad():
            predicted = forward(trainer, net, batch).max(1).values
        fine = [maps for maps in outputs.values() if maps.ndim == 4 and min(maps.shape[2:]) >= FINEST]
        if not fine:
            return
        (gradient,) = torch.autograd.grad(predicted.sum(), fine[-1])
        looks = (gradient * fine[-1]).detach().float().cpu().sum(1, keepdim=True).relu()
        shares = looks / looks.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        shares = F.interpolate(shares, size=96, mode="bilinear")[:, 0]
        inputs = colored(data.preparation.shown(F.interpolate(batch.detach().float().cpu(), size=96)))
        tiles = []
        for picture, share in zip(inputs, shares.numpy(), strict=True):
            overlay = 0.55 * picture + 0.45 * 255 * colormaps["inferno"](share)[..., :3]
            tiles += [picture, overlay.astype(np.uint8)]
        self.board.add_image("where_it_looks/predicted_class", grid(tiles, 4), step, dataformats="HWC")


def colored(values: Tensor) -> Picture:
    """(N, C, H, W) in [0, 1] → (N, H, W, 3)."""
    return figures.rgb((values.clamp(0, 1) * 255).round().byte()).permute(0, 2, 3, 1).numpy()


def signed(values: Tensor, side: int) -> Picture:
    """(H, W) values around zero → blue below it, red above it."""
    share = (values / values.abs().max().clamp_min(1e-12)).numpy()
    red, blue = np.clip(1 + share, 0, 1), np.clip(1 - share, 0, 1)
    picture: Picture = (np.stack([red, np.minimum(red, blue), blue], axis=-1) * 255).astype(np.uint8)
    return scaled(picture, side)


def scaled(picture: Picture, side: int) -> Picture:
    """Enlarged to a square, each pixel a rectangle."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))


def grid(pictures: list[Picture], columns: int, gap: int = 2) -> Picture:
    """Pictures of one size, row after row."""
    around = ((0, -len(pictures) % columns), (0, gap), (0, gap), (0, 0))
    tiles = np.pad(np.stack(pictures), around, constant_values=128)
    _, height, width, _ = tiles.shape
    sheet = tiles.reshape(-1, columns, height, width, 3).swapaxes(1, 2).reshape(-1, columns * width, 3)
    return sheet[:-gap, :-gap]
