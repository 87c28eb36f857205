"""Where the network looks."""

from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib import colormaps
from torch import nn
from torch.nn import functional as F

from vggexp.inspection.base import Inspection, examples, forward, images, last_step, layers_of, watched
from vggexp.inspection.pictures import gray, grid

FINEST = 6  # pixels that a feature map must have on each side: coarser maps cannot tell where something is


class GradCAM(Inspection):
    """Shows `where_it_looks/predicted_class`: the parts of ten images that speak for the predicted class.

    Gradient times activation, place by place (HiResCAM, Draelos and Carin 2020), of the last ReLU with maps of at least
    FINEST pixels. Grad-CAM itself first averages the gradient over all places, which is right for networks that end in
    an average; VGG's fully connected layers weigh each place separately, and its maps were empty for most images.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.is_due(trainer):
            return
        net, data = pl_module.net, pl_module.trainer.datamodule
        batch = images(trainer, data, examples(data, 10))
        with watched(trainer, net, layers_of(net, nn.ReLU)) as outputs, torch.enable_grad():
            predicted = forward(trainer, net, batch).max(1).values
        fine = [maps for maps in outputs.values() if maps.ndim == 4 and min(maps.shape[2:]) >= FINEST]
        if not fine:
            return
        (gradient,) = torch.autograd.grad(predicted.sum(), fine[-1])
        looks = (gradient * fine[-1]).detach().float().cpu().sum(1, keepdim=True).relu()
        shares = looks / looks.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        shares = F.interpolate(shares, size=96, mode="bilinear")[:, 0]
        inputs = gray(F.interpolate(batch.float().cpu(), size=96)[:, 0])
        tiles = []
        for picture, share in zip(inputs, shares.numpy(), strict=True):
            overlay = 0.55 * picture + 0.45 * 255 * colormaps["inferno"](share)[..., :3]
            tiles += [picture, overlay.astype(np.uint8)]
        self.board.picture("where_it_looks/predicted_class", grid(tiles, 4), last_step(trainer))
