"""The resize is bit-identical to PIL's bilinear `Image.resize`."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import PIL
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import transforms

from vggexp.data import idx
from vggexp.data.resize import prepared, resize, resize_in_graph
from vggexp.data.source import Fit

SIZES = [28, 29, 31, 32, 33, 50, 64, 95, 96, 97, 100, 160, 199, 224, 255, 299]
SHAPES = [  # height, width, size
    (28, 28, 28), (28, 28, 27), (29, 29, 28), (97, 97, 96), (64, 64, 31), (331, 331, 7), (500, 500, 96),
    (20, 28, 45), (28, 20, 45), (45, 61, 32), (61, 45, 32), (120, 90, 101), (90, 120, 101), (32, 61, 32), (61, 32, 32),
    (300, 7, 32), (7, 300, 32), (1, 1, 9), (1, 50, 9), (50, 1, 9), (331, 2, 7), (3, 331, 7), (23, 20, 18), (55, 8, 32),
    (64, 48, 32), (65, 48, 32), (33, 36, 28), (36, 33, 28), (5, 4, 1), (199, 211, 13),
]  # fmt: skip
FITS: tuple[Fit, ...] = get_args(Fit)


def by_pil(images: Tensor, size: int, fit: Fit = "stretch") -> Tensor:
    """(N, C, H, W) → (N, C, size, size)."""
    resized = []
    for array in images.permute(0, 2, 3, 1).numpy():
        image = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
        width, height = image.size
        shorter, longer = sorted(image.size)
        if fit == "crop":
            left, top = (width - shorter) // 2, (height - shorter) // 2
            image = image.crop((left, top, left + shorter, top + shorter))
        elif fit == "pad":
            image = ImageOps.pad(image, (longer, longer))
        elif int(PIL.__version__.split(".")[0]) < 13 and height - size > 2 * max(0, width - size):
            image = image.resize((width, size), Image.Resampling.BILINEAR)  # as later versions do
        resized.append(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1))
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def examples(channels: int, height: int, width: int) -> Tensor:
    """Noise, and edges between 0 and 255: (4, C, H, W)."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    noise = torch.randint(0, 256, (4, channels, height, width), generator=generator, dtype=torch.uint8)
    return torch.cat([noise[:2], (noise[2:] > 127) * torch.tensor(255, dtype=torch.uint8)])


@pytest.mark.parametrize("size", SIZES)
def test_enlarged_images_are_bit_identical_to_pil(size: int) -> None:
    images = examples(1, 28, 28)
    assert torch.equal(resize(images, size), by_pil(images, size))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_all_shapes_and_fits_are_bit_identical_to_pil(height: int, width: int, size: int, channels: int) -> None:
    images = examples(channels, height, width)
    for fit in FITS if height != width else FITS[:1]:
        expected = by_pil(images, size, fit)
        assert torch.equal(resize(images, size, fit), expected), fit
        assert torch.equal(resize_in_graph(images, size, fit), expected), fit


class InGraph(nn.Module):
    def __init__(self, size: int, fit: Fit) -> None:
        super().__init__()
        self.size, self.fit = size, fit

    def forward(self, images: Tensor) -> Tensor:
        return resize_in_graph(images, self.size, self.fit)


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS)
def test_one_graph_serves_all_shapes(fit: Fit, tmp_path: Path) -> None:
    shapes = (dict.fromkeys(range(4), torch.export.Dim.DYNAMIC),)
    program = torch.export.export(InGraph(32, fit), (examples(3, 28, 28),), dynamic_shapes=shapes)
    onnx = torch.onnx.export(program, input_names=["images"], dynamic_shapes=(dict(enumerate("NCHW")),), verbose=False)
    onnx.save(tmp_path / "resize.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "resize.onnx", providers=["CPUExecutionProvider"])
    for height, width in [(28, 28), (32, 32), (45, 61), (61, 45), (300, 200), (200, 301), (300, 7), (1, 50), (50, 1)]:
        for count, channels in [(1, 1), (3, 3)]:
            images = examples(channels, height, width)[-count:]
            expected = by_pil(images, 32, fit)
            assert torch.equal(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected)
            assert torch.equal(program.module()(images), expected)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("size", SIZES)
def test_real_images_are_bit_identical_to_pil(size: int, real_cache: str) -> None:
    files = idx.obtain(idx.FASHION_MNIST, cache_dir=real_cache, online=False)
    images = torch.from_numpy(idx.parse(files[idx.TEST_IMAGES])[:200].copy()).unsqueeze(1)
    assert torch.equal(resize(images, size), by_pil(images, size))


def test_pixels_match_the_chapters_transform() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    chapter = transforms.Compose([transforms.Resize(96), transforms.ToTensor()])(Image.fromarray(image))
    assert torch.equal(prepared(torch.from_numpy(image)[None, None], 96)[0], chapter)


def test_the_input_images_are_not_changed() -> None:
    images: Tensor = torch.full((1, 1, 28, 28), 7, dtype=torch.uint8)
    resize(images, 64)
    assert images.unique().tolist() == [7]
