"""Checkpoints and records of which one part is something else: a line says so, and nothing runs away."""

import copy
import io
import json
import pickle
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import Call, archive, saved
from test_strangers import COMMANDS, attempt, finished  # noqa: F401  (a fixture)
from trials import Server, Tally

from conftest import QUICK, Run
from vggexp.checkpoints import archive as archives
from vggexp.checkpoints import file as checkpoint
from vggexp.errors import UserError
from vggexp.inference import load as trained

pytestmark = pytest.mark.slow

LOAD = {"allowed_packages": ["synthetic"]}
OTHERS: dict[str, Any] = {
    "nothing": None,
    "a text": "\x1b[2J\u202epoison",
    "a negative number": -1,
    "a huge number": 2**40,
    "no number": float("nan"),
    "an empty list": [],
    "an empty dict": {},
    "a tensor": torch.zeros(3),
    "a dict of texts": {"a": {"b": "c"}},
}
"""What may stand where something else is expected."""


def seal(content: bytes) -> bytes:
    """A file's bytes with a checksum that fits, which anyone can compute."""
    return content + checkpoint.MARK + checkpoint.hashlib.sha256(content).hexdigest().encode()


def places(tree: Any, depth: int = 3, most: int = 1000) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each part of a tree, to a depth; of lists and of many like keys below only the first."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        pairs = list(tree.items())[:most]
    elif isinstance(tree, list):
        pairs = list(enumerate(tree))[:1]
    for key, value in pairs:
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in places(value, depth - 1, 8))


def put(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a tree with another part at a place; `...` takes the part away."""
    made = copy.copy(tree)
    if len(place) > 1:
        made[place[0]] = put(tree[place[0]], place[1:], value)
    elif value is ...:
        del made[place[0]]
    else:
        made[place[0]] = value
    return made


def test_checkpoints_of_which_a_part_is_something_else(
    tally: Callable[[str], Tally], trained: Run, tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    """Loaded to be used; each part is taken away, or replaced by each of OTHERS."""
    tries = tally("altered checkpoints, used")
    good = checkpoint.read(trained.folder / "checkpoints" / "best.ckpt", "run")
    plans = [(place, name) for place in places(good) for name in ("missing", *OTHERS)]
    for place, name in plans[:: count(1, 29)]:
        with tries.trial(f"{'.'.join(map(str, place))}: {name}"):
            path = tmp_path / "altered.ckpt"
            path.write_bytes(seal(saved(put(good, place, OTHERS.get(name, ...)))))
            message = ""
            try:
                load(path)
            except UserError as error:
                message = str(error)
            assert "\n" not in message
    tries.check()


def load(path: Path) -> None:
    trained.load(str(path), LOAD)


def test_runs_that_resume_from_something_else(
    tally: Callable[[str], Tally],
    finished: Path,  # noqa: F811
    tmp_path: Path,
    farm: Server,
    count: Callable[[int, int], int],
) -> None:
    """Resumed in a process of their own: refused in a line, or trained on."""
    tries = tally("altered checkpoints, resumed")
    good = checkpoint.read(finished / "outputs" / "run" / "checkpoints" / "last.ckpt", "run")
    plans = [(place, name) for place in places(good) for name in ("missing", *OTHERS)]
    plans = plans[:: count(7, 211)]

    def trial(_: Server, number: int) -> None:
        place, name = plans[number]
        cwd = tmp_path / f"{number}"
        shutil.copytree(finished, cwd)
        path = cwd / "outputs" / "run" / "checkpoints" / "last.ckpt"
        path.write_bytes(seal(saved(put(good, place, OTHERS.get(name, ...)))))
        with tries.trial(f"{'.'.join(map(str, place))}: {name}"):
            attempt(COMMANDS["resume"], cwd, cwd, 60)
        shutil.rmtree(cwd)

    farm.map(trial, range(len(plans)))
    tries.check()


def test_records_of_which_a_part_is_something_else(
    tally: Callable[[str], Tally],
    finished: Path,  # noqa: F811
    tmp_path: Path,
    farm: Server,
    count: Callable[[int, int], int],
) -> None:
    tries = tally("altered records")
    good = json.loads((finished / "outputs" / "run" / "result.json").read_text())
    others = {name: value for name, value in OTHERS.items() if name != "a tensor"}
    commands = [name for name in COMMANDS if name not in ("predict", "export", "evaluate")]
    plans = [(place, name) for place in places(good, 2) for name in ("missing", *others)]
    chosen = [(*plan, commands[number % len(commands)]) for number, plan in enumerate(plans)][:: count(1, 31)]

    def trial(_: Server, number: int) -> None:
        place, name, command = chosen[number]
        cwd = tmp_path / f"{number}"
        shutil.copytree(finished, cwd)
        text = json.dumps(put(good, place, others.get(name, ...)))
        (cwd / "outputs" / "run" / "result.json").write_text(text)
        with tries.trial(f"{command}: {'.'.join(map(str, place))}: {name}"):
            attempt(COMMANDS[command], cwd, cwd, 60)
        shutil.rmtree(cwd)

    farm.map(trial, range(len(chosen)))
    tries.check()


def test_metrics_of_which_a_part_is_something_else(
    tally: Callable[[str], Tally],
    finished: Path,  # noqa: F811
    tmp_path: Path,
    farm: Server,
    count: Callable[[int, int], int],
) -> None:
    tries = tally("altered metrics")
    good = (finished / "outputs" / "run" / "metrics.csv").read_bytes()
    header, *lines = good.splitlines()
    texts = {
        "not UTF-8": good.replace(b"0.", b"\xff\xfe."),
        "a long field": good + b'"' + b"x" * 200_000 + b'"\n',
        "an open quote": good + b'"1,2\n3,4\n',
        "null bytes": good.replace(b",", b"\0,"),
        "no header": b"\n".join(lines),
        "the same column twice": header + b",step,step\n" + b"\n".join(lines),
        "a huge epoch": good.replace(lines[0], b",".join([b"1e999"] * (header.count(b",") + 1))),
        "no numbers": good.replace(lines[0], b",".join([b"nan"] * (header.count(b",") + 1))),
        "words": b"step,epoch\na,b\n",
        "a formula": header + b",=cmd()\n" + b"\n".join(line + b",1" for line in lines),
        "another line ending": good.replace(b"\n", b"\r"),
        "nothing": b"",
    }

    def trial(_: Server, name: str) -> None:
        for command in ("resume", "report", "runs"):
            cwd = tmp_path / f"{name} {command}"
            shutil.copytree(finished, cwd)
            (cwd / "outputs" / "run" / "metrics.csv").write_bytes(texts[name])
            with tries.trial(f"{command}: {name}"):
                attempt(COMMANDS[command], cwd, cwd, 60)
            shutil.rmtree(cwd)

    farm.map(trial, list(texts)[:: count(1, 4)])
    tries.check()


def weights(**changes: Any) -> bytes:
    """A state dict of one tensor, as a pickle by hand: what `torch.save` would write, but for the changes."""
    values: dict[str, Any] = {"kind": "FloatStorage", "numel": 4, "offset": 0, "size": (4,), "stride": (1,)}
    values |= changes
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.identity if isinstance(obj, Identity) else None

    identity = Identity(values)
    rebuild = Call(torch._utils._rebuild_tensor_v2, identity, values["offset"], values["size"], values["stride"], 0, {})
    Pickler(buffer, 2).dump({"w": rebuild})
    return buffer.getvalue()


class Identity:
    def __init__(self, values: dict[str, Any]) -> None:
        storage = getattr(torch, values["kind"])
        self.identity = values.get("identity", ("storage", storage, "0", "cpu", values["numel"]))


FOUR = bytes(16)
PUT = b"\x80\x02]r\xff\xff\xff\x7f."  # the memo's entry 2^31 - 1


def foreign() -> dict[str, bytes]:
    """Weights files by name that claim what they do not hold, or hold what is no weight."""

    def zipped(content: bytes, **entries: bytes) -> bytes:
        return archive(content, **(entries or {"_0": FOUR}))

    def torched(tensor: Any) -> bytes:
        return saved({"w": tensor})

    lone = zipped(weights()) + b"PK\x05\x06" + bytes(18)
    big = {"w": torch.zeros(4)}
    old = io.BytesIO()
    torch.save(big, old, _use_new_zipfile_serialization=False)
    found = {
        "a storage that is longer than its data": zipped(weights(numel=2**20)),
        "a storage that is shorter than its data": zipped(weights(numel=2)),
        "a tensor beyond its storage": zipped(weights(size=(8,))),
        "a tensor that begins behind its storage": zipped(weights(offset=4)),
        "a negative offset": zipped(weights(offset=-1)),
        "a negative stride": zipped(weights(stride=(-1,))),
        "a huge stride": zipped(weights(stride=(2**40,), size=(2,))),
        "sizes and strides of different length": zipped(weights(size=(2, 2))),
        "a size that is a text": zipped(weights(size=("4",))),
        "a storage of another kind": zipped(weights(identity=("module", torch.FloatStorage, "0", "cpu", 4))),
        "a storage on another path": zipped(weights(identity=("storage", torch.FloatStorage, "../data.pkl", "cpu", 4))),
        "a storage without a name": zipped(weights(identity=("storage", torch.FloatStorage, 0, "cpu", 4))),
        "no identity": zipped(weights(identity=())),
        "3 GB by bytearray": zipped(pickle.dumps({"w": Call(bytearray, 3 * 10**9)}, 2)),
        "four times 3 GB": zipped(pickle.dumps({f"w{n}": Call(bytearray, 3 * 10**9) for n in range(4)}, 2)),
        "3 GB by bytes": zipped(pickle.dumps({"w": Call(bytes, 3 * 10**9)}, 2)),
        "a memo of 17 GB": zipped(PUT),
        "ten million dicts": zipped(b"\x80\x02(" + b"}" * 10**7 + b"l."),
        "a lone end record": lone,
        "an end record in a comment": zipped(weights())[:-2] + b"\x16\x00PK\x05\x06" + bytes(18),
        "two directories": zipped(weights()) + zipped(weights(numel=2**20)),
        "PK and nothing": b"PK\x03\x04",
        "PK and noise": b"PK" + bytes(range(256)) * 40,
        "no data.pkl": archive(b"x", name="archive/other.pkl"),
        "data.pkl in another folder": archive(weights(), name="a/data.pkl", **{"_0": FOUR}),
        "another byte order": _entry(zipped(weights()), "archive/byteorder", b"big"),
        "a whole number for a dict": zipped(pickle.dumps(3, 2)),
        "a list": zipped(pickle.dumps([1], 2)),
        "a dict with a tuple for a key": saved({("a", 1): torch.zeros(2)}),
        "a dict with a tensor for a key": saved({torch.zeros(2): 1}),
        "a set": saved({"w": {1, 2}}),
        "complex numbers": torched(torch.zeros(2, dtype=torch.complex64)),
        "a sparse tensor": torched(torch.zeros(2, 2).to_sparse()),
        "a compressed sparse tensor": torched(torch.zeros(2, 2).to_sparse_csr()),
        "a tensor on meta": torched(torch.zeros(2, device="meta")),
        "a quantized tensor": torched(torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)),
        "8-bit floating point": torched(torch.zeros(2).to(torch.float8_e4m3fn)),
        "a nested tensor": torched(torch.nested.nested_tensor([torch.zeros(2)])),
        "a function": torched(torch.nn.functional.relu),
        "a tensor with attributes": _attributes(),
        "the older format, cut": old.getvalue()[:-9],
        "the older format, other magic": old.getvalue().replace(b"\x19\x50", b"\x19\x51", 1)[:200],
        "the older format, no magic": pickle.dumps({"w": 1}, 2),
        "the older format, a longer storage": _longer(old.getvalue()),
        "an entry that is shorter than it says": _shorter(zipped(weights())),
        "a deep tuple for a key": zipped(b"\x80\x02})" + b"\x85" * 900_000 + b"K\x01s."),
        "a key that takes forever to hash": zipped(b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."),
        "a size of a long text, many times": zipped(
            b"\x80\x02(X"
            + (10**6).to_bytes(4, "little")
            + b"x" * 10**6
            + b"q\x00ctorch\nSize\nq\x01"
            + b"h\x01h\x00\x85R" * 2000
            + b"l."
        ),
        "a dict that is copied many times": zipped(
            b"\x80\x02(]q\x00("
            + b"K\x01K\x02\x86" * 10**5
            + b"eccollections\nOrderedDict\nq\x01"
            + b"h\x01h\x00\x85R" * 3000
            + b"l."
        ),
        "bytes of 3 GB by an opcode": zipped(b"\x80\x05\x96" + (3 * 10**9).to_bytes(8, "little") + b"x."),
        "a prefix of a hundred thousand parts": saved({"net." * 100_000 + "w": torch.zeros(1), "b.c": torch.ones(1)}),
        "a million entries": _entries(10**6),
        "an opcode that is none": b"\x80\x02\xff.",
        "a pickle that builds on a class": zipped(b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."),
        "a class by a dotted name": zipped(b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93]\x85R."),
        "an extension": zipped(b"\x80\x02\x82\x01."),
        "a number of a million digits": zipped(b"I" + b"9" * 10**6 + b"\n."),
        "an endless string": zipped(b"\x80\x04\x8e" + b"\xff" * 8 + b"x."),
        "python 2 text": zipped(b"\x80\x02}U\x01\xffK\x01s."),
        "not a number": torched(torch.tensor([float("nan")])),
        "infinity": torched(torch.tensor([float("inf"), 1.0])),
    }
    return found


def _attributes() -> bytes:
    tensor = torch.zeros(2)
    tensor.evil = "x"  # type: ignore[attr-defined]
    return saved({"w": tensor})


def _shorter(content: bytes) -> bytes:
    """The archive whose directory says of a tensor's data that nothing is stored, with the checksum of nothing."""
    data = bytearray(content)
    at = data.rindex(b"archive/data/0") - 46
    data[at + 16 : at + 24] = bytes(8)
    return bytes(data)


def _entries(count: int) -> bytes:
    """An archive that lists the same empty entry again and again."""
    name = b"archive/data.pkl"
    local = b"PK\x03\x04" + bytes(22) + len(name).to_bytes(2, "little") + bytes(2) + name
    central = b"PK\x01\x02" + bytes(24) + len(name).to_bytes(2, "little") + bytes(16) + name
    size = len(central) * count
    zip64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, len(local))
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(local) + size, 1)
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    return local + central * count + zip64 + locator + tail


def _entry(content: bytes, name: str, data: bytes) -> bytes:
    """The archive with another entry of a name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for each in old.infolist():
            new.writestr(each.filename, data if each.filename == name else old.read(each))
    return buffer.getvalue()


def _longer(content: bytes) -> bytes:
    at = content.rindex((4).to_bytes(8, "little"))
    return content[:at] + (2**40).to_bytes(8, "little") + content[at + 8 :]


def use(path: Path) -> None:
    """Reads a file as `model.weights=` does, whichever of its state dicts is the network's."""
    for weights in checkpoint.state_dicts(checkpoint.read(path, "model.weights"), "model.weights").values():
        checkpoint.check_finite(weights, "model.weights")


HARMLESS = ("a prefix of a hundred thousand parts",)  # of another network, which is told later


def test_weights_files_that_claim_what_they_do_not_hold(tally: Callable[[str], Tally], tmp_path: Path) -> None:
    """Refused in time and in a bounded amount of memory, as `model.weights` and as `run`."""
    tries = tally("attacks by a weights file")
    found = foreign()
    assert len(found) >= 50
    for name, content in found.items():
        with tries.trial(name):
            path = tmp_path / "weights.pth"
            for sealed in (content, seal(content)):
                path.write_bytes(sealed)
                before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
                refused = ""
                try:
                    use(path)
                except UserError as error:
                    refused = str(error)
                assert bool(refused) != (name in HARMLESS)
                assert "\n" not in refused
                assert time.monotonic() - start < 10
                grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
                assert grown < 10**9 + len(content), f"{grown / 1e9:.1f} GB"
    tries.check()


def test_tensors_are_those_of_torch(tmp_path: Path) -> None:
    """Both formats, all kinds of numbers, views and shared storages."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    content: dict[str, Any] = {
        **{str(dtype): torch.arange(5).to(dtype) for dtype in archives.DTYPES.values()},
        **{"base": base, "view": base[:, 1], "transposed": base.permute(2, 0, 1), "last": base.to(torch.float64)},
        **{"parameter": torch.nn.Parameter(torch.ones(3)), "none": torch.empty(0, 3), "one": torch.tensor(2.0)},
        **{"size": torch.Size([1, 2]), "plain": [1, (2.5, "x", None, True)], "channels_last": torch.zeros(64)},
    }
    content["many"] = torch.zeros(400)  # so that views may repeat parts of what the file holds
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, tmp_path / "a.pth", **options)
        read, expected = archives.read(tmp_path / "a.pth"), torch.load(tmp_path / "a.pth", weights_only=True)
        assert read.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert (read[name].dtype, read[name].stride()) == (value.dtype, value.stride())
                assert torch.equal(read[name], value)
            else:
                assert read[name] == (tuple(value) if isinstance(value, torch.Size) else value)


HEADERS = {
    "many tensors": {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(700_000)},
    "many dimensions": {"w": {"dtype": "F32", "shape": [0] * 100_000, "data_offsets": [0, 0]}},
    "a huge dimension": {"w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
    "sizes whose product overflows": {"w": {"dtype": "F32", "shape": [0, 2**62, 16], "data_offsets": [0, 0]}},
    "a shape that is a text": {"w": {"dtype": "F32", "shape": "4", "data_offsets": [0, 0]}},
    "a list": [1],
    "8-bit floating point": {"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}},
    "complex numbers": {"w": {"dtype": "C64", "shape": [0], "data_offsets": [0, 0]}},
    "not a number": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_that_claim_what_they_do_not_hold(name: str, tmp_path: Path) -> None:
    header = json.dumps(HEADERS[name]).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00\xc0\x7f"[: 1 if "8-bit" in name else 4])
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        use(path)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("shape", [(1,), (), (3, 3)])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_an_optimizers_state_fits_its_weights(optimizer: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Fused optimizers would read and write beyond it."""
    words = ["optimizer.momentum=0.9"] if optimizer == "sgd" else []
    start = ["train", *QUICK, "trainer.max_epochs=1", f"optimizer={optimizer}", *words, "hydra.run.dir=outputs/run"]
    assert attempt(start, tmp_path, tmp_path, 60)[0] == 0
    path = tmp_path / "outputs" / "run" / "checkpoints" / "last.ckpt"
    content = checkpoint.read(path, "run")
    for state in content["optimizer_states"][0]["state"].values():
        for name in state:
            if name != "step":
                state[name] = torch.full(shape, 7.0)
    path.write_bytes(seal(saved(content)))
    code, text = attempt(COMMANDS["resume"], tmp_path, tmp_path, 60)
    assert code == 2, text
    assert "vggexp: resume" in text
