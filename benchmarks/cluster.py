"""Computes where data parallelism stops to scale: what a step computes against what its processes must exchange.

    python -m benchmarks.cluster            the table for 8, 64 and 512 GPUs, VGG-11 at 224 px (a second)
    python -m benchmarks.cluster --check    one to four processes here, whose links tc slows: prediction, measurement

The table assumes a GPU's peak, the share of it that training reaches, and the bandwidth by which a machine's GPUs reach
others; options set them. Operations and gradients are the network's own counts. --check needs Linux, root and iproute2:
its processes are in network namespaces of their own.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.compare import hardware, write
from vggexp.config import compose
from vggexp.inspection.cost import Layer, layers

MIB = 2**20
BUCKET = 25 * MIB  # DDP's own size of a bucket: gradients that are sent together; the first has 1 MiB
NODE = 8  # GPUs of a machine
ONE = "NVLink"
NETWORKS = {ONE: 300e9, "8 × 400 Gbit/s": 400e9, "100 Gbit/s": 12.5e9, "10 Gbit/s": 1.25e9}
"""Bytes per second that leave a machine, or within it a GPU, in each direction."""
DELAY = 10e-6  # seconds until a message arrives
PAYLOAD = 1448 / 1514  # of a packet of TCP
HOOKS = ("none", "fp16", "PowerSGD")
RANK = 2  # of PowerSGD
RATES = ("none", "300mbit", "100mbit")  # to which --check slows the links
PROCESSES = (1, 2, 3, 4)
COLUMNS = (
    *("ratio", "GPUs", "network", "gradients, MB", "of linear layers", "all-reduce, ms", "computing, ms", "step, ms"),
    *("efficiency", "with fp16", "with PowerSGD", "with buckets of 200 MB", "with batches four times as large"),
)
CHECKED = (
    "processes",
    "link",
    "gradients as",
    "MB sent by each",
    "computing, s",
    "predicted step, s",
    "measured step, s",
    "ratio",
)


def network_layers(ratio: int, size: int = 224) -> list[Layer]:
    options = ["model=vgg11", f"model.ratio={ratio}", f"data.resize={size}", "data.batch_size=1", "trainer=cpu"]
    return [layer for layer in layers(compose.config(*options)) if layer.parameters]


def payload(layer: Layer, hook: str) -> float:
    """The bytes of a layer's gradients, as a communication hook sends them."""
    if hook == "PowerSGD":  # two matrices of RANK columns stand for the weight; biases go as they are
        rows = layer.shape[1]
        columns = (layer.parameters - rows) // rows
        return 4 * min(layer.parameters, RANK * (rows + columns) + rows)
    return layer.parameters * (2 if hook == "fp16" else 4)


def all_reduce(payload: float, world: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce, in which each process sends and receives 2 (N − 1) / N of the bytes.

    A ring would wait for 2 (N − 1) messages, one after another; NCCL's tree, which sends as much, for 2 log N.
    """
    return 2 * (world - 1) / world * payload / bandwidth + 2 * math.ceil(math.log2(world)) * DELAY


def step(
    found: Sequence[Layer], computing: float, world: int, bandwidth: float, hook: str = "none", bucket: int = BUCKET
) -> float:
    """Seconds of a training step in which DDP sends gradients, the last layer's first, while others are computed."""
    work = sum(layer.macs for layer in found)
    now, sent, limit = computing / 3, 0.0, min(MIB, bucket)  # a third is the forward pass
    waiting: list[Layer] = []
    for number, layer in enumerate(reversed(found), start=1):
        now += computing * 2 / 3 * layer.macs / work
        waiting.append(layer)
        if sum(payload(each, "none") for each in waiting) >= limit or number == len(found):
            sent = max(sent, now) + all_reduce(sum(payload(each, hook) for each in waiting), world, bandwidth)
            waiting, limit = [], bucket
    return max(now, sent)


def table(batch: int, speed: float) -> list[list[str]]:
    """A row for each case, of `batch` images for each GPU; `speed` is the operations per second that a GPU reaches."""
    rows = []
    for ratio in (1, 4):
        found = network_layers(ratio)
        gradients = sum(payload(layer, "none") for layer in found)
        linear = sum(payload(layer, "none") for layer in found if layer.kind == "Linear")
        computing = batch * 2 * (3 * sum(layer.macs for layer in found) - found[0].macs) / speed
        for world, name in [(world, name) for world in (8, 64, 512) for name in NETWORKS]:
            if (world <= NODE) != (name == ONE):
                continue
            bandwidth = min(NETWORKS[name], NETWORKS[ONE])
            seconds = step(found, computing, world, bandwidth)
            ratios = [computing / seconds]
            ratios += [computing / step(found, computing, world, bandwidth, hook) for hook in HOOKS[1:]]
            ratios.append(computing / step(found, computing, world, bandwidth, bucket=200 * 10**6))
            ratios.append(4 * computing / step(found, 4 * computing, world, bandwidth))
            cells = [str(ratio), str(world), name, f"{gradients / 1e6:.0f}", f"{linear / gradients:.0%}"]
            times = (all_reduce(gradients, world, bandwidth), computing, seconds)
            rows.append([*cells, *(f"{1000 * each:.1f}" for each in times), *(f"{each:.0%}" for each in ratios)])
    return rows


@contextmanager
def connected(count: int) -> Iterator[list[list[str]]]:
    """Network namespaces joined by a switch: for each, what starts a command there."""
    *names, switch = [f"vggexp-cluster-{os.getpid()}-{end}" for end in (*range(count), "switch")]

    def ip(text: str) -> None:
        subprocess.run(["ip", *text.split()], check=True)

    try:
        ip(f"netns add {switch}")
        ip(f"-n {switch} link add switch type bridge")
        ip(f"-n {switch} link set switch up")
        for number, name in enumerate(names):
            ip(f"netns add {name}")
            ip(f"-n {switch} link add to-{number} type veth peer name eth0 netns {name}")
            ip(f"-n {switch} link set to-{number} master switch up")
            ip(f"-n {name} addr add 10.77.1.{number + 1}/24 dev eth0")
            for device in ("lo", "eth0"):
                ip(f"-n {name} link set {device} up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], check=False)


def limit(host: Sequence[str], rate: str) -> None:
    """Slows what a host sends."""
    subprocess.run([*host, *["tc", "qdisc", "del", "dev", "eth0", "root"]], check=False, capture_output=True)
    if rate != "none":
        subprocess.run(
            [*host, *f"tc qdisc add dev eth0 root tbf rate {rate} burst 256kb latency 400ms".split()], check=True
        )


def check(rounds: int, size: int, images: int) -> list[list[str]]:
    """Rows of what the formula says and what processes here take, the computing measured between their steps."""
    found, rows = network_layers(4, size), []
    for world in PROCESSES:
        # PowerSGD's ended, on gloo, with messages of sizes that do not match
        cases = [(rate, hook) for rate in RATES for hook in HOOKS[:2]] if world > 1 else [("none", "none")]
        with connected(world) as hosts:
            for rate, hook in cases:
                for host in hosts:
                    limit(host, rate)
                command = [sys.executable, "-m", "benchmarks.cluster", "--worker", hook, "--rounds", str(rounds)]
                command += ["--size", str(size), "--images", str(images)]
                env = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
                env |= {"MASTER_ADDR": "10.77.1.1", "MASTER_PORT": "29400"}
                started = [
                    subprocess.Popen([*host, *command], env=env | {"RANK": str(rank)}, stdout=subprocess.PIPE)
                    for rank, host in enumerate(hosts)
                ]
                said = [process.communicate(timeout=600)[0] for process in started]
                if any(process.returncode for process in started):
                    raise SystemExit("cluster: a process has failed, see above")
                measured = json.loads(said[0].splitlines()[-1])
                computing, seconds = measured["computing"], measured["step"]
                bandwidth = {"none": math.inf}.get(rate) or _bits(rate) / 8 * PAYLOAD
                predicted = step(found, computing, world, bandwidth, hook)
                sent = 2 * (world - 1) / world * sum(payload(layer, hook) for layer in found) / 1e6
                numbers = (computing, predicted, seconds, seconds / predicted)
                rows.append([str(world), rate, hook, f"{sent:.2f}", *(f"{number:.2f}" for number in numbers)])
    return rows


def _bits(rate: str) -> float:
    return float(rate.removesuffix("bit")[:-1]) * {"g": 1e9, "m": 1e6}[rate.removesuffix("bit")[-1]]


def worker(hook: str, rounds: int, size: int, images: int) -> None:
    """One of the processes; prints the median seconds of a step with and without its all-reduce."""
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    from vggexp.models import VGG
    from vggexp.system import memory

    memory.keep_freed()
    torch.manual_seed(0)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    net = DistributedDataParallel(VGG("vgg11", ratio=4, image_size=size).to(memory_format=torch.channels_last))
    if hook == "fp16":
        net.register_comm_hook(None, default_hooks.fp16_compress_hook)
    batch, labels = torch.rand(images, 1, size, size), torch.zeros(images, dtype=torch.int64)
    times: dict[str, list[float]] = {"step": [], "computing": []}

    def train() -> None:
        F.cross_entropy(net(batch), labels).backward()  # type: ignore[no-untyped-call]

    def alone() -> None:
        with net.no_sync():
            train()

    for number in range(rounds + 2):
        todo: dict[str, Callable[[], None]] = {"step": train, "computing": alone}
        for name, call in todo.items():
            dist.barrier()
            start = time.perf_counter()
            call()
            if number >= 2:  # DDP rearranges its buckets after the first
                times[name].append(time.perf_counter() - start)
            net.zero_grad()
    found: Any = [None] * dist.get_world_size()
    dist.all_gather_object(found, {name: statistics.median(each) for name, each in times.items()})
    print(json.dumps({name: max(each[name] for each in found) for name in times}), flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=989.0, help="of a GPU, in TFLOP/s; an H100's in bf16")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that training reaches; an assumption")
    parser.add_argument("--batch", type=int, default=128, help="images for each GPU")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=2, help="a step of --check has for each process")
    parser.add_argument("--worker", choices=HOOKS[:2], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.rounds, args.size, args.images)
        return
    folder, console = Path("outputs") / "benchmark-cluster", Console(highlight=False)
    if args.check:
        about = f"VGG-11, ratio 4, {args.size} px, {args.images} images in each process of one thread. {hardware()}."
        text = write(folder, "check", CHECKED, check(args.rounds, args.size, args.images), [about])
    else:
        about = (
            f"VGG-11, 224 px, {args.batch} images for each GPU, which gives {args.share:.0%} of {args.peak:g} TFLOP/s."
        )
        text = write(folder, "cluster", COLUMNS, table(args.batch, args.share * args.peak * 1e12), [about])
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
