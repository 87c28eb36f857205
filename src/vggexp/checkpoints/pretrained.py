"""`model.weights=FILE`: a network starts from another's weights, adapted where only its ends differ."""

from pathlib import Path

from torch import Tensor, nn

from vggexp.checkpoints import file as checkpoint
from vggexp.errors import UserError
from vggexp.models import VGG


def load(net: nn.Module, file: str) -> str:
    """Loads one of our checkpoints, or a state dict under our names or torchvision's, into a network.

    A first convolution over several channels is summed to one, which gives the same output for a gray image. The
    classifier keeps its initial weights from its first linear layer of another size on. The line that is returned says
    what was loaded, adapted and left out.
    """
    label = f"model.weights={file}"
    theirs = checkpoint.state_dict(checkpoint.read(Path(file).expanduser(), "model.weights"), label)
    ours = {name: key for key, name in net.torchvision_names().items()} if isinstance(net, VGG) else {}
    if len(ours.keys() & theirs.keys()) > len(set(ours.values()) & theirs.keys()):
        theirs = {ours.get(name, name): tensor for name, tensor in theirs.items()}
    own, notes = net.state_dict(), []

    first = next((f"{name}.weight" for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)), "")
    kernel = theirs.get(first)
    if kernel is not None and kernel.ndim == 4 and own[first].shape[1] == 1 < kernel.shape[1]:
        theirs[first] = kernel.sum(dim=1, keepdim=True)
        notes.append(f"adapted {first} (summed over {kernel.shape[1]} channels)")

    linear = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    fresh: list[str] = []
    for key, mine in own.items():
        found = theirs.get(key)
        if found is None or (found.shape != mine.shape and key.rpartition(".")[0] not in linear):
            has = "lacks it" if found is None else f"has {_size(found)}"
            raise UserError(f"{label}: belongs to another network: {key} is {_size(mine)} here, the file {has}")
        if found.shape != mine.shape and not fresh:
            fresh = linear[linear.index(key.rpartition(".")[0]) :]
            notes.append(f"left out {', '.join(fresh)} ({key} is {_size(found)} there, {_size(mine)} here)")
    if extra := [key for key in theirs if key not in own]:
        raise UserError(f"{label}: belongs to another network: the file has {extra[0]}, this network does not")

    taken = {key: tensor for key, tensor in theirs.items() if key.rpartition(".")[0] not in fresh}
    net.load_state_dict(taken, strict=False)
    return "; ".join([f"weights from {file}: loaded {len(taken)} of {len(own)} entries", *notes])


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
