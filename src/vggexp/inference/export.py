"""Writes a finished network for other programs, and reads each file back to see that it computes the same."""

import functools
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vggexp.config.instantiate import datamodule
from vggexp.data.preparation import Preparation
from vggexp.data.resize import prepared, resize_in_graph
from vggexp.errors import UserError
from vggexp.inference.load import Network
from vggexp.system import files

TOLERANCE = 1e-4  # of logits, relative to the largest
TEST_IMAGES = 256
Format = Literal["onnx", "torch", "safetensors"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors"}


def export(network: Network, folder: Path, formats: Sequence[Format], input: str = "raw") -> dict[Format, float]:
    """Writes the files, with what they are, and reads each back; one whose logits differ by too much is not kept.

    With `input` `raw` the files' networks take (N, C, H, W) uint8 images, with `tensor` (N, C, S, S) float32 in [0, 1].
    What is returned is by format the largest absolute difference between the logits of the file and of the network.
    """
    net = network.classifier.predictor.to(memory_format=torch.contiguous_format).eval()
    data = datamodule(network.cfg)
    data.setup()
    raw, ready = data.stored("test", torch.arange(min(TEST_IMAGES, len(data.indices["test"])))), network.preparation
    with torch.inference_mode():
        expected = net(ready(raw))
    net = nn.Sequential(ready.normalize, net)
    images, net = (raw, _Raw(net, ready).eval()) if input == "raw" else (prepared(raw, ready.size, ready.fit), net)

    trace = functools.cache(lambda: _traced(net, images))
    writers: dict[Format, Callable[[Path], Tensor]] = {
        "onnx": lambda path: _onnx(network, trace, images, path),
        "torch": lambda path: _torch(network, trace, images, path),
        "safetensors": lambda path: _safetensors(network, net, images, path),
    }
    differences: dict[Format, float] = {}
    for name in formats:
        path = folder / FILES[name]
        with files.replacing(path) as temporary:
            logits = writers[name](temporary)
            temporary.chmod(0o644)  # some writers let nobody else read
            differences[name] = float((logits - expected).abs().max())
            allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
            if not differences[name] <= allowed:
                difference = f"{differences[name]:.1e}, more than {allowed:.1e}"
                message = f"its logits differ from the network's by {difference}; {path} was not written"
                raise UserError(f"formats={name}: {message}", 1)
    return differences


class _Raw(nn.Module):
    """A network with the resize in front: (N, C, H, W) uint8 → (N, K)."""

    def __init__(self, net: nn.Module, preparation: Preparation) -> None:
        super().__init__()
        self.net, self.fit = net, preparation.fit
        self.sizes = dict.fromkeys((preparation.side, preparation.size))  # as the training images, then the network's

    def forward(self, images: Tensor) -> Any:
        for size in self.sizes:
            images = resize_in_graph(images, size, self.fit)
        return self.net(images.float() / 255)


Traced = tuple[torch.export.ExportedProgram, dict[int, str]]


def _traced(net: nn.Module, images: Tensor) -> Traced:
    """The program, and the names of the axes that can have any length: of raw images the height and width, too."""
    axes = {0: "batch", 2: "height", 3: "width"} if images.dtype == torch.uint8 else {0: "batch"}
    with torch.no_grad():
        shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
        return torch.export.export(net, (images[:1].repeat(2, 1, 1, 1),), dynamic_shapes=shapes), axes


def _about(network: Network, images: Tensor) -> dict[str, str]:
    """What a file holds, as JSON by name."""
    channels, size = images.shape[1:3]
    raw = f"N×{channels}×H×W uint8, any size, 0 to 255"
    values = raw if images.dtype == torch.uint8 else f"N×{channels}×{size}×{size} float32, 0 to 1"
    about = {
        "classes": network.classes,
        "input": f"{values}, light on black" if channels == 1 else f"{values}, RGB",
        "output": f"N×{len(network.classes)} float32, logits",
        "model": network.cfg.model.spec(),
        "dimensions": network.dimensions,
        "preparation": network.preparation.values(),
        "run": network.folder.name,
        "config_hash": network.cfg.hash(),
        "vggexp": version("vggexp"),
    }
    return {name: json.dumps(value) for name, value in about.items()}


def _onnx(network: Network, trace: Callable[[], Traced], images: Tensor, path: Path) -> Tensor:
    import onnxruntime

    traced, axes = trace()
    names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": (axes,)}
    program: Any = torch.onnx.export(traced, **names, verbose=False)
    program.model.metadata_props.update(_about(network, images))
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torch(network: Network, trace: Callable[[], Traced], images: Tensor, path: Path) -> Any:
    with open(path, "wb") as file:
        torch.export.save(trace()[0], file, extra_files=_about(network, images))
    with open(path, "rb") as file, torch.inference_mode():
        return torch.export.load(file).module()(images)


def _safetensors(network: Network, net: nn.Module, images: Tensor, path: Path) -> Any:
    from safetensors.torch import load_file, save_file

    bare = network.module
    save_file(bare.state_dict(), path, _about(network, images))
    bare.load_state_dict(load_file(path))
    with torch.inference_mode():
        return net(images)
