"""Measures on this machine, once, how it runs a network fastest.

What is measured are the network's own convolutions, each with the layers that follow it in its block, forward and
backward on a few images. The candidates of a choice take turns, the shortest time of each counts, and it is the default
unless another is faster by more than MARGIN, so that the same machine chooses the same.
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from vggexp.models.cpu import packed_conv, winograd
from vggexp.models.cpu.fused import Block, Options, images_per_piece
from vggexp.system import files, hardware, memory, paths

CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "fp32 convolutions": {"direct": {}, "Winograd's": {"winograd": True}},
    "precision": {"32-true": {}, "bf16-mixed": {}},
    "pieces": {"7 MB pieces": {"piece_bytes": 7_000_000}, "28 MB pieces": {"piece_bytes": 28_000_000}},
    "small maps": {"maps one by one": {"side_by_side": False}, "maps side by side": {"side_by_side": True}},
}
"""The candidates of each choice, with their `Options`, in the order of measuring; the first is the default."""

MARGIN = 1.05  # how many times as fast as the default another candidate has to be
ROUNDS, SECONDS = 10, 0.1  # of a choice: no layer and no third round is begun after so long
PATIENCE = 60  # seconds that a process waits for another that measures, so that both choose the same
WORK = 5e8  # floating-point operations of a candidate's run

Found = dict[str, dict[str, Any]]
"""Of each choice the name of the `chosen` candidate, and the `seconds` that each took where it was measured."""


class Layer(NamedTuple):
    """A convolution and what follows it in its block."""

    modules: tuple[nn.Module, ...]
    shape: tuple[int, ...]  # (C, H, W) of its input
    outputs: int  # numbers in its output for one image
    inner: bool  # whether its input needs a gradient

    @property
    def operations(self) -> int:
        """Floating-point operations of one image, forward and backward."""
        weight: Tensor = self.modules[0].weight  # type: ignore[assignment]
        return (6 if self.inner else 4) * self.outputs * weight[0].numel()

    def cropped(self, operations: float) -> "Layer":
        """The layer on as many rows of an image as are not much more than these operations."""
        conv: Any = self.modules[0]
        (channels, height, width), least = self.shape, conv.kernel_size[0] + 8 * conv.stride[0]
        rows = height
        while rows // 2 >= least and self.operations * rows > operations * height:
            rows //= 2
        return self._replace(shape=(channels, rows, width), outputs=self.outputs * rows // height)


def layers(net: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[Layer, int]]:
    """The different convolutions of a network without content, on the device `meta`, for (C, H, W) images.

    By what they are, each with how often it is there. None where the network computes what only numbers decide.
    """
    found: list[Layer] = []
    for parent in list(net.modules()):
        group: list[nn.Module] = []
        for child in parent.children():
            if isinstance(child, nn.Conv2d):
                group = [child]

                def note(conv: nn.Module, given: Any, output: Tensor, group: list[nn.Module] = group) -> None:
                    size = output[0].numel()
                    found.append(Layer(tuple(group), tuple(given[0].shape[1:]), size, bool(found)))

                child.register_forward_hook(note)
            elif group and isinstance(parent, Block):
                group.append(child)
    try:
        net(torch.empty(2, *shape, device="meta"))
    except RuntimeError:
        found.clear()
    names = [f"{layer.modules} of {layer.shape}, inner={layer.inner}" for layer in found]
    return {name: (layer, names.count(name)) for name, layer in zip(names, found, strict=True)}


def race(runs: Mapping[str, Callable[[], float]], seconds: float = 0.0) -> dict[str, float]:
    """The shortest of the seconds that each run says it took; they take turns, twice at least."""
    best: dict[str, float] = dict.fromkeys(runs, math.inf)
    end = time.thread_time() + seconds
    for number in range(ROUNDS):
        if number > 1 and time.thread_time() > end:
            break
        for name, run in runs.items():
            best[name] = min(best[name], run())
    return best


def choose(seconds: Mapping[str, float], default: str) -> str:
    """The fastest, or the default where that is nearly as fast."""
    fastest = min(seconds, key=seconds.__getitem__, default=default)
    return fastest if seconds and seconds[default] > MARGIN * seconds[fastest] else default


def options(found: Found) -> Options:
    """How the blocks of a network run under some choices."""
    chosen = [CHOICES[name].get(choice["chosen"], {}) for name, choice in found.items()]
    return Options(**{key: value for each in chosen for key, value in each.items()})


def apply(net: nn.Module, found: Found) -> None:
    """Lets the blocks of a network run as chosen."""
    torch.set_num_threads(torch.get_num_threads())  # as measuring does: MKL sums in another order once it was set
    for module in net.modules():
        if isinstance(module, Block):
            module.options = options(found)


def checked(content: Any) -> Found | None:
    """What a file holds, if that can be what was found; it may come from anybody."""
    known = isinstance(content, dict) and all(
        isinstance(choice, dict)
        and choice.keys() == {"chosen", "seconds"}
        and choice["chosen"] in CHOICES.get(name, ())
        and isinstance(choice["seconds"], dict)
        and (not choice["seconds"] or choice["seconds"].keys() == CHOICES[name].keys())
        and all(isinstance(each, float) and 0 < each < math.inf for each in choice["seconds"].values())
        for name, choice in content.items()
    )
    return content if known else None


def find(net: nn.Module, shape: tuple[int, ...], batch: int, precision: str | None, again: bool = False) -> Found:
    """What is fastest for a network on the device `meta` and batches of (C, H, W) images; kept in the cache.

    Args:
        precision: the one that is given, else it is a choice.
        again: measures even if that was done before.
    """
    convolutions = layers(net, shape)
    own = [files.content(path) for path in sorted(Path(__file__).parent.iterdir()) if path.suffix in (".py", ".cpp")]
    about = hardware.description()
    about["environment"] = {name: x for name, x in about["environment"].items() if not name.endswith("_THREADS")}
    machine = (about, torch.get_num_threads(), torch.__version__, own)
    facts = (machine, [(name, count) for name, (_, count) in convolutions.items()], batch, precision)
    path = paths.cache() / "choices" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
    with ExitStack() as stack:
        with suppress(OSError, Timeout):  # the cache cannot be written, or another process measures for very long
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.parent / ".lock", timeout=PATIENCE))
        if not again:
            with suppress(OSError, ValueError, RecursionError, TypeError):
                kept = checked(json.loads(files.content(path)))
                if kept is not None and kept.keys() == CHOICES.keys() - ({"precision"} if precision else set()):
                    return kept
        found = _measured(list(convolutions.values()), batch, precision)
        with suppress(OSError):
            files.write_text(path, json.dumps(found))
        return found


def _measured(convolutions: list[tuple[Layer, int]], batch: int, precision: str | None) -> Found:
    chosen = {name: next(iter(candidates)) for name, candidates in CHOICES.items()}
    chosen["precision"] = precision or chosen["precision"]
    found: Found = {}
    for name, candidates in CHOICES.items():
        if name == "precision" and precision:
            continue
        ways = {each: chosen | {name: each} for each in candidates}
        differing = [own for own in convolutions if len({_way(own[0], batch, way) for way in ways.values()}) > 1]
        seconds = _seconds(_sample(differing, batch, name), ways)
        chosen[name] = choose(seconds, chosen[name])
        found[name] = {"chosen": chosen[name], "seconds": seconds}
    return found


def _seconds(sample: list[tuple[Layer, int, float]], ways: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """What a step would take, on one thread, of each way to run a sample of its layers."""
    seconds: dict[str, float] = {}
    threads, end = torch.get_num_threads(), time.thread_time() + SECONDS
    memory.keep_freed()  # as in training
    torch.set_num_threads(1)  # on a machine with other work, several would wait for each other, and that would count
    try:
        with torch.random.fork_rng([]):
            for number, (layer, images, weight) in enumerate(sample):
                if (left := end - time.thread_time()) < 0 and number:
                    break
                runs = {each: _run(layer, images, way) for each, way in ways.items()}
                for each, best in race(runs, left / (len(sample) - number)).items():
                    seconds[each] = seconds.get(each, 0.0) + weight * best
    finally:
        torch.set_num_threads(threads)
    return seconds


def _options(chosen: Mapping[str, str]) -> Options:
    return options({name: {"chosen": each} for name, each in chosen.items()})


def _way(layer: Layer, batch: int, chosen: Mapping[str, str]) -> tuple[Any, ...]:
    """How a layer would run: what differs between two candidates if they differ at all."""
    conv, dtype, how = layer.modules[0], _dtype(chosen), _options(chosen)
    last = torch.channels_last
    maps: Any = torch.empty(batch, *layer.shape, dtype=dtype, device="meta", memory_format=last)
    pieces = images_per_piece(maps, conv, how.piece_bytes)  # type: ignore[arg-type]
    row = packed_conv.images_per_row(maps, conv) if how.side_by_side else 1  # type: ignore[arg-type]
    return dtype, pieces, row if pieces == batch else 1, how.winograd and winograd.has_kernel(maps, conv)  # type: ignore[arg-type]


def _dtype(chosen: Mapping[str, str]) -> torch.dtype:
    return torch.bfloat16 if chosen["precision"] == "bf16-mixed" else torch.float32


def _sample(convolutions: list[tuple[Layer, int]], batch: int, choice: str) -> list[tuple[Layer, int, float]]:
    """Layers worth measuring, on how many images, and how many times as much work they are in a step.

    For the size of pieces, those with the largest maps, as many as make two pieces; else those with the most work, on
    few images, of which a part of the rows where one is too much. For Winograd's algorithm only the first, on more
    images, as each call has to transform the weights.
    """
    pieces, largest = choice == "pieces", max(candidate["piece_bytes"] for candidate in CHOICES["pieces"].values())
    most, allowed = (1, 2 * WORK) if choice == "fp32 convolutions" else (max(1, len(convolutions)), WORK)
    work = allowed / most
    sample: list[tuple[Layer, int, float]] = []
    for layer, count in sorted(convolutions, key=lambda x: -x[0].outputs if pieces else -x[0].operations * x[1])[:most]:
        part = layer if pieces else layer.cropped(work)
        images = 2 * largest // (4 * layer.outputs) if pieces else work / part.operations
        images = min(batch, 1 << max(0, int(images).bit_length() - 1))
        allowed -= images * part.operations
        if sample and allowed < 0:
            break
        sample.append((part, images, count * batch * layer.outputs / (images * part.outputs)))
    return sample


def _run(layer: Layer, images: int, chosen: Mapping[str, str]) -> Callable[[], float]:
    """Runs a layer forward and backward; returns how many seconds that took."""
    block = Block(*(copy.deepcopy(module).to_empty(device="cpu") for module in layer.modules))
    for module in block:
        getattr(module, "reset_parameters", lambda: None)()
    block.to(memory_format=torch.channels_last)
    block.options, dtype = _options(chosen), _dtype(chosen)
    maps = torch.rand(images, *layer.shape).to(
        dtype if layer.inner else torch.float32, memory_format=torch.channels_last
    )
    wanted = [*block.parameters(), *([maps.requires_grad_()] if layer.inner else [])]

    def run() -> float:
        start = time.thread_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = block(maps)
        torch.autograd.grad(output, wanted, output.detach())
        return time.thread_time() - start

    return run
