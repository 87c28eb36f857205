"""Muon (Jordan et al. 2024): SGD with momentum whose step of each weight matrix is made orthogonal.

Every direction of a matrix then moves as far as every other, not only the few that gradients favor.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's, of the Newton-Schulz iteration: five steps bring all singular values to about 0.7 to 1.2."""


class Muon(Optimizer):
    """Muon for inner weights; SGD with Nesterov's momentum for the first and the last weight, biases and norms.

    A convolution's weight counts as the matrix of its output channels by all that each of them sums over.

    Raises:
        ValueError: there is no layer of such a name.
    """

    bf16 = False  # whether the products that make a step orthogonal are taken in bfloat16

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],  # names and parameters of a network, in the order of its layers
        lr: float = 0.03,  # how far a step moves a matrix, measured by its spectral norm
        momentum: float = 0.6,  # Nesterov's, of the matrices' gradients
        weight_decay: float = 0.05,  # of the matrices; decoupled: a step shrinks them by lr × weight_decay
        sgd_layers: Sequence[str] | None = None,  # whose weights SGD trains; None: the first and the last with weights
        sgd_lr: float = 0.1,  # of the rest, as the next two; biases and norms do not decay
        sgd_momentum: float = 0.9,
        sgd_weight_decay: float = 5e-4,
    ) -> None:
        named = dict(params)
        weights = [name for name, parameter in named.items() if parameter.ndim > 1]
        layers = [*weights[:1], *weights[1:][-1:]] if sgd_layers is None else sgd_layers
        outer = [name for name in weights if any(f"{name}.".startswith(f"{layer}.") for layer in layers)]
        if unknown := [layer for layer in layers if not any(f"{name}.".startswith(f"{layer}.") for name in outer)]:
            raise ValueError(f"sgd_layers={unknown[0]}: is not a layer with weights; these are {', '.join(weights)}")
        inner, vectors = [n for n in weights if n not in outer], [n for n in named if n not in weights]
        muon = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": True}
        sgd = {"lr": sgd_lr, "momentum": sgd_momentum, "weight_decay": sgd_weight_decay, "orthogonal": False}
        groups = [(inner, muon), (outer, sgd), (vectors, sgd | {"weight_decay": 0.0})]
        super().__init__([{"params": [(n, named[n]) for n in names], **own} for names, own in groups if names], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, after the gradients have been computed, by `closure` where it is given."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step(parameter, parameter.grad, self.state[parameter], group, self.bf16)
        return loss


def _step(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], bf16: bool) -> None:
    if not group["orthogonal"] and group["weight_decay"]:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
    update = gradient.add(momentum, alpha=group["momentum"])
    if group["orthogonal"]:
        update = orthogonal(update.flatten(1), bf16).view_as(update)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(update, alpha=-group["lr"])


def orthogonal(matrix: Tensor, bf16: bool = False, steps: int = 5) -> Tensor:
    """(R, C) → (R, C), the same singular vectors with singular values near √max(1, R / C)."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    if bf16:
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrix.dtype) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
    result: Tensor = x if wide is matrix else x.T
    return result
