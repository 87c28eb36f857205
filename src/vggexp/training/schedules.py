"""Learning-rate schedules over a whole run of any length, each a function of the optimizer and the number of steps."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def constant(optimizer: Optimizer, total_steps: int) -> None:
    """The optimizer's own rate, from the first step to the last."""


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> LRScheduler:
    """A linear rise over the share `warmup` of the steps, then half a cosine down to `final` × lr.

    Source: Loshchilov & Hutter, "SGDR", 2017, without restarts.
    """
    rise = warmup * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = min(1.0, (step - rise) / max(1.0, total_steps - 1 - rise))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def onecycle(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.3, initial: float = 0.04, final: float = 1e-4
) -> LRScheduler:
    """From `initial` × lr up to lr over the share `warmup` of the steps, then down to `final` × lr, both as cosines.

    Source: Smith & Topin, "Super-Convergence", 2018. Momentum stays as the optimizer has it.
    """
    highest, steps = [group["lr"] for group in optimizer.param_groups], max(total_steps, 2)
    if warmup * steps == 1:  # a rise of no step, by whose length torch would divide
        warmup = math.nextafter(warmup, 0)
    shape: Any = {"pct_start": warmup, "div_factor": 1 / initial, "final_div_factor": initial / final}
    return OneCycleLR(optimizer, highest, steps, cycle_momentum=False, **shape)


def triangular(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.2, initial: float = 0.1, final: float = 0.0
) -> LRScheduler:
    """From `initial` × lr up to lr over the share `warmup` of the steps, then down to `final` × lr, both as lines.

    Source: Smith, "Cyclical Learning Rates", 2017, one cycle of it.
    """
    rise = warmup * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return initial + (1 - initial) * step / rise
        return 1 + (final - 1) * min(1.0, (step - rise) / max(1.0, total_steps - rise))

    return LambdaLR(optimizer, factor)
