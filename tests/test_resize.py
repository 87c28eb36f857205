"""The resize is bit-identical to PIL's bilinear `Resize`, which the chapter uses."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from vggexp.data import idx
from vggexp.data.resize import resize

SIZES = [28, 29, 31, 32, 33, 50, 64, 95, 96, 97, 100, 160, 199, 224, 255, 299]


def by_pil(images: np.ndarray, size: int) -> np.ndarray:
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in resized])


@pytest.mark.parametrize("size", SIZES)
def test_noise_and_edges_are_bit_identical_to_pil(size: int) -> None:
    generator = np.random.default_rng(size)
    noise = generator.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    edges = generator.choice(np.array([0, 255], dtype=np.uint8), (20, 28, 28))
    images = np.concatenate([noise, edges])
    assert np.array_equal(resize(torch.from_numpy(images), size).numpy(), by_pil(images, size))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("size", SIZES)
def test_real_images_are_bit_identical_to_pil(size: int, real_cache: str) -> None:
    files = idx.obtain(idx.FASHION_MNIST, cache_dir=real_cache, online=False)
    images = idx.parse(files[idx.TEST_IMAGES])[:200]
    assert np.array_equal(resize(torch.from_numpy(images.copy()), size).numpy(), by_pil(images, size))


def test_pixels_match_the_chapters_transform() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    chapter = transforms.Compose([transforms.Resize(96), transforms.ToTensor()])(Image.fromarray(image))
    ours = resize(torch.from_numpy(image)[None], 96).unsqueeze(1).float().div_(255)
    assert torch.equal(ours[0], chapter)


def test_images_need_not_be_square() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 28), dtype=np.uint8)
    assert np.array_equal(resize(torch.from_numpy(images), 45).numpy(), by_pil(images, 45))


def test_shrinking_is_refused() -> None:
    with pytest.raises(ValueError, match="size=27"):
        resize(torch.zeros(1, 28, 28, dtype=torch.uint8), 27)


def test_the_input_images_are_not_changed() -> None:
    images: Tensor = torch.full((1, 28, 28), 7, dtype=torch.uint8)
    resize(images, 64)
    assert images.unique().tolist() == [7]
