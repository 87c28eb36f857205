"""`vggexp NAME ARGS` is `python -m vggexp.NAME ARGS`."""

import os
import runpy
import sys

COMMANDS = {
    "train": "train a network, or with --multirun every combination, or search",
    "report": "put the runs of a sweep side by side: tables, a page for the browser, figures",
    "tensorboard": "open TensorBoard for runs and sweeps, by what sets them apart",
    "summary": "price networks: shapes, parameters, multiply-accumulates, memory, time",
    "evaluate": "score a finished network on the test set, with tables and pictures",
    "predict": "name what pictures show",
    "export": "write a finished network as ONNX, torch.export or safetensors",
    "data": "obtain and verify Fashion-MNIST",
}


def main() -> int:
    """Returns the exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        return _complete()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: vggexp NAME [ARGS]; vggexp NAME --help says more\n")
        for name, text in COMMANDS.items():
            print(f"  {name:11} {text}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"vggexp: {arguments[0]}: no such command; it is one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    del sys.argv[1]
    runpy.run_module(f"vggexp.{arguments[0]}", run_name="__main__", alter_sys=True)
    return 0


def _complete() -> int:
    """Shell completion, as Hydra does it, one word further: `eval "$(vggexp -sc install=bash)"`."""
    line = os.environ.get("COMP_LINE")
    if line is not None:
        words = line.split(" ")
        if len(words) < 3:
            print(" ".join(COMMANDS))
            return 0
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    from vggexp.train import main as train

    return train()
