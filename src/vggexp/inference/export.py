"""Writes a finished network for other programs, and reads each file back to see that it computes the same."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vggexp.config.instantiate import datamodule
from vggexp.data.resize import prepared
from vggexp.errors import UserError
from vggexp.inference.load import Network
from vggexp.system import files

TOLERANCE = 1e-4  # of logits, relative to the largest
TEST_IMAGES = 256
Format = Literal["onnx", "torch", "safetensors"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors"}


def export(network: Network, folder: Path, formats: Sequence[Format], input: str = "raw") -> dict[Format, float]:
    """Writes the files, with what they are, and reads each back; one whose logits differ by too much is not kept.

    Args:
        input: `raw`: the files' networks take (N, H, W) uint8 images; `tensor`: (N, C, S, S) float32 in [0, 1].

    Returns:
        By format the largest absolute difference between the logits of the file's network and of this one.
    """
    net = network.module.predictor.to(memory_format=torch.contiguous_format).eval()
    data = datamodule(network.cfg)
    data.prepare_data()
    data.setup()
    raw = data.sets["test"].tensors[0][:TEST_IMAGES]
    size = network.dimensions["image_size"]
    ready = prepared(raw, size)
    with torch.inference_mode():
        expected = net(ready)
    images, net = (raw, _Raw(net, size).eval()) if input == "raw" else (ready, net)

    writers = {"onnx": _onnx, "torch": _torch, "safetensors": _safetensors}
    differences: dict[Format, float] = {}
    for name in formats:
        path = folder / FILES[name]
        with files.replacing(path) as temporary:
            logits = writers[name](network, net, images, temporary)
            temporary.chmod(0o644)  # some writers let nobody else read
            differences[name] = float((logits - expected).abs().max())
            allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
            if not differences[name] <= allowed:
                difference = f"{differences[name]:.1e}, more than {allowed:.1e}"
                message = f"its logits differ from the network's by {difference}; {path} was not written"
                raise UserError(f"formats={name}: {message}", 1)
    return differences


class _Raw(nn.Module):
    """A network with the resize in front: (N, H, W) uint8 → (N, K)."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size
        prepared(torch.zeros(1, 28, 28, dtype=torch.uint8), size)  # fills its cache before tracing would

    def forward(self, images: Tensor) -> Any:
        return self.net(prepared(images, self.size))


def _traced(net: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(net, (images[:2].clone(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def _about(network: Network, images: Tensor) -> dict[str, str]:
    """What a file holds, as JSON by name."""
    shape = "×".join(["N", *map(str, images.shape[1:])])
    values = "0 to 255, light on black" if images.dtype == torch.uint8 else "0 to 1, light on black"
    about = {
        "classes": network.classes,
        "input": f"{shape} {str(images.dtype).removeprefix('torch.')}, {values}",
        "output": f"N×{len(network.classes)} float32, logits",
        "model": network.cfg.model.spec(),
        "dimensions": network.dimensions,
        "run": network.folder.name,
        "config_hash": network.cfg.hash(),
        "vggexp": version("vggexp"),
    }
    return {name: json.dumps(value) for name, value in about.items()}


def _onnx(network: Network, net: nn.Module, images: Tensor, path: Path) -> Tensor:
    import onnxruntime

    names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    program: Any = torch.onnx.export(_traced(net, images), **names, verbose=False)
    program.model.metadata_props.update(_about(network, images))
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torch(network: Network, net: nn.Module, images: Tensor, path: Path) -> Any:
    with open(path, "wb") as file:
        torch.export.save(_traced(net, images), file, extra_files=_about(network, images))
    with open(path, "rb") as file, torch.inference_mode():
        return torch.export.load(file).module()(images)


def _safetensors(network: Network, net: nn.Module, images: Tensor, path: Path) -> Any:
    from safetensors.torch import load_file, save_file

    bare = network.module.net
    save_file(bare.state_dict(), path, _about(network, images))
    bare.load_state_dict(load_file(path))
    with torch.inference_mode():
        return net(images)
