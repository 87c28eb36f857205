"""What can I run? `vggexp NAME ARGS`, or `python -m vggexp NAME ARGS`; each command parses, calls and prints.

- `train`, `runs`, `report`, `tensorboard`, `summary`, `tune`, `evaluate`, `predict`, `export`, `data`: the commands
- `options`: what they share: KEY=VALUE arguments
"""

import errno
import os
import sys
from importlib import import_module
from importlib.metadata import version

from vggexp.errors import UserError
from vggexp.system import files, terminal
from vggexp.system.signals import Interrupted

COMMANDS = {
    "train": "train a network, or with -m every combination of values, or search among them",
    "runs": "list, compare, mark and remove runs",
    "report": "compare runs: tables, a page for the browser, figures",
    "tensorboard": "open TensorBoard, with runs named by what sets them apart",
    "summary": "show what networks cost: shapes, parameters, multiply-accumulates, memory, time",
    "tune": "show what is fastest on this machine, or measure it again",
    "evaluate": "score a finished network on the test set, with tables and pictures",
    "predict": "classify pictures",
    "export": "write a finished network as ONNX, torch.export or safetensors",
    "data": "obtain and verify Fashion-MNIST",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command, given its name and arguments, by default those of the process; returns the exit code."""
    terminal.prepare()
    try:
        code = _run(argv)
        sys.stdout.flush()
    except SystemExit as stop:  # of Hydra, or of rich if nobody reads what it prints any more
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        terminal.mute(1)
        code = 141  # as if by SIGPIPE
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        terminal.mute(1)
        code = terminal.fail(UserError(f"standard output: {error.strerror}", 1))
    return code


def _run(argv: list[str] | None) -> int:
    name, *args = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-sc", "--shell-completion"):
        return _complete()
    if name == "--version":
        print(f"vggexp {version('vggexp')}")
        return 0
    if name in ("-h", "--help"):
        print("usage: vggexp NAME [ARGS]; vggexp NAME --help says more\n")
        for each, text in COMMANDS.items():
            print(f"  {each:11} {text}")
        print("\nstart with: vggexp train experiment=quickstart")
        return 0
    if name not in COMMANDS:
        print(f"vggexp: {name}: no such command; it is one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = import_module(f"vggexp.commands.{name}")
    if name != "train" and {"-h", "--help"} & set(args):  # Hydra answers for train
        print(module.__doc__)
        return 0
    try:
        return int(module.main(args))
    except UserError as error:
        return terminal.fail(error)
    except FileNotFoundError as error:
        if (known := files.no_temporary_folder(error)) is None:
            raise
        return terminal.fail(known)
    except Interrupted as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return 130


def _complete() -> int:
    """Shell completion, as Hydra does it, one word further: `eval "$(vggexp -sc install=bash)"`."""
    if (line := os.environ.get("COMP_LINE")) is not None:
        words = line.split(" ")
        if len(words) < 3:
            print(" ".join(COMMANDS))
            return 0
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    from vggexp.commands import train

    return train.main(sys.argv[1:])
