"""python -m vggexp.export run=PATH [KEY=VALUE ...]

Writes a finished network in forms that other programs read.

  run       a run folder, a checkpoint file, or last: the newest run under outputs/
  formats   of onnx, torch and safetensors, those wanted, between commas (default: all)
  input     raw: (N, 28, 28) uint8 images, the resize is part of the network (default);
            tensor: (N, 1, S, S) float32 images in [0, 1], already of the network's size
  output    a folder (default: export/ in the run's folder)
  data.*    where the data lie now, e.g. data.root=FOLDER

All give logits, (N, 10), for any N. model.onnx runs in onnxruntime, model.pt2 in torch.export, model.safetensors holds
the bare weights, with the model's config in its metadata. The ONNX file is run on test images and is only kept if its
logits are within 1e-4 of the network's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from rich.box import SIMPLE_HEAD
from rich.table import Table

from vggexp.commands import options
from vggexp.errors import UserError
from vggexp.inference import load as trained
from vggexp.system import terminal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TOLERANCE = 1e-4
TEST_IMAGES = 256
Format = Literal["onnx", "torch", "safetensors"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors"}


class Export(options.Options):
    run: str
    formats: Annotated[
        list[Format],
        Field(min_length=1),
        BeforeValidator(lambda text: text.split(",")),
    ] = Field(default_factory=lambda: list(FILES))
    input: Literal["raw", "tensor"] = "raw"
    output: Path | None = None


def main(args: list[str]) -> int:
    """Returns the exit code."""
    given, overrides = options.parse(Export, args, trained.OVERRIDABLE)
    found = trained.load(given.run, overrides)
    folder = given.output or found.folder / "export"
    try:
        with options.output(folder):
            differences = export(found, folder, given.formats, given.input)
    except ImportError as error:
        raise UserError(f"formats: {error.name} is not installed: pip install 'vggexp[export]'", 1) from error
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("file", "size", f"largest difference of the logits of {TEST_IMAGES} test images"):
        table.add_column(column)
    for name, difference in differences.items():
        path = folder / FILES[name]
        table.add_row(str(path), f"{path.stat().st_size / 2**20:.1f} MiB", f"{difference:.1e}")
    terminal.console().print(table)
    return 0


def export(found: trained.Trained, folder: Path, formats: Sequence[Format], input: str = "raw") -> dict[Format, float]:
    """Writes the files and reads each back.

    Returns:
        By format the largest absolute difference between the logits of the file's network and of ours.

    Raises:
        UserError: a file does not give our logits; it is not kept.
    """
    import torch

    from vggexp.config.instantiate import datamodule
    from vggexp.data.resize import prepared
    from vggexp.training import run

    run.quiet()
    net = found.module.predictor.to(memory_format=torch.contiguous_format).eval()
    data = datamodule(found.cfg)
    data.prepare_data()
    data.setup()
    raw = data.sets["test"].tensors[0][:TEST_IMAGES]
    ready = prepared(raw, found.cfg.model.image_size)
    with torch.inference_mode():
        expected = net(ready)
    images = ready
    if input == "raw":
        images, net = raw, _with_resize(net, found.cfg.model.image_size)

    writers: dict[Format, Any] = {"onnx": _onnx, "torch": _torch, "safetensors": _safetensors}
    differences: dict[Format, float] = {}
    for name in formats:
        path = folder / FILES[name]
        temporary = path.with_name(f".{path.name}")
        logits = writers[name](found, net, images, temporary)
        differences[name] = float((logits - expected).abs().max())
        if not differences[name] <= TOLERANCE:
            temporary.unlink()
            raise UserError(
                f"formats={name}: its logits differ from the network's by {differences[name]:.1e}, more than "
                f"{TOLERANCE:.0e}; {path} was not written",
                1,
            )
        temporary.replace(path)
    return differences


def _with_resize(net: "nn.Module", size: int) -> "nn.Module":
    """(N, H, W) uint8 → (N, K)."""
    import torch
    from torch import nn

    from vggexp.data.resize import prepared

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net(prepared(images, size))
            return logits

    prepared(torch.zeros(1, 28, 28, dtype=torch.uint8), size)  # fills its cache before tracing would
    return Raw().eval()


def _traced(net: "nn.Module", images: "Tensor") -> "torch.export.ExportedProgram":
    import torch

    with torch.no_grad():
        return torch.export.export(net, (images[:2].clone(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def _onnx(found: trained.Trained, net: "nn.Module", images: "Tensor", path: Path) -> "Tensor":
    import onnxruntime
    import torch

    program = torch.onnx.export(
        _traced(net, images),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torch(found: trained.Trained, net: "nn.Module", images: "Tensor", path: Path) -> "Tensor":
    import torch

    with open(path, "wb") as file:
        torch.export.save(_traced(net, images), file)
    with open(path, "rb") as file, torch.inference_mode():
        logits: Tensor = torch.export.load(file).module()(images)
    return logits


def _safetensors(found: trained.Trained, net: "nn.Module", images: "Tensor", path: Path) -> "Tensor":
    import torch
    from safetensors.torch import load_file, save_file

    model = found.cfg.model.spec()
    bare = found.module.net
    save_file(bare.state_dict(), path, {"model": json.dumps(model), "classes": json.dumps(found.classes)})
    bare.load_state_dict(load_file(path))
    with torch.inference_mode():
        logits: Tensor = net(images)
    return logits
