"""Compares `vggexp train` with other programs that train the same network, in alternating rounds: make benchmark-peers

    python -m benchmarks.peers [--size 96] [--rounds 2] [--fp32] [--only NAME ...]

All train VGG-11, ratio 4, with batches of 128 and Adam, and are timed by one meter, from the end of step 5 to the end
of step 45. Each other framework gets a virtual environment under .venv/peers, made from the package registry. Programs
that no registry has are taken from the folder that PEERS names: PEERS/NAME/run is started with the variables SIZE,
BATCH, PRECISION (fp32 or bf16), DATA (an .npz file with images, labels and the number of parameters) and PYTHON, and is
metered if it trains with an optimizer of torch. What cannot be measured is left out by name.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.compare import hardware, measure, operations, write
from benchmarks.loops import BATCH, LR, RATIO, chapter_network
from benchmarks.peers import meter

HERE, ENVIRONMENTS = Path(__file__).parent, Path(".venv/peers")
DATA = 1280
"""Images in the file that other frameworks read, again and again."""
COLUMNS = (
    *("program", "precision", "images/s", "rounds", "× chapter", "vggexp is × as fast", "share of the ceiling"),
    *("peak memory, GiB", "J per image"),
)
Found = dict[str, float]


@dataclass
class Peer:
    """A program to compare with: its command, given the size in pixels, the precision and the data; what it needs."""

    command: Callable[[int, str, Path], list[str]]
    packages: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    note: str = ""


def ours(size: int, precision: str, data: Path) -> list[str]:
    """The whole `vggexp train`, with its logger."""
    return [
        *(sys.executable, "-m", "vggexp.train", "model=vgg11", f"model.ratio={RATIO}", f"data.resize={size}"),
        *(f"data.batch_size={BATCH}", "data.val_size=0", f"optimizer.lr={LR}"),
        f"trainer.precision={'bf16-mixed' if precision == 'bf16' else '32-true'}",
    ]


def loop(name: str) -> Callable[[int, str, Path], list[str]]:
    """A loop of benchmarks/loops.py."""
    command = [sys.executable, "-m", "benchmarks.loops", name, "--images", str(BATCH * (meter.LAST + 1))]
    return lambda size, precision, data: [*command, "--size", str(size), "--precision", precision]


def script(name: str) -> Callable[[int, str, Path], list[str]]:
    """A script of this folder, in the environment of its framework."""
    return lambda size, precision, data: ["python", str(HERE / name), str(data), precision]


READY = "reads ready-made images of this size from memory, without a resize"
PEERS = {
    "vggexp": Peer(ours),
    "chapter": Peer(loop("chapter"), note="PIL resizes in 4 workers; loss and accuracy are read in each step"),
    "compiled": Peer(loop("compiled"), note=f"torch.compile, channels_last, fused Adam; {READY}"),
    "compiled, tcmalloc": Peer(
        loop("compiled"), env=(("LD_PRELOAD", find_library("tcmalloc_minimal") or ""),), note="as above"
    ),
    "keras on tensorflow": Peer(
        script("with_keras.py"), ("keras", "tensorflow-cpu"), (("KERAS_BACKEND", "tensorflow"),), READY
    ),
    "keras on jax": Peer(script("with_keras.py"), ("keras", "jax"), (("KERAS_BACKEND", "jax"),), READY),
    "flax": Peer(script("with_flax.py"), ("flax", "optax", "jax"), note=READY),
}


def given(folder: str | None) -> dict[str, Peer]:
    """The programs in the folder that PEERS names."""
    programs = sorted(Path(folder).resolve().glob("*/run")) if folder else []
    return {
        path.parent.name: Peer(lambda size, precision, data, path=path: [str(path)], note=f"as {path} starts it")  # type: ignore[misc]
        for path in programs
    }


def unavailable(name: str, peer: Peer) -> str | None:
    """Makes the peer's environment if it needs one; says why it cannot be measured, or None."""
    if ("LD_PRELOAD", "") in peer.env:
        return "no such library (apt-get install libtcmalloc-minimal4)"
    folder = ENVIRONMENTS / name.replace(" ", "-")
    if peer.packages and not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        command = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages]
        if subprocess.run(command, check=False).returncode != 0:
            return f"pip could not install {', '.join(peer.packages)}"
        (folder / "ready").touch()
    return None


def prepare(path: Path, size: int) -> None:
    """Writes the images, (N, S, S, 1) float32 between 0 and 1, the labels, and the network's number of parameters."""
    from vggexp.data import DataModule, FashionMNIST

    data = DataModule(source=FashionMNIST(), resize=size, batch_size=BATCH, val_size=0, train_size=DATA)
    data.setup()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    images, labels = (np.concatenate([batch[n].numpy() for batch in batches]) for n in (0, 1))
    parameters = sum(weight.numel() for weight in chapter_network(size).parameters())
    np.savez(path, images=np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels=labels, parameters=parameters)


def run(name: str, peer: Peer, size: int, precision: str, data: Path, limit: float = 900) -> Found | str:
    """What the meter found in one program; it is ended after that. A text says why nothing was found."""
    with tempfile.TemporaryDirectory() as folder:
        found, log = Path(folder) / "meter", Path(folder) / "log"
        own = ENVIRONMENTS.resolve() / name.replace(" ", "-") / "bin"
        path = f"{own}{os.pathsep}{os.environ['PATH']}" if peer.packages else os.environ["PATH"]
        about = {"SIZE": size, "BATCH": BATCH, "PRECISION": precision, "DATA": data, "PYTHON": sys.executable}
        env = os.environ | {key: str(value) for key, value in about.items()} | dict(peer.env)
        env |= {"METER": str(found), "PATH": path, "VGGEXP_OUTPUTS": folder}
        if not peer.packages:
            env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(Path.cwd())])
        command = peer.command(size, precision, data)
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
        end = time.monotonic() + limit
        while not found.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if found.exists():
            values: Found = json.loads(found.read_text())
            return values
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended before step {meter.LAST}: {lines[-1] if lines else 'it said nothing'}"


def table(rounds: list[dict[tuple[str, str], Found]], ceilings: Found, size: int) -> list[list[str]]:
    """A row for each program and precision that was measured in every round."""
    work, images = operations(size), BATCH * (meter.LAST - meter.FIRST)
    rows = []

    def faster(one: tuple[str, str], other: tuple[str, str]) -> str:
        return f"{statistics.median(each[other]['seconds'] / each[one]['seconds'] for each in rounds):.2f}"

    for name, precision in rounds[0]:
        if not all((name, precision) in each for each in rounds):
            continue
        speeds = [images / each[name, precision]["seconds"] for each in rounds]
        joules = [each[name, precision]["joules"] / images for each in rounds if "joules" in each[name, precision]]
        peak = statistics.median(each[name, precision]["peak_memory_bytes"] for each in rounds) / 2**30
        rows.append(
            [
                *(name, precision, f"{statistics.median(speeds):.1f}", f"{min(speeds):.1f}–{max(speeds):.1f}"),
                *(faster((name, precision), ("chapter", "fp32")), faster(("vggexp", precision), (name, precision))),
                *(f"{statistics.median(speeds) * work / ceilings[precision]:.0%}", f"{peak:.2f}"),
                f"{statistics.median(joules):.3f}" if joules else "not measured",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="leaves out bf16, which is slow on a CPU that lacks it")
    parser.add_argument("--only", nargs="+", help="names of programs, beside vggexp and the chapter's loop")
    args = parser.parse_args()
    folder, console = Path("outputs") / f"benchmark-peers-{args.size}", Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    peers = PEERS | given(os.environ.get("PEERS"))
    if args.only:
        peers = {name: peer for name, peer in peers.items() if name in ("vggexp", "chapter", *args.only)}
    missing = {name: why for name, peer in peers.items() if (why := unavailable(name, peer))}
    if "PEERS" not in os.environ:
        missing["programs that no registry has"] = "PEERS names no folder"
    data = folder.resolve() / "data.npz"
    prepare(data, args.size)
    ceilings, rounds, precisions = measure("ceilings"), [], ["fp32", *([] if args.fp32 else ["bf16"])]
    for number in range(args.rounds):
        order = [(name, precision) for precision in precisions for name in peers if name not in missing]
        found: dict[tuple[str, str], Found] = {}
        for name, precision in order if number % 2 == 0 else reversed(order):
            result = run(name, peers[name], args.size, precision, data)
            if isinstance(result, str):
                missing[f"{name}, {precision}"] = result
            else:
                found[name, precision] = result
                console.print(f"round {number + 1}: {name}, {precision}: {result['seconds']:.1f} s", markup=False)
        rounds.append({key: found[key] for key in order if key in found})
    notes = [
        f"VGG-11, ratio 4, {args.size} px, batch {BATCH}, {args.rounds} rounds. {hardware()}.",
        f"Ceilings: 3×3 convolution {ceilings['fp32'] / 1e9:.0f} GFLOP/s fp32, {ceilings['bf16'] / 1e9:.0f} bf16.",
        *(f"{name}: {peer.note}." for name, peer in peers.items() if peer.note and name not in missing),
        *(f"Not measured: {name}: {why}." for name, why in missing.items()),
    ]
    text = write(folder, "peers", COLUMNS, table(rounds, ceilings, args.size), notes)
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
