"""`model.weights=FILE`: a network starts from another's weights, adapted where only its ends differ."""

from pathlib import Path

from torch import Tensor, nn

from vggexp.checkpoints import file as checkpoint
from vggexp.errors import UserError
from vggexp.models import VGG


def load(net: nn.Module, file: str) -> str:
    """Loads one of our checkpoints, or a state dict under our names, torchvision's or timm's, into a network.

    What a training loop has wrapped around the state dict is taken off. A first convolution over several channels is
    summed to one, which gives the same output for a gray image. The classifier keeps its initial weights from its first
    linear layer of another size on. The line that is returned says what was loaded, adapted and left out.
    """
    label = f"model.weights={file}"
    found = checkpoint.state_dicts(checkpoint.read(Path(file).expanduser(), "model.weights"), label)
    own, notes = net.state_dict(), []
    named = {where: _renamed(net, weights) for where, weights in found.items()}
    where = max(named, key=lambda where: len(named[where].keys() & own.keys()))
    theirs = named[where]
    checkpoint.check_finite(theirs, label)
    if where and where not in OURS:
        notes.append(f"taken from {where}" if where.startswith("its") else f"taken {where}")
    if rest := max(map(len, found.values())) - len(found[where]):
        notes.append(f"{rest} of its tensors are not the network's")

    first = next((f"{name}.weight" for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)), "")
    kernel = theirs.get(first)
    if kernel is not None and kernel.ndim == 4 and own[first].shape[1] == 1 < kernel.shape[1]:
        theirs[first] = kernel.sum(dim=1, keepdim=True)
        notes.append(f"adapted {first} (summed over {kernel.shape[1]} channels)")

    linear = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    fresh: list[str] = []
    for key, mine in own.items():
        given = theirs.get(key)
        if given is None and key.endswith(".num_batches_tracked"):  # older files lack it, and nothing depends on it
            continue
        if given is not None and given.is_floating_point() != mine.is_floating_point():
            dtype = str(given.dtype).removeprefix("torch.")
            raise UserError(f"{label}: has {key} as {dtype}; use weights that are not quantized")
        if given is None or (given.shape != mine.shape and key.rpartition(".")[0] not in linear):
            has = "lacks it" if given is None else f"has {_size(given)}"
            raise UserError(f"{label}: belongs to another network: {key} is {_size(mine)} here, the file {has}")
        if given.shape != mine.shape and not fresh:
            fresh = linear[linear.index(key.rpartition(".")[0]) :]
            notes.append(f"left out {', '.join(fresh)} ({key} is {_size(given)} there, {_size(mine)} here)")
    if extra := [key for key in theirs if key not in own]:
        raise UserError(f"{label}: belongs to another network: the file has {extra[0]}, this network does not")

    taken = {key: tensor for key, tensor in theirs.items() if key.rpartition(".")[0] not in fresh}
    net.load_state_dict(taken, strict=False)
    return "; ".join([f"weights from {file}: loaded {len(taken)} of {len(own)} entries", *notes])


OURS = ("without the prefix net.", "its state_dict, without the prefix net.")
TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
"""The names of timm's linear layers, two of them convolutions over all that is left, and torchvision's."""


def _renamed(net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under a network's own names, where they have torchvision's or timm's."""
    if "pre_logits.fc1.weight" in weights:
        pairs = ((name.rpartition("."), tensor) for name, tensor in weights.items())
        weights = {
            f"{TIMM.get(layer, layer)}.{name}": tensor.flatten(1) if layer in TIMM and tensor.ndim == 4 else tensor
            for (layer, _, name), tensor in pairs
        }
    ours = {name: key for key, name in net.torchvision_names().items()} if isinstance(net, VGG) else {}
    if len(ours.keys() & weights.keys()) > len(set(ours.values()) & weights.keys()):
        weights = {ours.get(name, name): tensor for name, tensor in weights.items()}
    return weights


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
