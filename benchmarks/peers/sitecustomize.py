"""Meters every program of torch that is started with this folder on PYTHONPATH."""

import os

if "METER" in os.environ:
    import meter
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: meter.step())
