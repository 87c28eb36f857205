"""Measures the most that this machine can do: multiply-accumulates in a 3×3 convolution, and bytes copied.

python -m benchmarks.ceilings      prints, as JSON, operations per second by precision, and bytes per second
"""

import json
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from vggexp.system import memory

SECONDS = 1.5
SHAPES = ((64, 64, 56), (64, 128, 28), (32, 256, 28), (32, 512, 14))
"""Images, channels and pixels of VGG's middle blocks, where a convolution is fastest."""


def median(call: Callable[[], object], device: str = "cpu") -> float:
    """The median time of a call in seconds, over at least `SECONDS`."""
    times: list[float] = []
    call()
    call()
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def convolution(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations per second for the fastest shape, by its median time; a multiply-accumulate counts as two."""
    found = []
    for images, channels, size in SHAPES:
        maps = torch.randn(images, channels, size, size, device=device, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds = median(lambda maps=maps, kernel=kernel: F.conv2d(maps, kernel, padding=1), device)
        found.append(2 * images * channels * channels * 9 * size * size / seconds)
    return max(found)


def copy(device: str = "cpu", numbers: int = 100_000_000) -> float:
    """Bytes read and written per second."""
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    return 8 * numbers / median(lambda: target.copy_(source), device)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory.keep_freed()
    ceilings = {"fp32": convolution(torch.float32, device), "bf16": convolution(torch.bfloat16, device)}
    print(json.dumps(ceilings | {"copy": copy(device)}))


if __name__ == "__main__":
    main()
