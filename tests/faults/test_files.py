"""Disks that are full, refuse writes, report false success or lose bytes; data that are damaged or unavailable."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from trials import RESUME, START, Server, Tally, finish

import synthetic
from processes import PATIENCE
from vggexp.checkpoints import file as checkpoint
from vggexp.data import idx
from vggexp.errors import UserError
from vggexp.runs import manifest

pytestmark = pytest.mark.slow


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


class Fault(NamedTuple):
    name: str
    sabotage: tuple[str, int] | None = None
    obstacle: str | None = None
    damage: Callable[[Path], None] | None = None
    damaged: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    env: dict[str, str] = {}  # noqa: RUF012


SAVES = [
    Fault("disk full early", ("full_disk", 20), says=("cannot be written", "No space left")),
    Fault("disk full later", ("full_disk", 700), says=("cannot be written", "No space left")),
    Fault("quota below last.ckpt", ("file_size_limit", 600), says=("last.ckpt", "File too large")),
    Fault("quota below best.ckpt", ("file_size_limit", 200), says=(".ckpt", "File too large")),
    Fault("disk error", ("failing_sync", 3), says=("Input/output error",)),
    Fault("disk that writes another byte", ("lying_disk", 200), says=("could not be read again",)),
    Fault("a file where the folder should be", obstacle="checkpoints", says=("cannot be written", "File exists")),
    Fault("a folder where the file should be", obstacle="checkpoints/best.ckpt/x", says=("Is a directory",)),
    Fault("temporary folder elsewhere", env={"TMPDIR": "/dev/shm"}),
    Fault(
        "truncated last.ckpt",
        damage=_cut,
        damaged=("last.ckpt",),
        says=("last.ckpt: is cut short", "before it is used"),
    ),
    Fault("flipped bit", damage=_flip, damaged=("last.ckpt",), says=("last.ckpt: has been altered", "before it")),
    Fault(
        "nothing intact", damage=_flip, damaged=("last.ckpt", "previous.ckpt"), says=("cannot be read", "new folder")
    ),
]


def test_saves(tally: Callable[[str], Tally], farm: Server, tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """Earlier checkpoints stay intact, the reason is reported, and once it is fixed, the run resumes exactly."""
    saves = tally("faults while saving")

    def trial(server: Server, fault: Fault) -> None:
        cwd = tmp_path / fault.name
        folder = cwd / "outputs" / "run"
        folder.mkdir(parents=True)
        with saves.trial(fault.name):
            if fault.obstacle:
                (folder / fault.obstacle).parent.mkdir(parents=True, exist_ok=True)
                (folder / fault.obstacle).touch()
            sabotage = [fault.sabotage] if fault.sabotage else [("kill_in_training", 12)] if fault.damage else []
            before = set(Path(fault.env["TMPDIR"]).iterdir()) if fault.env else set()
            code = server.run(START, cwd, sabotage, **fault.env)
            if fault.damage:
                for name in fault.damaged:
                    fault.damage(folder / "checkpoints" / name)
            elif fault.env:
                assert code == 0
                assert set(Path(fault.env["TMPDIR"]).iterdir()) <= before
            else:
                result, log = manifest.load(folder, ""), (cwd / "log").read_text()
                assert (code, result["status"]) == (1, "failed"), log
                assert all(words in log and words in result["reason"] for words in fault.says), log
            if fault.obstacle:
                (folder / fault.obstacle).unlink()
                if (folder / fault.obstacle).parent != folder:
                    (folder / fault.obstacle).parent.rmdir()
            if len(fault.damaged) == 2:
                assert server.run(RESUME, cwd) == 1
            else:
                finish(server, cwd, uninterrupted)
            log = (cwd / "log").read_text()
            assert all(words in log for words in fault.says), log
            assert "Traceback" not in log, log

    farm.map(trial, SAVES)
    saves.check()


VALUES = ("nan_loss", "infinite_loss", "out_of_memory", "nan_weight", "out_of_gpu_memory")


def test_values(
    tally: Callable[[str], Tally],
    farm: Server,
    tmp_path: Path,
    uninterrupted: dict[str, Any],
    count: Callable[[int, int], int],
) -> None:
    """Values that are not finite and a lack of memory end the run before they do any damage."""
    values = tally("non-finite, out of memory")
    draw = random.Random(8)
    plans = [(n, VALUES[n % 5], draw.randint(1, 3 if n % 5 == 3 else 15)) for n in range(count(20, 4))]

    def trial(server: Server, plan: tuple[int, str, int]) -> None:
        number, name, moment = plan
        cwd = tmp_path / str(number)
        cwd.mkdir()
        with values.trial(f"{name} {moment}"):
            code = server.run(START, cwd, [(name, moment)])
            result, log = manifest.load(cwd / "outputs" / "run", ""), (cwd / "log").read_text()
            assert (code, result["status"]) == (1 if "memory" in name else 3, "failed"), log
            if name.endswith("loss"):
                place = f"epoch {(moment - 1) // 5 + 1}, batch {(moment - 1) % 5 + 1}, at lr "
                assert place in result["reason"], result["reason"]
            elif name == "nan_weight":
                assert "net.features" in result["reason"], result["reason"]
            else:
                assert "data.batch_size=64: out of memory" in result["reason"], result["reason"]
            for path in (cwd / "outputs" / "run" / "checkpoints").glob("*.ckpt"):
                weights = checkpoint.read(path, "")["state_dict"].values()
                assert all(bool(torch.isfinite(weight).all()) for weight in weights)
            finish(server, cwd, uninterrupted)

    farm.map(trial, plans)
    values.check()


def test_data(tally: Callable[[str], Tally], tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """Wrong data are never accepted, not even by one byte, and the message names the file."""
    data = tally("faults in the data")
    draw = random.Random(9)
    good = idx.obtain(synthetic.SOURCE, str(synthetic.write(tmp_path / "good")), str(tmp_path / "good_cache"))
    names = list(good)

    def spoil(folder: Path, name: str, content: bytes) -> None:
        synthetic.write(folder, compressed=False)
        (folder / name).write_bytes(content)

    def refused(number: str, name: str, content: bytes) -> None:
        with data.trial(number):
            root, cache = tmp_path / number / "root", tmp_path / number / "cache"
            spoil(root, name, content)
            with pytest.raises(UserError, match=name):
                idx.obtain(synthetic.SOURCE, str(root), str(cache), online=False)
            kept = {path.name: path.read_bytes() for path in (cache / "synthetic").glob("*ubyte*")}
            assert kept.items() <= good.items()
            synthetic.write(root, compressed=False)
            assert idx.obtain(synthetic.SOURCE, str(root), str(cache), online=False) == good

    for n in range(count(20, 8)):
        name = names[n % 4]
        refused(f"cut {n}", name, good[name][: draw.randrange(len(good[name]))])
    for n in range(count(20, 8)):
        name = names[n % 4]
        content = bytearray(good[name])
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        refused(f"flip {n}", name, bytes(content))
    images = good[idx.TRAIN_IMAGES]
    refused("wrong shape", idx.TRAIN_IMAGES, images[:8] + bytes([0, 0, 0, 14, 0, 0, 0, 56]) + images[16:])
    for n in range(count(4, 1)):
        labels = bytearray(good[idx.TRAIN_LABELS])
        one, two = draw.sample(range(8, len(labels)), 2)
        while labels[one] == labels[two]:
            two = draw.randrange(8, len(labels))
        labels[one], labels[two] = labels[two], labels[one]
        refused(f"swapped labels {n}", idx.TRAIN_LABELS, bytes(labels))
    for n in range(count(4, 1)):
        with data.trial(f"no network {n}"):
            spec = replace(synthetic.SOURCE, mirrors=("https://127.0.0.1:1/",)) if n % 2 else synthetic.SOURCE
            with pytest.raises(UserError, match=r"data\.root=FOLDER") as error:
                idx.obtain(spec, None, str(tmp_path / f"none {n}"))
            assert error.value.exit_code == 1
    with data.trial("8 processes at once"):
        root, cache = tmp_path / "good", tmp_path / "eight"
        code = (
            f"from vggexp.data import idx; spec = idx.IDXSet('synthetic', (), {dict(synthetic.SOURCE.sha256)!r}); "
            f"assert len(idx.obtain(spec, {str(root)!r}, {str(cache)!r})) == 4"
        )
        started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(8)]
        assert [process.wait(PATIENCE) for process in started] == [0] * 8
        assert {path.name: path.read_bytes() for path in (cache / "synthetic").glob("*ubyte*")} == good
    data.check()
