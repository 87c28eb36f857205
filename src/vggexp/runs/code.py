"""The code that makes a run: its files by hash, its revision, and the text of what no revision holds."""

import ast
import difflib
import functools
import hashlib
import json
import os
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.runs import layout
from vggexp.system import files

OWN = "vggexp"
SUFFIXES = {".py", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp"}
UNRELATED = ("commands/", "inference/", "report/")  # folders of this package that a run never enters
LONGEST_DIFF = 10**7  # lines of one text times those of the other
LARGEST = 2**20  # bytes of one package's files that a run folder keeps


class Package(NamedTuple):
    """The source files of a package, or the one of a module."""

    name: str
    root: Path  # the folder to which the files' names are relative
    hashes: dict[str, str]  # of each file, sha256
    revision: str | None  # the commit that is checked out; None outside of git
    loose: list[str]  # the files that are not as in that commit; those that git ignores are not among them

    @property
    def hash(self) -> str:
        """The same for the same files."""
        return hashlib.sha256(json.dumps(self.hashes, sort_keys=True).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What `result.json` says of it."""
        return {"hash": self.hash, "revision": self.revision, "dirty": bool(self.loose)}


def current(allowed: Sequence[str]) -> list[Package]:
    """This package, those that a config allows, and what they import that is not installed."""
    found = {OWN: own()}
    names = [name.partition(".")[0] for name in allowed]
    while names:
        name = names.pop()
        if name not in found and (spec := _spec(name)) is not None:
            found[name] = _package(name, spec)
            names += [other for other in _imports(found[name]) if (spec := _spec(other)) and not _installed(spec)]
    return list(found.values())


@functools.cache
def own() -> Package:
    """This package as it was when it was first asked for: a process imports the rest of it at about that time."""
    spec = _spec(OWN)
    assert spec is not None
    found = _package(OWN, spec)
    hashes = {name: value for name, value in found.hashes.items() if not name.startswith(UNRELATED)}
    return found._replace(hashes=hashes, loose=[name for name in found.loose if name in hashes])


def keep(folder: Path, packages: Sequence[Package]) -> None:
    """Writes into a run folder what a later reader needs to know of code that no commit holds."""
    for package in packages:
        place = _place(folder, package.name, package.hash)
        if place.exists():
            continue
        place.mkdir(parents=True)
        files.write_text(place / layout.HASHES, json.dumps(package.hashes, indent=1) + "\n")
        room = LARGEST
        for name in sorted(package.loose, key=lambda name: (package.root / name).stat().st_size):
            content = (package.root / name).read_bytes()
            room -= len(content)
            if room >= 0 and hashlib.sha256(content).hexdigest() == package.hashes[name]:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)


def changed(folder: Path, then: Any, now: Mapping[str, Any]) -> list[str]:
    """The files that are not as they were when a run was trained, of the packages that both name; `[]` if none.

    Args:
        folder, then: the run's folder, and `code` of its `result.json`, which may come from a stranger.
        now: the code of now, in the same form.
    """
    if not isinstance(then, dict) or OWN not in then:
        return ["a version that was not recorded"]
    found = []
    for name in [name for name in now if name in then and _hash(then[name]) != _hash(now[name])]:
        old, new = _listed(folder, name, _hash(then[name])), _listed(None, name, "")
        differing = sorted(file for file in {**old, **new} if old.get(file) != new.get(file))
        found += [_shown(name, file) for file in differing] if old and new else [name]
    return found


def diff(folder: Path, then: Any, other: Path, now: Any) -> list[str]:
    """How the code of two runs differs, in the lines of a unified diff; the arguments are those of `changed`."""
    lines = []
    sides = [(place, found if isinstance(found, dict) else {}) for place, found in ((folder, then), (other, now))]
    for name in [name for name in sides[0][1] if name in sides[1][1]]:
        listed = [_listed(place, name, _hash(found[name])) for place, found in sides]
        for file in sorted({**listed[0], **listed[1]}):
            if listed[0].get(file) == listed[1].get(file):
                continue
            shown, texts = _shown(name, file), [text(place, name, found[name], file) for place, found in sides]
            old, new = ((found or "").splitlines() for found in texts)
            if any(found is None and file in known for found, known in zip(texts, listed, strict=True)):
                lines.append(f"{shown}: differs; its text was not kept")
            elif len(old) * len(new) > LONGEST_DIFF:
                lines.append(f"{shown}: differs; it is too long to compare line by line")
            else:
                lines += difflib.unified_diff(old, new, shown, shown, lineterm="")
    return lines


def _shown(package: str, file: str) -> str:
    return file if file == f"{package}.py" else f"{package}/{file}"


def text(folder: Path, package: str, summary: Mapping[str, Any], file: str) -> str | None:
    """The text of a file as a run had it, from what the run kept or from its commit; None if it is lost."""
    found, kept = None, _place(folder, package, _hash(summary)) / file
    revision = str(summary.get("revision"))
    if kept.is_file():
        found = files.content(kept).decode(errors="replace")
    elif (spec := _spec(package)) is not None and revision.isalnum():
        found = _git(_root(spec), "show", f"{revision}:./{file}")
    wanted = _listed(folder, package, _hash(summary)).get(file)
    return found if found is not None and hashlib.sha256(found.encode()).hexdigest() == wanted else None


def _listed(folder: Path | None, name: str, digest: str) -> dict[str, str]:
    """The hashes of a package's files, as a run folder lists them, or as they are now."""
    if folder is None:
        return next((package.hashes for package in current([name]) if package.name == name), {})
    try:
        found = json.loads(files.content(_place(folder, name, digest) / layout.HASHES))
        names = [str(file) for file in found if ".." not in Path(file).parts and not Path(file).anchor]
        return {file: str(found[file]) for file in names}
    except (OSError, ValueError, AttributeError):
        return {}


def _place(folder: Path, name: str, digest: str) -> Path:
    return folder / layout.CODE / f"{Path(name).name}-{Path(digest).name[:12]}"


def _hash(summary: Any) -> str:
    return str(summary.get("hash")) if isinstance(summary, Mapping) else ""


def _spec(name: str) -> ModuleSpec | None:
    try:
        return None if "." in name else find_spec(name)  # which would import what is left of the dot
    except (ImportError, ValueError, AttributeError):
        return None


def _root(spec: ModuleSpec) -> Path:
    places = spec.submodule_search_locations
    return Path(next(iter(places))) if places else Path(str(spec.origin)).parent


def _package(name: str, spec: ModuleSpec) -> Package:
    root = _root(spec)
    paths = [Path(str(spec.origin))]
    if spec.submodule_search_locations:
        paths = [path for place in spec.submodule_search_locations for path in _sources(Path(place))]
    hashes = {}
    for path in sorted(path for path in paths if path.suffix in SUFFIXES and path.is_file()):
        hashes[os.path.relpath(path, root).replace(os.sep, "/")] = hashlib.sha256(path.read_bytes()).hexdigest()
    known = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".")
    if known is None or not set(hashes) & set(known.split("\0")):
        ignored = known is not None  # the folder is within a repository that does not want to know of it
        return Package(name, root, hashes, None, [] if ignored or _installed(spec) else list(hashes))
    same = _git(root, "ls-files", "-z", "--cached", "--", ".") or ""
    differing = _git(root, "diff", "--name-only", "-z", "--relative", "HEAD", "--", ".")
    committed = set(same.split("\0")) - set((differing if differing is not None else same).split("\0"))
    loose = [file for file in hashes if file in known.split("\0") and file not in committed]
    return Package(name, root, hashes, (_git(root, "rev-parse", "--verify", "-q", "HEAD") or "").strip() or None, loose)


def _sources(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith((".", "__pycache__"))]
        yield from (Path(place, name) for name in names)


def _imports(package: Package) -> set[str]:
    """The packages that a package's files import."""
    found = set()
    for name in package.hashes:
        if name.endswith(".py"):
            try:
                nodes = list(ast.walk(ast.parse((package.root / name).read_bytes())))
            except (SyntaxError, ValueError, RecursionError):
                continue  # to import it will fail, and say why
            modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
            modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
            found |= {module.partition(".")[0] for module in modules}
    return found


def _installed(spec: ModuleSpec) -> bool:
    """Whether a package belongs to Python or to a distribution, whose version says what it is."""
    if spec.name == OWN or spec.origin in ("built-in", "frozen"):
        return True
    root, standard = (Path(os.path.realpath(path)) for path in (_root(spec), sysconfig.get_path("stdlib")))
    return bool({"site-packages", "dist-packages"} & set(root.parts)) or root.is_relative_to(standard)


def _git(folder: Path, *args: str) -> str | None:
    """What git answers; None where it is missing, or the folder is not in a repository."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *args]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as a hook has them
    try:
        done = subprocess.run(command, check=True, capture_output=True, timeout=10, env=env)
        return done.stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
