"""What can a finished network do, from a command or from Python?

- `load`: the network that a run folder or a checkpoint means, without trusting its file
- `evaluate`: scores it on the test set
- `predict`: names what pictures show
- `export`: writes it for other programs
"""

import vggexp.system.torchmetrics  # noqa: F401
