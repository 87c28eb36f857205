"""What a network costs: counted without running it, and measured in a process of its own.

    python -m vggexp.inspection.cost < CONFIG.json      measures one training step, as `vggexp.summary --measure` does

N images of a batch, K classes.
"""

import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vggexp.config import precision
from vggexp.config.instantiate import construct, network
from vggexp.config.schema import Config
from vggexp.system import memory

SECONDS, STEPS = 5.0, 20
"""How long steps are timed: until either is reached, three steps at least."""


@dataclass(frozen=True)
class Layer:
    """What one layer costs.

    Args:
        name, kind: its place in the network and its class.
        shape: of its output for one image; () where that is no tensor.
        parameters: their number.
        macs: multiply-accumulates for one image, forward.
        activation_bytes: what it keeps for the backward pass of a batch, and no layer before it kept.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Price:
    """What a network costs to train.

    Args:
        layers: in the order of their execution.
        memory_bytes: the estimated peak of a training step: parameters, gradients, the optimizer's state,
            activations, and what the step needs for a moment.
    """

    layers: list[Layer]
    memory_bytes: int

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.activation_bytes for layer in self.layers)


@dataclass(frozen=True)
class Measured:
    """What training steps have cost on this machine.

    Args:
        seconds: of a training step, the median.
        memory_bytes: the peak of a training step over the process without the network.
    """

    seconds: float
    memory_bytes: int


def price(cfg: Config) -> Price:
    """Counts by torch's own counters on tensors without content, so no memory of the network's size is needed."""
    cfg = precision.resolved(cfg)
    batch, size = cfg.data.batch_size, cfg.model.image_size
    with FakeTensorMode():
        net: nn.Module = network(cfg.model.spec())
        images = torch.empty((batch, cfg.model.in_channels, size, size), memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.int64)
        layers = _layers(net, images, cfg)
        optimizer = construct(torch.optim.Optimizer, cfg.optimizer.spec(), net.parameters())
        tracker = MemTracker()
        tracker.track_external(net, optimizer, images, labels)
        with tracker:
            _step(net, optimizer, images, labels, cfg)  # creates the optimizer's state
            tracker.reset_mod_stats()
            _step(net, optimizer, images, labels, cfg)
        peak = sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())
    return Price(layers, peak)


def _layers(net: nn.Module, images: Tensor, cfg: Config) -> list[Layer]:
    kept: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    seen = {own.untyped_storage()._cdata for own in (*net.parameters(), *net.buffers())}
    leaves = {name: module for name, module in net.named_modules() if not list(module.children())}
    now = ""

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal now
            now = name

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes[name] = (1, *output.shape[1:]) if isinstance(output, Tensor) else ()

        return hook

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept[now] = kept.get(now, 0) + storage.nbytes()
        return tensor

    handles = [module.register_forward_pre_hook(enter(name)) for name, module in leaves.items()]
    handles += [module.register_forward_hook(leave(name)) for name, module in leaves.items()]
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor), _precision(cfg):
        logits = net(images)  # holds what the layers keep until they have been counted
    for handle in handles:
        handle.remove()
    del logits
    counts = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return [
        Layer(
            name,
            type(leaves[name]).__name__,
            shape,
            sum(parameter.numel() for parameter in leaves[name].parameters()),
            counts.get(name, 0) // 2 // len(images),
            kept.get(name, 0),
        )
        for name, shape in shapes.items()
    ]


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, cfg: Config) -> None:
    with _precision(cfg, images.device.type):
        loss = F.cross_entropy(net(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def _precision(cfg: Config, device: str = "cpu") -> contextlib.AbstractContextManager[Any]:
    if cfg.trainer.precision == "32-true":
        return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16)  # float16 takes the same memory


def measure(cfg: Config) -> Measured:
    """Measures in a fresh process, on the GPU where there is one and the config allows it.

    Raises:
        RuntimeError: the process failed; the text is what it said last.
    """
    content = json.dumps(cfg.model_dump(by_alias=True))
    command = [sys.executable, "-m", "vggexp.inspection.cost"]
    done = subprocess.run(command, input=content, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise RuntimeError(lines[-1])
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _measure(cfg: Config) -> Measured:
    cfg = precision.resolved(cfg)
    cuda = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu")
    device = torch.device("cuda" if cuda else "cpu")

    def prepare(batch: int) -> Callable[[], None]:
        size = cfg.model.image_size
        net = network(cfg.model.spec()).to(device, memory_format=torch.channels_last)
        optimizer = construct(torch.optim.Optimizer, cfg.optimizer.spec(), net.parameters())
        images = torch.rand(batch, cfg.model.in_channels, size, size, device=device)
        labels = torch.zeros(batch, dtype=torch.int64, device=device)
        return lambda: _step(net, optimizer, images, labels, cfg)

    memory.return_freed()
    prepare(2)()  # loads the kernels, which are no part of the network's memory
    gc.collect()
    memory.forget_peak()
    before = memory.peak()
    step = prepare(cfg.data.batch_size)
    step()
    step()
    peak = memory.peak() - before

    memory.keep_freed()
    step()
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < STEPS and sum(seconds) < SECONDS):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Measured(statistics.median(seconds), peak)


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(Config.model_validate(json.load(sys.stdin))))))
