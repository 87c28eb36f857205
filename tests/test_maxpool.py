"""The kernel for max-pool and ReLU gives torch's bits, forward and backward; without a compiler, torch is used."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggexp.models import VGG
from vggexp.models.cpu import compiler, fused, maxpool

pytestmark = pytest.mark.linux  # where the kernels are compiled

POOL = nn.MaxPool2d(2)
TYPES = [torch.float32, torch.bfloat16]


def maps(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random values, few of them different, so that windows have ties, also between zeros of both signs."""
    torch.manual_seed(0)
    values = torch.randint(-3, 4, shape).to(dtype) * 0.5
    values[values == 0] *= -1
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 9), (7, 9)])
def test_what_belongs_to_no_window_has_no_gradient(monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    used = torch.full((1, 1, height, width), math.nan)  # memory is as its last user left it
    monkeypatch.setattr(torch, "empty", lambda *_, **__: used)
    assert maxpool.gradient_buffer(used.shape, used.dtype).count_nonzero() == 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 64, 8, 8), (2, 16, 7, 9), (5, 12, 6, 4), (4, 3, 3, 2), (1, 1, 2, 2)])
def test_output_and_gradient_match_torch_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = maps(*shape, dtype=dtype)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    assert maxpool.has_kernel(ours, POOL)
    pooled, plain = maxpool.PoolReLU.apply(ours, True), F.relu(F.max_pool2d(theirs, 2))
    assert torch.equal(pooled, plain)
    gradient = torch.randn(plain.shape).to(dtype)
    pooled.backward(gradient)
    plain.backward(gradient)
    assert torch.equal(ours.grad, theirs.grad)
    assert plain.count_nonzero() > 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_propagated_as_in_torch(dtype: torch.dtype, sign: int) -> None:
    """A NaN of either sign, at each position of a window, next to numbers and infinity."""
    values = torch.full((4, 16, 2, 2), math.inf, dtype=dtype).contiguous(memory_format=torch.channels_last)
    bits = values.view({2: torch.int16, 4: torch.int32}[dtype.itemsize])
    for place in range(4):
        values[place, :, place // 2, place % 2] = math.nan
        if sign < 0:
            bits[place, :, place // 2, place % 2] |= torch.iinfo(bits.dtype).min
    assert (bits < 0).any() == (sign < 0)
    assert maxpool.PoolReLU.apply(values, False).isnan().all()


@pytest.mark.parametrize(
    ("pool", "values"),
    [
        (nn.MaxPool2d(3, 2), maps(2, 16, 8, 8, dtype=torch.float32)),
        (POOL, maps(2, 16, 8, 8, dtype=torch.float64)),
        (POOL, maps(2, 16, 8, 8, dtype=torch.float32).contiguous()),
    ],
    ids=["3×3", "float64", "NCHW"],
)
def test_torch_pools_what_has_no_kernel(pool: nn.MaxPool2d, values: Tensor) -> None:
    assert not maxpool.has_kernel(values, pool)
    assert torch.equal(fused.Block(pool, nn.ReLU())(values), F.relu(pool(values)))


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_torch_gives_the_same() -> None:
    assert compiler.library("maxpool") is None
    assert not maxpool.has_kernel(maps(2, 16, 8, 8, dtype=torch.float32), POOL)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_network_computes_the_same_with_and_without_the_kernel(
    dtype: torch.dtype, batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused.Block, "options", fused.Options(piece_bytes=60_000))
    torch.manual_seed(0)
    net = VGG("vgg11", ratio=8, image_size=36, batch_norm=batch_norm, init="kaiming", dropout=0)
    net, images = net.to(memory_format=torch.channels_last), torch.rand(11, 1, 36, 36)
    used: list[str] = []
    call = maxpool._call
    monkeypatch.setattr(maxpool, "_call", lambda name, *tensors: (used.append(name), call(name, *tensors)))

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(net(images).float(), torch.arange(11) % 10)
        return [loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))]

    with_kernel = gradients()
    assert {"forward", "backward"} == set(used)
    del used[:]
    monkeypatch.setattr(maxpool, "has_kernel", lambda *_: False)
    without = gradients()
    assert not used
    assert all(torch.equal(a, b) for a, b in zip(with_kernel, without, strict=True))


def test_the_kernels_share_torchs_thread_runtime() -> None:
    """With a runtime of their own, the kernels would not know how many threads torch may use."""
    assert all(compiler.library(name) for name in ("maxpool", "batchnorm"))
    with open("/proc/self/maps") as file:
        runtimes = {line.split()[-1] for line in file if "libgomp" in line}
    assert len(runtimes) == 1


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache, and no kernels loaded yet; they compile quickly."""
    monkeypatch.setenv("VGGEXP_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "OPTIONS", ("-O0", "-fopenmp", "-fPIC"))
    compiler.library.cache_clear()
    yield
    compiler.library.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_kernels_are_compiled_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert compiler.library("maxpool") is not None
    (kept,) = tmp_path.rglob("maxpool-*.so")
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("it was compiled again"))
    assert compiler.library("maxpool") is not None
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "OPTIONS", ("-O0", "-fPIC"))
    with pytest.raises(pytest.fail.Exception):  # other options give another file
        compiler.library("maxpool")
    assert list(tmp_path.rglob("*.so")) == [kept]


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("obstacle", ["others may write", "a link", "a file", "damaged"])
def test_a_kept_kernel_that_cannot_be_trusted_is_not_loaded(obstacle: str, tmp_path: Path) -> None:
    assert compiler.library("maxpool") is not None
    (kept,) = tmp_path.rglob("*.so")
    before = kept.read_bytes()
    folder, moved = kept.parent, tmp_path / "moved"
    kept.write_bytes(b"not a library")
    if obstacle == "others may write":
        folder.chmod(0o777)
    elif obstacle != "damaged":
        folder.rename(moved)
        folder.touch() if obstacle == "a file" else folder.symlink_to(moved)
    compiler.library.cache_clear()
    assert compiler.library("maxpool") is not None  # compiled for this process alone
    assert before not in [path.read_bytes() for path in tmp_path.rglob("*.so")]


def test_a_compiler_that_hangs_and_a_missing_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "g++"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    monkeypatch.setattr(compiler, "PATIENCE", 0.2)
    monkeypatch.setattr("shutil.which", lambda name: str(script))
    assert compiler.library.__wrapped__("maxpool") is None

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", missing)
    assert compiler.library.__wrapped__("maxpool") is None
