"""What happens within a run?

- `run`: prepares, fits and summarizes a run
- `trainer`: Lightning's Trainer, as a config asks for it
- `peers`: the processes that torchrun or SLURM has started: how they meet, and who is lost
- `classifier`: the LightningModule: one step for three stages
- `callbacks/`: what a run does besides learning
- `muon`, `schedules`: an optimizer and the learning-rate schedules of this project
"""

import vggexp.system.torchmetrics  # noqa: F401
