"""Proves that a change to the code alters no number: about 30 tiny runs before and after it, compared bit for bit.

    python -m benchmarks.equality make FOLDER         makes all the runs in FOLDER, with the code as it is
    python -m benchmarks.equality compare ONE OTHER   lists every difference between two such folders

It compares all scores, the sha256 of the weights and of the optimizer's state, `metrics.csv`, and every number that the
commands print. It leaves out whatever a clock or a memory gauge measures. Make both folders on the same machine.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1] / "tests"
MEASURED = ("images_per_second", "train_seconds", "memory_gib")
SYNTHETIC = (
    f"--config-dir={TESTS / 'conf'}",
    *("data=synthetic", "allowed_packages=[synthetic]", "model.ratio=16", "trainer=cpu", "model.init=kaiming"),
    *("optimizer.lr=0.002", "trainer.max_epochs=2", "trainer.log_every_n_steps=2", "trainer.precision=32-true"),
)
BF16 = "trainer.precision=bf16-mixed"
RUNS = {
    "plain": [],
    "bf16": [BF16],
    "vgg13": ["model=vgg13", "inspect=off"],
    "vgg16_c": ["model=vgg16_c", "inspect=off"],
    "vgg19": ["model=vgg19", "inspect=off", BF16],
    "lrn": ["model=vgg11_lrn", "inspect=off"],
    "alexnet": ["model=alexnet", "data.resize=96", "inspect=off"],
    "alexnet-bf16": ["model=alexnet", "data.resize=96", "inspect=off", BF16],
    "blocks": ["model.blocks=[[1,32],[2,64]]", "model.hidden=64", "data.resize=28", "inspect=off"],
    "batch-norm": ["model.batch_norm=true", "scheduler=cosine"],
    "batch-norm-bf16": ["model.batch_norm=true", BF16, "scheduler=onecycle", "inspect=off"],
    "no-hidden": ["model.hidden=0", "model.batch_norm=true", "optimizer=muon", "scheduler=triangular", "inspect=off"],
    "muon-bf16": ["optimizer=muon", BF16, "inspect=off"],
    "sgd": ["optimizer=sgd", "scheduler=onecycle", "inspect=off"],
    "adamw": ["optimizer=adamw", "scheduler=cosine", "trainer.gradient_clip_val=0.5", "inspect=off"],
    "augmented": ["data.flip=true", "data.shift=2", "data.cutout=8", "data.train_size=200", "inspect=off"],
    "accumulated": ["trainer.accumulate_grad_batches=2", "trainer.max_steps=4", "inspect=off"],
    "flip": ["step.test_time_flip=true", "step.label_smoothing=0.1", "inspect=off"],
    "workers": ["data.num_workers=1", "data.flip=true", "inspect=off"],
    "test-each": ["data.val_size=0", "data.test_each_epoch=true"],
    "processes": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.flip=true", "inspect=off"],
    "early": ["trainer.early_stopping.patience=1", "trainer.max_epochs=4", "optimizer.lr=1e-8", "inspect=off"],
}
AFTER = {
    "resume-longer": ["train", "resume=outputs/augmented", "trainer.max_epochs=3", "allowed_packages=[synthetic]"],
    "evaluate": ["evaluate", "run=outputs/flip", "allowed_packages=[synthetic]"],
    "evaluate-bf16": ["evaluate", "run=outputs/bf16", "allowed_packages=[synthetic]"],
    "predict": ["predict", "run=outputs/flip", "input=pictures", "output=predicted.csv",
                "allowed_packages=[synthetic]"],
    "export": ["export", "run=outputs/flip", "allowed_packages=[synthetic]", "output=exported"],
    "weights": ["train", *SYNTHETIC, "model.weights=outputs/plain/checkpoints/last.ckpt", "inspect=off",
                "hydra.run.dir=outputs/weights"],
    "summary": ["summary", "model=vgg11", "model.ratio=4", "data.resize=64", "trainer.precision=32-true"],
    "summary-bf16": ["summary", "model=alexnet,vgg16", "model.ratio=4", "data.resize=96", BF16, "--output=s2"],
    "sweep": ["train", "-m", *SYNTHETIC, "inspect=off", "trainer.max_epochs=1", "data.resize=32,40", "seed=0,1",
              "hydra.sweep.dir=outputs/sweep"],
    "search": ["train", "-m", *SYNTHETIC, "inspect=off", "search=optuna", "search.n_trials=3",
               "search.startup_trials=2",
               "search.space={optimizer.lr:'tag(log,interval(1e-4,1e-2))',data.batch_size:'choice(32,64)'}",
               "hydra.sweep.dir=outputs/search"],
    "report": ["report", "outputs/sweep"],
}  # fmt: skip


def make(folder: Path) -> int:
    """Makes all the runs; returns the number of commands that failed."""
    sys.path.insert(0, str(TESTS))
    from PIL import Image

    import synthetic

    folder.mkdir(parents=True)
    root = synthetic.write(folder / "data")
    (folder / "pictures").mkdir()
    for n in range(4):
        rows = bytearray(range(60 * n, 60 * n + 28)) * 28
        Image.frombytes("L", (28, 28), bytes(rows)).save(folder / "pictures" / f"{n}.png")
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "VGGEXP_TEST_ROOT": str(root),
        "VGGEXP_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }

    def call(item: tuple[str, list[str]]) -> int:
        name, args = item
        command = [str(Path(sys.executable).with_name("vggexp")), *args]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        (folder / f"{name}.out").write_text(done.stdout)
        (folder / f"{name}.err").write_text(done.stderr)
        print(f"{name:16} {done.returncode}", flush=True)
        return int(done.returncode != 0)

    runs = [(name, ["train", *SYNTHETIC, *args, f"hydra.run.dir=outputs/{name}"]) for name, args in RUNS.items()]
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(call, runs)) + sum(map(call, AFTER.items()))


def facts(folder: Path) -> dict[str, Any]:
    """Every value that must be equal, by name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("outputs/**/result.json")):
        run, result = path.parent, json.loads(path.read_text())
        name = str(run.relative_to(folder / "outputs"))
        keys = ("status", "epochs", "best_epoch", "steps", "parameters", "precision")
        found[f"{name}: result"] = {k: v for k, v in result.items() if k in keys or "/" in k}
        for file in sorted(run.glob("checkpoints/*.ckpt")):
            content = torch.load(file, weights_only=True, map_location="cpu")
            found[f"{name}: {file.stem} weights"] = _sha256(_tensors(content["state_dict"]))
            states = [state["state"] for state in content.get("optimizer_states", [])]
            found[f"{name}: {file.stem} optimizer"] = _sha256(_tensors(states))
        with open(run / "metrics.csv", newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in MEASURED and v} for row in csv.DictReader(file)]
        found[f"{name}: metrics.csv"] = rows
    for name in (*RUNS, *AFTER):
        found[f"{name}: printed"] = _numbers((folder / f"{name}.out").read_text())
    found["evaluation"] = json.loads((folder / "outputs/flip/evaluation/evaluation.json").read_text())
    found["predicted"] = list(csv.reader((folder / "predicted.csv").read_text().splitlines()))
    tables = [*folder.glob("outputs/summary/*.csv"), *folder.glob("s2/*.csv")]
    found |= {path.name: path.read_text() for path in sorted(tables)}
    from safetensors.torch import load_file

    found["exported"] = _sha256(_tensors(load_file(folder / "exported/model.safetensors")))
    return found


def _tensors(tree: Any) -> Iterator[tuple[str, torch.Tensor]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if isinstance(value, torch.Tensor):
            yield str(key), value
        else:
            yield from ((f"{key}.{name}", tensor) for name, tensor in _tensors(value))


def _sha256(tensors: Iterator[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _numbers(text: str) -> list[str]:
    """The numbers in a command's output, except those that a clock or a memory gauge measured."""
    text = re.sub(r"[\d,.]+ images/s|^.*(training speed|time |peak memory).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\d+ s$|(?<=  )\d+ s\b", "", text, flags=re.MULTILINE)
    lines = [line for line in text.splitlines() if not re.search(r"machine|revision|report\.html", line)]
    if any("images/s" in line for line in lines) or any("seconds" in line for line in lines):
        lines = [re.sub(r"[\d,]+ +\d+( ± \d+)? +(\d+)? *$", "", line) for line in lines]
    return re.findall(r"\d[\d,.]*(?:e-?\d+)?", "\n".join(lines))


def compare(one: Path, other: Path) -> int:
    """Prints the differences; returns how many there are."""
    before, after = facts(one), facts(other)
    different = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in different:
        print(f"{name} differs:\n  {str(before.get(name))[:400]}\n  {str(after.get(name))[:400]}")
    print(f"{len(before)} facts compared, {len(different)} differ")
    return len(different)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.equality", description=(__doc__ or "").partition("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("make", help="make all the runs").add_argument("folder", type=Path)
    comparison = actions.add_parser("compare", help="list the differences between two such folders")
    comparison.add_argument("one", type=Path)
    comparison.add_argument("other", type=Path)
    args = parser.parse_args()
    sys.exit(min(1, make(args.folder.resolve()) if args.action == "make" else compare(args.one, args.other)))
