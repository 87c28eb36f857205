"""Checkpoints that try to run code, exhaust memory or never end are refused in one line."""

import io
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trials import Tally

from conftest import Run
from vggexp.checkpoints import file as checkpoint
from vggexp.errors import UserError
from vggexp.inference import load as trained

pytestmark = pytest.mark.slow


class Call:
    """An object whose pickle is a function call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def archive(content: bytes, method: int = zipfile.ZIP_STORED, name: str = "archive/data.pkl", **more: bytes) -> bytes:
    """A zip archive in the format of `torch.save`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr(name, content)
        file.writestr("archive/version", "3")
        file.writestr("archive/byteorder", "little")
        for entry, data in more.items():
            file.writestr(f"archive/data/{entry.removeprefix('_')}", data)
    return buffer.getvalue()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def attacks(canary: Path, good: dict[str, Any]) -> dict[str, bytes]:
    """File contents by name; each would do something that a weights file must not do."""
    import builtins
    import os
    import subprocess

    touch = f"touch {canary}"
    calls = {
        "os.system": Call(os.system, touch),
        "eval": Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
        "Popen": Call(subprocess.Popen, ["touch", str(canary)]),
        "Path.touch": Call(Path.touch, canary),
        "open": Call(open, str(canary), "w"),
    }
    found: dict[str, bytes] = {}
    for name, call in calls.items():
        found[f"{name} in a bare pickle"] = pickle.dumps({"state_dict": call}, 2)
        found[f"{name} in an archive"] = archive(pickle.dumps({"state_dict": call}, 2))
    for protocol in (0, 1, 3, 4, 5):
        found[f"os.system by protocol {protocol}"] = archive(pickle.dumps(calls["os.system"], protocol))

    def altered(**changes: Any) -> bytes:
        return saved(good | changes)

    def configured(**model: Any) -> bytes:
        return altered(config=good["config"] | {"model": good["config"]["model"] | model})

    shared: list[Any] = []
    for _ in range(40):
        shared = [shared, shared]
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    name = next(iter(good["state_dict"]))
    vast = torch.zeros(1).expand(10**6, 10**6)
    many = {f"x{n}": torch.zeros(2**18) for n in range(1)} | {f"y{n}": None for n in range(1)}
    many = {f"x{n}": many["x0"] for n in range(1000)}
    found |= {
        "a whole network": saved(torch.nn.Linear(2, 2)),
        "packed data": archive(pickle.dumps({"state_dict": "x" * 10**7}, 2), zipfile.ZIP_DEFLATED),
        "a huge pickle": archive(pickle.dumps({"state_dict": b"x" * (2**26 + 1)}, 2)),
        "parts that stand for 2^40": altered(more=shared),
        "deep nesting": altered(more=nested),
        "a weight of 4 TB in 4 bytes": altered(state_dict=good["state_dict"] | {name: vast}),
        "one tensor a thousand times": altered(state_dict=good["state_dict"] | many),
        "a target in the hyperparameters": configured(_target_="os.system", command=touch),
        "a package that is not allowed": configured(_target_="evil.Evil"),
        "a package that it allows itself": altered(
            config=good["config"] | {"allowed_packages": ["os"], "model": {"_target_": "os.system"}}
        ),
        "10^12 classes": altered(dimensions=good["dimensions"] | {"num_classes": 10**12}),
        "fewer names than classes": altered(classes=good["classes"][:3]),
        "dimensions that are not numbers": altered(dimensions=dict.fromkeys(good["dimensions"], "x")),
        "a dimension too many": altered(dimensions=good["dimensions"] | {"dropout": 1}),
        "classes that are not names": altered(classes=[1] * 10),
        "a network of 10^15 units": configured(hidden=16 * 10**14),
        "10^9 layers": configured(blocks=[[10**9, 64]]),
        "an interpolation": configured(arch="${oc.env:HOME}"),
        "wrong magic": b"\x89PNG" + saved(good),
        "half of it": saved(good)[: len(saved(good)) // 2],
        "nothing": b"",
        "text": b"state_dict: {}\n",
        "a zip of something else": archive(b"hello", name="hello.txt"),
        "a storage that is missing": saved(good).replace(b"data/0", b"data/9"),
        "a claimed size": _claim(archive(pickle.dumps({}, 2), _0=b"0000")),
    }
    return found


def _claim(content: bytes) -> bytes:
    """Changes the size of the last entry to 4 GB in the directory of the archive."""
    start = content.rindex(b"PK\x01\x02")
    return content[: start + 20] + struct.pack("<II", 2**32 - 2, 2**32 - 2) + content[start + 28 :]


BLOWN_UP = ("parts that stand for 2^40", "a weight of 4 TB in 4 bytes", "one tensor a thousand times")


def test_attacks_by_a_checkpoint(tally: Callable[[str], Tally], trained_run: Run, tmp_path: Path) -> None:
    """Tries each attack with and without a valid checksum, which anyone can compute."""
    tries = tally("attacks by a checkpoint")
    canary = tmp_path / "canary"
    good = checkpoint.read(trained_run.folder / "checkpoints" / "best.ckpt", "run")
    trained.load(str(trained_run.folder / "checkpoints" / "best.ckpt"), {"allowed_packages": ["synthetic"]})
    found = attacks(canary, good)
    assert len(found) >= 30
    for number, (name, content) in enumerate(found.items()):
        with tries.trial(name):
            path = tmp_path / f"{number}.ckpt"
            sha256 = checkpoint.hashlib.sha256(content).hexdigest().encode()
            for sealed in (b"", checkpoint.MARK + sha256):
                path.write_bytes(content + sealed)
                start = time.monotonic()
                with pytest.raises(UserError) as error:
                    trained.load(str(path), {"allowed_packages": ["synthetic"]})
                if name in BLOWN_UP:  # before anything compares them with a network
                    with pytest.raises(UserError, match="more than its size allows"):
                        checkpoint.read(path, "run")
                assert "\n" not in str(error.value)
                assert str(path) in str(error.value)
                assert time.monotonic() - start < 60
                assert not canary.exists()
    tries.check()


@pytest.fixture
def trained_run(trained: Run) -> Run:
    return trained
