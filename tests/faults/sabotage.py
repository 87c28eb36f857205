"""What goes wrong inside a trial's process, at a moment that its arguments name."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import torch

from vggexp.checkpoints import file as checkpoint
from vggexp.system import files
from vggexp.training.callbacks.saver import Saver
from vggexp.training.classifier import Classifier


def _at(owner: Any, name: str, count: int, act: Callable[..., Any]) -> None:
    """Calls `act` with the original and its arguments at the `count`-th call of owner.name, counted from 1."""
    original, calls = getattr(owner, name), [0]

    def replacement(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        return act(original, *args, **options) if calls[0] == count else original(*args, **options)

    setattr(owner, name, replacement)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_validation(count: int) -> None:
    """SIGKILL in the `count`-th validation batch."""
    _at(Classifier, "validation_step", count, _die)


def kill_in_training(count: int) -> None:
    """SIGKILL in the `count`-th training batch."""
    _at(Classifier, "training_step", count, _die)


def stop_at(count: int) -> None:
    """SIGTERM when the run asks for the `count`-th time whether a signal has come."""

    def act(original: Any, *args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    _at(Saver, "_asked", count, act)


def kill_in_write(count: int) -> None:
    """SIGKILL when the `count`-th piece of a checkpoint is to be written."""
    _at(checkpoint._Sink, "write", count, _die)


def kill_in_rename(count: int) -> None:
    """SIGKILL before the `count`-th time that a checkpoint is given its name."""
    _at(files.os, "replace", count, _die)


def kill_in_record(count: int) -> None:
    """SIGKILL when a record or metrics.csv is to be replaced for the `count`-th time."""
    _at(files, "write_text", count, _die)


def full_disk(count: int) -> None:
    """No space from the `count`-th piece of a checkpoint on."""
    original, calls = checkpoint._Sink.write, [0]

    def write(self: Any, data: Any) -> int:
        calls[0] += 1
        if calls[0] >= count:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return original(self, data)

    checkpoint._Sink.write = write  # type: ignore[method-assign]


def failing_sync(count: int) -> None:
    """The disk reports an error when a checkpoint is to be brought onto it."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    _at(checkpoint.os, "fsync", count, fail)


def lying_disk(count: int) -> None:
    """The `count`-th piece of a checkpoint is written with a flipped bit."""
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
    """A weight turns into NaN after the `count`-th epoch's training."""

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
    """No file may become larger, as on a full quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, resource.RLIM_INFINITY))
