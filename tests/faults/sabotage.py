"""Makes something fail inside the process of a trial, at the moment that the argument gives."""

import errno
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from vggexp.checkpoints import file as checkpoint
from vggexp.jobs import job, sweep
from vggexp.system import files
from vggexp.training.callbacks.saver import Saver
from vggexp.training.classifier import Classifier


def _at(owner: Any, name: str, count: int, act: Callable[..., Any]) -> None:
    """At the `count`-th call of owner.name, counted from 1, calls `act` with the original and its arguments instead."""
    original, calls = getattr(owner, name), [0]

    def replacement(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        return act(original, *args, **options) if calls[0] == count else original(*args, **options)

    setattr(owner, name, replacement)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_nothing(_: int) -> None:
    """Lets a command that would train end where it would begin."""
    job.start = sweep.start = lambda *_: 0  # type: ignore[assignment]


def closed_streams(_: int) -> None:
    """Closes the standard streams, as `>&- 2>&- <&-` does."""
    for number in range(3):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]


def no_temporary_folder(_: int) -> None:
    """Leaves no folder for temporary files, as in a container that is read-only."""
    tempfile.tempdir = None
    tempfile._candidate_tempdir_list = lambda: ["/nowhere"]  # type: ignore[attr-defined]


def kill_in_validation(count: int) -> None:
    """Sends SIGKILL in the `count`-th validation batch."""
    _at(Classifier, "validation_step", count, _die)


def kill_in_training(count: int) -> None:
    """Sends SIGKILL in the `count`-th training batch."""
    _at(Classifier, "training_step", count, _die)


def stop_at(count: int) -> None:
    """Sends SIGTERM when the run checks for signals for the `count`-th time."""

    def act(original: Any, *args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    _at(Saver, "_heed_signals", count, act)


def kill_in_write(count: int) -> None:
    """Sends SIGKILL before the `count`-th piece of a checkpoint is written."""
    _at(checkpoint._Sink, "write", count, _die)


def kill_in_rename(count: int) -> None:
    """Sends SIGKILL before a checkpoint is renamed for the `count`-th time."""
    _at(files.os, "replace", count, _die)


def kill_in_record(count: int) -> None:
    """Sends SIGKILL before result.json or metrics.csv is replaced for the `count`-th time."""
    _at(files, "write_text", count, _die)


def full_disk(count: int) -> None:
    """Reports a full disk from the `count`-th piece of a checkpoint on."""
    original, calls = checkpoint._Sink.write, [0]

    def write(self: Any, data: Any) -> int:
        calls[0] += 1
        if calls[0] >= count:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return original(self, data)

    checkpoint._Sink.write = write  # type: ignore[method-assign]


def failing_sync(count: int) -> None:
    """Reports a disk error when a checkpoint is forced onto the disk for the `count`-th time."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    _at(checkpoint.os, "fsync", count, fail)


def lying_disk(count: int) -> None:
    """Writes the `count`-th piece of a checkpoint with a flipped bit."""
    original, calls = checkpoint._Sink.write, [0]

    def write(self: Any, data: Any) -> int:
        calls[0] += 1
        if calls[0] != count:
            return original(self, data)
        self.sha256.update(data)
        return self.file.write(bytes([bytes(data)[0] ^ 1]) + bytes(data)[1:])

    checkpoint._Sink.write = write  # type: ignore[method-assign]


def _spoil(value: float) -> Callable[..., Any]:
    def act(original: Any, *args: Any, **options: Any) -> Any:
        step = original(*args, **options)
        return step | {"loss": step["loss"] * value}

    return act


def nan_loss(count: int) -> None:
    _at(Classifier, "training_step", count, _spoil(float("nan")))


def infinite_loss(count: int) -> None:
    _at(Classifier, "training_step", count, _spoil(float("inf")))


def nan_weight(count: int) -> None:
    """Turns a weight into NaN after training in the `count`-th epoch."""

    def act(original: Any, module: Classifier) -> None:
        original(module)
        with torch.no_grad():
            next(module.net.parameters()).view(-1)[0] = float("nan")

    _at(Classifier, "on_train_epoch_end", count, act)


def out_of_memory(count: int) -> None:
    def act(*_: Any) -> None:
        torch.empty(2**46)

    _at(Classifier, "training_step", count, act)


def out_of_gpu_memory(count: int) -> None:
    def act(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    _at(Classifier, "training_step", count, act)


def file_size_limit(kilobytes: int) -> None:
    """Limits the size of every file, as an exhausted quota does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, resource.RLIM_INFINITY))
