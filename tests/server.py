"""Forks a child, which has already loaded torch, for each command that a test runs: a tenth of a second instead of six.

It reads a line of JSON for each child, answers with its process id, and says when and how a child has ended. A child
behaves as `python -m vggexp ARGS` would in its folder: it has the environment, the arguments, the name of the module,
the signals and the output of its own.
"""

import atexit
import gc
import importlib.util
import io
import json
import os
import selectors
import signal
import sys
import threading
import traceback
import types
from typing import Any

import optuna  # noqa: F401
import sabotage
import tensorboard.plugins.hparams.metadata  # noqa: F401

import vggexp.commands.train
import vggexp.data.datamodule
import vggexp.inference.evaluate
import vggexp.inference.predict
import vggexp.inspection.networks
import vggexp.jobs.grid
import vggexp.training.run  # noqa: F401  these modules and what they import are the slow part of starting
from vggexp import commands
from vggexp.config import compose


def serve() -> None:
    compose.config()  # Hydra looks for its plugins
    compose.run_name.cache_clear()
    gc.freeze()  # the children share what there is
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    waiting = selectors.DefaultSelector()
    for descriptor in (0, awake):
        waiting.register(descriptor, selectors.EVENT_READ)
    text = b""
    while True:
        for key, _ in waiting.select():
            if key.fd == awake:
                os.read(awake, 4096)
                continue
            if not (read := os.read(0, 65536)):
                return
            *lines, text = (text + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if (pid := os.fork()) == 0:
                    replies.close()
                    become(order)
                print(json.dumps({"started": pid}), file=replies)
        for pid, status in iter(ended, None):
            print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), file=replies)


def ended() -> tuple[int, int] | None:
    """A child that has ended since the last call, and its status."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def become(order: dict[str, Any]) -> None:
    """Turns this process into the child; ends it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.setsid()
    os.chdir(order["cwd"])
    for number, path in enumerate(order["files"]):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    os.environ.clear()
    os.environ.update(order["env"])
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):  # as Python makes them when it starts, unbuffered
        raw = io.FileIO(number, "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, write_through=True))  # type: ignore[type-var]
    spec = importlib.util.find_spec("vggexp.__main__")
    assert spec is not None
    assert spec.origin is not None
    module = types.ModuleType("__main__")
    module.__spec__, module.__file__ = spec, spec.origin
    sys.modules["__main__"] = module  # by its name, Lightning starts further processes
    sys.argv = [spec.origin, *order["argv"]]
    sys.path[0] = order["cwd"]
    for name, argument in order["sabotage"]:
        getattr(sabotage, name)(argument)
    try:
        code = commands.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # as Python ends, but without taking all modules apart, which would take a second
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
