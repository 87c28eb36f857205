"""The training loops that are compared, each in a process of its own.

    python -m benchmarks.loops NAME --size 96 --precision fp32 --images 6400

trains VGG-11, ratio 4, batch 128, Adam 0.001 on the first images of Fashion-MNIST for two epochs. It prints, as JSON,
the images per second of the second epoch and the peak memory of the process. All loops except `ours` and `bare` are
written here from their description, with the usual tools of torch and torchvision.

  ours         the whole `vggexp train`: Lightning, both loggers, progress bar and checkpoints
  bare         our network, data and step in a loop of ten lines; the difference is what Lightning adds
  chapter      the chapter's loop: PIL `Resize`, 4 workers, NCHW, `.item()` twice per step, in fp32
  torchvision  like torchvision's reference scripts: PIL transforms, workers, meters that read the loss in each step
  lightning    a plain LightningModule on a DataLoader of PIL transforms, which logs in each step
  compiled     torch.compile, channels_last, fused Adam, random images that are ready in memory

In the shapes below, N is the number of images in a batch, and S = H = W their pixels.
"""

import argparse
import contextlib
import csv
import json
import os
import pty
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggexp.system import paths

BATCH, RATIO, LR, WORKERS, CLASSES = 128, 4, 0.001, 4, 10
Batches = Any
"""An iterable that starts again each time: pairs of (N, 1, S, S) float32 images and (N,) int64 labels."""


def chapter_network(size: int) -> nn.Sequential:
    """VGG-11 as in the chapter, with ReLU before the max-pool."""
    layers: list[nn.Module] = []
    before = 1
    for convs, channels in ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)):
        for _ in range(convs):
            layers += [nn.Conv2d(before, channels // RATIO, kernel_size=3, padding=1), nn.ReLU()]
            before = channels // RATIO
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    hidden = 4096 // RATIO
    for features in (before * (size // 32) ** 2, hidden):
        layers += [nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(hidden, CLASSES))


def pil_batches(size: int, images: int, workers: int = WORKERS) -> Batches:
    """torchvision's Fashion-MNIST; PIL resizes each image whenever it is read."""
    from torchvision import datasets, transforms

    from vggexp.data import idx

    files = idx.obtain(idx.FASHION_MNIST)
    folder = Path(tempfile.mkdtemp()) / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).symlink_to(paths.cache(None) / idx.FASHION_MNIST.name / name)
    steps = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])
    data = torch.utils.data.Subset(datasets.FashionMNIST(str(folder.parents[1]), transform=steps), range(images))
    warnings.filterwarnings("ignore", ".*worker processes.*")  # the chapter uses four on any machine
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def precision(name: str) -> contextlib.AbstractContextManager[Any]:
    """A context of automatic mixed precision in bf16, or of none in fp32."""
    return torch.autocast(DEVICE, torch.bfloat16) if name == "bf16" else contextlib.nullcontext()


def chapter(size: int, name: str, images: int) -> Callable[[], None]:
    net, batches = chapter_network(size).to(DEVICE), pil_batches(size, images)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)

    def epoch() -> None:
        loss_sum = correct = count = 0.0
        for on_cpu, of_cpu in batches:
            pictures, labels = on_cpu.to(DEVICE), of_cpu.to(DEVICE)
            with precision(name):
                logits = net(pictures)
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
            count += len(labels)
        print(f"loss {loss_sum / count:.4f}  accuracy {correct / count:.4f}", file=sys.stderr)

    return epoch


def torchvision(size: int, name: str, images: int) -> Callable[[], None]:
    net, batches = chapter_network(size).to(DEVICE), pil_batches(size, images)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> None:
        net.train()
        meters: dict[str, list[float]] = {"loss": [], "acc1": [], "acc5": [], "images_per_second": []}
        for on_cpu, of_cpu in batches:
            start = time.perf_counter()
            pictures, labels = on_cpu.to(DEVICE), of_cpu.to(DEVICE)
            with precision(name):
                logits = net(pictures)
                loss = criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.inference_mode():
                right = logits.topk(5, dim=1).indices == labels[:, None]
                for key, kept in (("acc1", 1), ("acc5", 5)):
                    meters[key].append(right[:, :kept].sum().item() / len(labels))
            meters["loss"].append(loss.item())
            meters["images_per_second"].append(len(labels) / (time.perf_counter() - start))
        print({key: sum(values) / len(values) for key, values in meters.items()}, file=sys.stderr)

    return epoch


def bare(size: int, name: str, images: int) -> Callable[[], None]:
    """The bare loop: the same network, order, resize, dropout, optimizer and sums as ours."""
    from vggexp.data import DataModule, FashionMNIST
    from vggexp.models import VGG
    from vggexp.models.cpu import tuning
    from vggexp.system import memory

    memory.keep_freed()
    net = VGG("vgg11", ratio=RATIO, image_size=size).to(DEVICE, memory_format=torch.channels_last)
    if DEVICE == "cpu":
        with torch.device("meta"):
            same = VGG("vgg11", ratio=RATIO, image_size=size)
        tuning.apply(net, tuning.find(same, (1, size, size), BATCH, {"fp32": "32-true", "bf16": "bf16-mixed"}[name]))
    data = DataModule(source=FashionMNIST(), resize=size, batch_size=BATCH, val_size=0, train_size=images)
    data.setup()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)

    def epoch() -> None:
        loss_sum, correct = torch.zeros((), device=DEVICE), torch.zeros((), dtype=torch.int64, device=DEVICE)
        for bytes_, of_cpu in data.train_dataloader():
            pictures, labels = data.on_after_batch_transfer((bytes_.to(DEVICE), of_cpu.to(DEVICE)), 0)
            with precision(name):
                logits = net(pictures)
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(dim=1) == labels).sum()
        print(f"loss {loss_sum / images:.4f}  accuracy {correct / images:.4f}", file=sys.stderr)

    return epoch


def compiled(size: int, name: str, images: int) -> Callable[[], None]:
    """A plain loop as a good user of torch writes it, on images that are ready in memory."""
    net = chapter_network(size).to(DEVICE, memory_format=torch.channels_last)
    pictures = torch.rand(min(images, 1280), 1, size, size, device=DEVICE)
    labels = torch.randint(0, CLASSES, (len(pictures),), device=DEVICE)
    optimizer, forward = torch.optim.Adam(net.parameters(), lr=LR, fused=True), torch.compile(net)

    def epoch() -> None:
        for chosen in torch.randint(0, len(pictures), (images // BATCH, BATCH), device=DEVICE):
            with precision(name):
                loss = F.cross_entropy(forward(pictures[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"loss {loss.item():.4f}", file=sys.stderr)

    return epoch


def lightning(size: int, name: str, images: int) -> tuple[float, int]:
    import lightning as L
    from torchmetrics.classification import MulticlassAccuracy

    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = chapter_network(size)
            self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            pictures, labels = batch
            logits = self.net(pictures)
            loss = F.cross_entropy(logits, labels)
            self.accuracy(logits, labels)
            self.log("loss", loss, prog_bar=True)
            self.log("accuracy", self.accuracy, prog_bar=True, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=LR)

    class Clock(L.Callback):
        seconds = 0.0

        def on_train_epoch_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    L.Trainer(
        max_epochs=2,
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if name == "bf16" else "32-true",
        callbacks=[clock],
        default_root_dir=tempfile.mkdtemp(),
    ).fit(Plain(), pil_batches(size, images))
    return images / clock.seconds, _peak()


def ours(size: int, name: str, images: int, *more: str) -> tuple[float, int]:
    """Runs `vggexp train` as a user does, on a terminal of its own, so that the progress bar is drawn.

    Args:
        more: further command-line arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "vggexp.train", "model=vgg11", f"model.ratio={RATIO}", f"data.resize={size}"),
            *(f"data.batch_size={BATCH}", "data.val_size=0", f"data.train_size={images}", f"optimizer.lr={LR}"),
            *("trainer.devices=1", f"trainer.precision={'bf16-mixed' if name == 'bf16' else '32-true'}"),
            *("trainer.max_epochs=2", "trainer.limit_test_batches=1", f"hydra.run.dir={run}", *more),
        ]
        with terminal() as line:
            subprocess.run(command, stdin=line, stdout=line, check=True, env=os.environ | {"VGGEXP_OUTPUTS": folder})
        with open(run / "metrics.csv", encoding="utf-8") as file:
            speeds = [float(row["images_per_second"]) for row in csv.DictReader(file) if row["images_per_second"]]
        return speeds[-1], int(json.loads((run / "result.json").read_text())["peak_memory_bytes"])


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """A pseudo-terminal whose output is read and dropped."""
    ours, theirs = pty.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):  # the terminal has been closed
            while os.read(ours, 65536):
                pass

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        thread.join(5)
        os.close(ours)


def seconds(epoch: Callable[[], None]) -> float:
    """The number of training images in an epoch."""
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start


def _peak() -> int:
    """The peak memory of the process, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


LOOPS = {
    **{"ours": ours, "bare": bare, "chapter": chapter, "torchvision": torchvision, "lightning": lightning},
    "compiled": compiled,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=LOOPS)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--images", type=int, default=6400)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    result: Any = LOOPS[args.name](args.size, args.precision, args.images)
    if callable(result):
        result()
        result = (args.images / seconds(result), _peak())
    print(json.dumps({"images_per_second": result[0], "peak_memory_bytes": result[1]}))


if __name__ == "__main__":
    main()
