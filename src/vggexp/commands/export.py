"""vggexp export run=PATH [KEY=VALUE ...]

Writes a finished network in forms that other programs read.

  run       a run folder, a checkpoint file, or last: the newest run under outputs/
  formats   of onnx, torch and safetensors, those wanted, between commas (default: all)
  input     raw: (N, C, H, W) uint8 images of any size, the resize is part of the network (default);
            tensor: (N, C, S, S) float32 images in [0, 1], already of the network's size
  output    a folder (default: export/ in the run's folder)
  data.*    where the data lie now, e.g. data.root=FOLDER

All give logits, (N, K), for any N. model.onnx runs in onnxruntime, model.pt2 in torch.export, model.safetensors holds
the bare weights, with the model's config in its metadata. The ONNX file is run on test images and is only kept if its
logits are within 1e-4 of the network's.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from vggexp.commands import options
from vggexp.errors import UserError
from vggexp.inference import load
from vggexp.runs import layout
from vggexp.system import files, paths, terminal

Format = Literal["onnx", "torch", "safetensors"]


class Export(options.Options):
    run: str
    formats: Annotated[list[Format], Field(min_length=1), BeforeValidator(lambda text: text.split(","))] = Field(
        default_factory=lambda: list(get_args(Format))
    )
    input: Literal["raw", "tensor"] = "raw"
    output: Path | None = None


def main(args: list[str]) -> int:
    given, overrides = options.parse(Export, args, load.OVERRIDABLE)
    network = load.load(given.run, overrides)
    folder = given.output or network.folder / layout.EXPORT
    from vggexp.inference.export import FILES, export

    try:
        with files.writing(folder, f"output={folder}"):
            differences = export(network, folder, given.formats, given.input)
    except ImportError as error:
        raise UserError(f"formats: {error.name} is not installed; {paths.install('export')}", 1) from error
    rows = [
        [path := folder / FILES[name], f"{path.stat().st_size / 2**20:.1f} MiB", f"{difference:.1e}"]
        for name, difference in differences.items()
    ]
    header = ("file", "size", "largest difference of the logits of test images")
    terminal.console().print(terminal.table(header, rows))
    return 0
