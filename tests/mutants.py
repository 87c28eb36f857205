"""Breaks the code in one small place at a time, and reports whether a test fails: `make mutants`.

    python tests/mutants.py --python .venv/bin/python [--seed 0] [--count 40] [--only 3,17] [--quick]

cosmic-ray finds all places and changes; a seed draws among the places. A changed copy of the checkout is tested until a
test fails: first by the quick tests, then, without --quick, by all others. The last line lists the mutants that no test
has noticed; --only tries some of them again.
"""

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import use_mutation

ROOT = Path(__file__).parents[1]
PYTEST = ("-m", "pytest", "-x", "-q", "-n", "2", "--dist=loadfile", "--no-loadscope-reorder", "-p", "no:cacheprovider")
STEPS = {"quick": 400, "slow": 1500}  # seconds; a test that does not end has noticed the change


class Mutant(NamedTuple):
    """A change that cosmic-ray can make: the occurrence of an operator in a module."""

    module: Path
    line: int
    operator: str
    occurrence: int


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    only = {int(number) for number in args.only.split(",") if number}
    with tempfile.TemporaryDirectory(prefix="vggexp-mutants-") as name:
        copy = Path(name).resolve()
        python = checkout(copy, args.python)
        if failed := failure(copy, python, "quick"):
            print(f"the unchanged code fails: {failed}")
            return 2
        survivors = []
        for number, mutant in enumerate(draw(copy, args.seed, args.count)):
            if only and number not in only:
                continue
            start, steps = time.monotonic(), ["quick"] if args.quick else list(STEPS)
            with use_mutation(
                copy / mutant.module, plugins.get_operator(mutant.operator)(), mutant.occurrence
            ) as codes:
                failed = next(filter(None, (failure(copy, python, step) for step in steps)), None)
            before, after = (code.splitlines() for code in codes)
            changed = [line.strip() for line in difflib.unified_diff(before, after, n=0, lineterm="")][3:]
            print(f"{number:3} {time.monotonic() - start:4.0f} s {mutant.module}:{mutant.line} {failed or 'SURVIVED'}")
            print("\n".join(f"      {line}" for line in changed), flush=True)
            survivors += [] if failed else [number]
    print(f"survived: {', '.join(map(str, survivors)) or 'none'}")
    return 1 if survivors else 0


def checkout(copy: Path, python: Path) -> Path:
    """Copies the checkout's files; returns an interpreter that finds their code, and otherwise what `python` finds."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    here = python.absolute()
    subprocess.run([here, "-m", "venv", "--without-pip", copy / ".venv"], check=True)
    (found,) = (copy / ".venv").glob("lib/python*/site-packages")
    (packages,) = here.parents[1].glob("lib/python*/site-packages")
    (found / "paths.pth").write_text(f"{copy / 'src'}\n{packages}\n")
    for script in here.parent.iterdir():
        if script.is_file() and not script.is_symlink() and not (copy / ".venv" / "bin" / script.name).exists():
            text = script.read_bytes().replace(str(here.parent).encode(), str(copy / ".venv" / "bin").encode())
            (copy / ".venv" / "bin" / script.name).write_bytes(text)
            (copy / ".venv" / "bin" / script.name).chmod(0o755)
    return copy / ".venv" / "bin" / "python"


def draw(copy: Path, seed: int, count: int) -> list[Mutant]:
    """A change at each of `count` places, all places being equally likely."""
    places: dict[tuple[Path, tuple[int, int]], list[Mutant]] = {}
    for path in sorted((copy / "src").rglob("*.py")):
        nodes, types = list(ast_nodes(get_ast_from_path(path))), annotations(path)
        for name in sorted(plugins.operator_names()):
            operator = plugins.get_operator(name)
            if operator.arguments():
                continue
            found = (place for node in nodes for place in operator().mutation_positions(node))
            for occurrence, (start, _) in enumerate(found):
                if not any(first <= start < last for first, last in types):
                    mutant = Mutant(path.relative_to(copy), start[0], name, occurrence)
                    places.setdefault((path, start), []).append(mutant)
    chance = random.Random(seed)
    return [chance.choice(places[place]) for place in chance.sample(sorted(places), count)]


def annotations(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the types stand in a module: a change there is found by mypy."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found += [getattr(node, "annotation", None), getattr(node, "returns", None)]
    spans = [node for node in found if node is not None]
    return [((x.lineno, x.col_offset), (x.end_lineno or 0, x.end_col_offset or 0)) for x in spans]


def failure(copy: Path, python: Path, step: str) -> str | None:
    """The first test that fails in a step, or None."""
    log = copy / "log"
    with log.open("wb") as file:
        command = [python, *PYTEST, f"--basetemp={copy / 'tmp'}"]
        command += ["-m", "slow" if step == "slow" else "not slow"]
        process = subprocess.Popen(command, cwd=copy, stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait(STEPS[step])
        except subprocess.TimeoutExpired:
            code = -1
    leave(copy)
    process.wait()
    if code == 0:
        return None
    lines = log.read_text(errors="replace").splitlines()
    return next((line[:150] for line in lines if line.startswith(("FAILED", "ERROR"))), f"{step}: exit code {code}")


def leave(copy: Path) -> None:
    """Kills what still runs in the copy, such as commands that a test has started."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if (folder / "cwd").readlink().is_relative_to(copy):
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended, or belongs to another user


if __name__ == "__main__":
    sys.exit(main())
