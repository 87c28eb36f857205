"""What a network costs: counted without running it, and measured in a process of its own.

N images of a batch, K classes.
"""

import gc
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from vggexp.config import choices
from vggexp.config.instantiate import construct, datamodule, network
from vggexp.config.schema import Config
from vggexp.inspection import dry_run
from vggexp.models.cpu.fused import layer_by_layer
from vggexp.system import hardware, memory

SECONDS, STEPS = 5.0, 20  # steps are timed until either is reached, three at least


class Layer(NamedTuple):
    """What one layer costs."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


class Cost(NamedTuple):
    """What a network costs to train."""

    layers: list[Layer]
    parameters: int  # of all layers, as the next two
    macs: int
    activation_bytes: int
    memory_bytes: int  # at the peak of a training step


class Measured(NamedTuple):
    """What training steps cost on this machine."""

    seconds: float
    memory_bytes: int


def estimate(cfg: Config) -> Cost:
    """Counts on tensors without content, so that no memory of the network's size is needed."""
    cfg = choices.with_precision(cfg)
    found = layers(cfg)
    with dry_run.without_content():
        parts = _parts(cfg, cfg.data.batch_size)
        peak = dry_run.peak(partial(_step, *parts, cfg), *parts)
    parameters, macs, activations = (sum(column) for column in list(zip(*found, strict=True))[3:])
    return Cost(found, parameters, macs, activations, peak)


def _parts(cfg: Config, batch: int, device: str | None = None) -> tuple[nn.Module, Optimizer, Tensor, Tensor]:
    """The network, its optimizer, (N, C, S, S) images and (N,) labels; on no device, they must have no content."""
    dimensions = datamodule(cfg).dimensions
    size = dimensions["image_size"]
    net: nn.Module = network(cfg.model.spec(), dimensions)
    if device is not None:
        net.to(device).to(memory_format=torch.channels_last)
    optimizer: Optimizer = construct(Optimizer, cfg.optimizer.spec(), net.named_parameters())
    shape = (batch, dimensions["in_channels"], size, size)
    images = torch.empty(shape, device=device, memory_format=torch.channels_last).uniform_()
    return net, optimizer, images, torch.zeros(batch, dtype=torch.int64, device=device)


def layers(cfg: Config) -> list[Layer]:
    """As `estimate`, without the memory, which takes a second longer."""
    cfg = choices.with_precision(cfg)
    with (without_content := dry_run.without_content()):
        net, _, images, _ = _parts(cfg, cfg.data.batch_size)
    kept: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    seen = {own.untyped_storage() for own in (*net.parameters(), *net.buffers())}
    leaves = {name: module for name, module in net.named_modules() if not list(module.children())}
    now = ""

    def enter(name: str, *_: Any) -> None:
        nonlocal now
        now = name

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        shapes[name] = (1, *output.shape[1:]) if isinstance(output, Tensor) else ()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in seen:
            seen.add(storage)
            kept[now] = kept.get(now, 0) + storage.nbytes()
        return tensor

    for name, module in leaves.items():  # the network is thrown away, and its hooks with it
        module.register_forward_pre_hook(partial(enter, name))
        module.register_forward_hook(partial(leave, name))
    counter = FlopCounterMode(display=False)
    saved = saved_tensors_hooks(keep, lambda tensor: tensor)
    with without_content, layer_by_layer(net), counter, saved, _precision(cfg):
        net(images)
    operations = {name.partition(".")[2]: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    found = []
    for name, shape in shapes.items():
        kind, parameters = type(leaves[name]).__name__, sum(own.numel() for own in leaves[name].parameters())
        macs = operations.get(name, 0) // 2 // len(images)
        found.append(Layer(name, kind, shape, parameters, macs, kept.get(name, 0)))
    return found


def _step(net: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor, cfg: Config) -> None:
    with _precision(cfg, images.device.type):
        loss = F.cross_entropy(net(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def _precision(cfg: Config, device: str = "cpu") -> torch.autocast:
    enabled = cfg.trainer.precision != "32-true"
    return torch.autocast(device, torch.bfloat16, enabled=enabled)  # float16 takes the same memory


def measure(cfg: Config) -> Measured:
    """Measures in a fresh process, on the GPU where there is one and the config allows it.

    Raises:
        RuntimeError, MemoryError: the process had too little memory, or was killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, cfg).result()


def _measure(cfg: Config) -> Measured:
    cfg = choices.with_precision(cfg)
    device = hardware.device(cfg.trainer.accelerator).type

    def prepare(batch: int) -> Callable[[], None]:
        return partial(_step, *_parts(cfg, batch, device), cfg)

    memory.keep_freed(2**16)
    prepare(2)()  # loads the kernels, which are not part of the network's memory
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
        if device != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return Measured(statistics.median(seconds), peak)
