"""The rooms of docs/architecture.md are the rooms of the code, and imports point downwards only."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE, PAGE = ROOT / "src" / "vggexp", ROOT / "docs" / "architecture.md"
MODULES = sorted(SOURCE.rglob("*.py"))

FLOORS = {
    "__init__": 9,
    "__main__": 9,
    "train": 9,
    "commands": 8,
    "api": 8,
    "jobs": 7,
    "inference": 7,
    "training": 6,
    "inspection": 5,
    "report": 5,
    "runs": 4,
    "config": 3,
    "checkpoints": 3,
    "data": 2,
    "models": 2,
    "system": 1,
    "errors": 0,
}
"""A room may import itself and the rooms on lower floors; rooms on one floor do not import each other."""

WITHOUT = {
    "models": ("lightning", "hydra", "omegaconf", "pydantic"),
    "data": ("hydra", "omegaconf", "pydantic", "vggexp.models"),
    "checkpoints": ("hydra", "omegaconf", "pydantic"),
    "system": ("lightning", "hydra", "omegaconf", "pydantic"),
    "errors": ("torch", "lightning", "hydra", "omegaconf", "pydantic"),
}
"""Modules that some rooms must not import."""

PRIVATE = re.compile(
    r"hydra\._internal|torch\._C\b|torch\._subclasses|torch\.distributed\._tools|torch\.nn\.modules\.utils|torch\.cpu\._"
    r"|\._trial_id\b|\._get_file_writer\b|\._update_count\b|\b_step_supports_amp_scaling\b|\b_cdata\b"
)
ADAPTERS = {
    "config/policy.py": "Hydra has no public way to look at a file before it is composed, but only at all in a folder",
    "inspection/dry_run.py": "nothing public counts the peak of a training step without running it",
    "jobs/pruning.py": "Optuna has no public way to report to a trial that another process asked for",
}
"""The files that may use a private name of another library, each with the reason why nothing public does the job."""


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Everything that a module imports, anywhere in its code, as `package.module.name`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _rooms_of(path: Path) -> set[str]:
    """The other rooms that a module imports."""
    found = {name.split(".")[1] for name in _imports(path) if name.startswith("vggexp.")}
    return {name if name in FLOORS else "__init__" for name in found} - {_room(path)}


def _name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_only_the_agreed_names_are_in_the_package() -> None:
    found = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.name != "__pycache__"}
    assert found == {*FLOORS, "py.typed"}


def test_imports_point_downwards() -> None:
    wrong = [
        f"{_name(path)} imports {room}"
        for path in MODULES
        for room in sorted(_rooms_of(path))
        if FLOORS[room] >= FLOORS[_room(path)]
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_circle_between_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph.setdefault(_room(path), set()).update(_rooms_of(path))
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("room", WITHOUT)
def test_a_room_does_not_import_what_it_must_not(room: str) -> None:
    wrong = [
        f"{_name(path)} imports {name}"
        for path in MODULES
        if _room(path) == room
        for name in _imports(path)
        if f"{name}.".startswith(tuple(f"{each}." for each in WITHOUT[room]))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_page_shows_the_same_floors() -> None:
    rows = re.findall(r"^\| (\d) \| (.+?) \| ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = {
        name.rstrip("/").removesuffix(".py"): int(floor)
        for floor, names in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert shown == FLOORS


def test_the_page_names_files_that_exist() -> None:
    """`room/file` on the page is a file or a folder of the package."""
    named = re.findall(r"`([a-z]+/[a-z_/]*)`", PAGE.read_text(encoding="utf-8"))
    rooms = [name for name in named if name.split("/")[0] in FLOORS]
    assert rooms
    gone = [name for name in rooms if not ((SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file())]
    assert not gone


def test_every_room_asks_its_question_and_lists_its_files() -> None:
    wrong = []
    for init in SOURCE.rglob("__init__.py"):
        if init.parent == SOURCE:
            continue
        text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        if "?" not in text.partition("\n")[0]:
            wrong.append(f"{_name(init)}: its docstring does not begin with a question")
        inside = [path.stem for path in init.parent.glob("*.py") if path != init]
        inside += [f"{path.parent.name}/" for path in init.parent.glob("*/__init__.py")]
        missing = [name for name in sorted(inside) if f"`{name}`" not in text]
        if missing:
            wrong.append(f"{_name(init)}: does not list {', '.join(missing)}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_file_is_longer_than_300_lines() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_no_module_has_a_catch_all_name() -> None:
    assert not [_name(path) for path in MODULES if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_private_names_of_other_libraries_stay_in_adapters() -> None:
    wrong, needed = [], set()
    for path in MODULES:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if PRIVATE.search(line)]
        found += [
            f"imports {name}"
            for name in _imports(path)
            if not name.startswith(("vggexp.", "__future__"))
            and any(part.startswith("_") for part in name.split("."))
            and not PRIVATE.search(name)
        ]
        if found and _name(path) in ADAPTERS:
            needed.add(_name(path))
        else:
            wrong += [f"{_name(path)}: {each}" for each in found]
    assert not wrong, "\n" + "\n".join(wrong)
    assert needed == set(ADAPTERS), "remove an adapter that no longer needs a private name from the list"
