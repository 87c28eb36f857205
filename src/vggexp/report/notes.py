"""What a reader should know of runs: other code, other versions, other machines, and the commands that repeat them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import requires
from typing import Any

import yaml

from vggexp.config.schema import flatten
from vggexp.runs import layout, read
from vggexp.runs.read import Run
from vggexp.system import files, terminal


def machine(run: Run) -> str:
    """The processor or GPU, the threads and the precision."""
    found = flatten(run.result)
    device = found.get("hardware.cpu") if found.get("device") == "cpu" else found.get("device")
    return f"{device}, {found.get('threads')} threads, {found.get('precision')}"


NOTED = {"processors": "hardware.cpu", "instruction sets": "isa", "devices": "device", "precisions": "precision"}
NOTED |= {"oneDNN's instruction sets": "onednn_isa", "numbers of threads": "threads"}
"""What runs should have in common to be compared, beside the versions; a report notes where they do not."""

MACHINE = ("device", "precision", "threads", "isa", "onednn_isa")


def of_runs(completed: Sequence[Run]) -> list[str]:
    """What makes the completed runs less comparable than they look."""
    every = [flatten(run.result) for run in completed]
    needed = [re.split(r"[ <>=!~;\[]", need)[0].lower() for need in requires("vggexp") or () if "extra ==" not in need]
    names = NOTED | {f"versions of {name}": f"versions.{name}" for name in ("python", "vggexp", *needed)}
    found = [_differ(f"{name} differ", [str(each.get(key)) for each in every]) for name, key in names.items()]
    for package in sorted({name.split(".")[1] for each in every for name in each if name.startswith("code.")}):
        having = [each for each in every if f"code.{package}.hash" in each]
        if len({each[f"code.{package}.hash"] for each in having}) > 1:
            found.append(_differ(f"the code of {package} differs", [_code(each, package) for each in having]))
    for run in completed:
        for segment in run.result.get("segments") or ():
            old, new = (_identity(part) for part in (segment, run.result))
            if differing := [name for name in old if old[name] != new[name]]:
                found.append(f"{terminal.short(run.folder)}: was resumed with other {' and '.join(differing)}")
    return list(dict.fromkeys(filter(None, found)))


def _differ(text: str, values: Sequence[str]) -> str:
    """Says how often each of several values occurs; nothing where there is only one."""
    counts = [f"{value} ({n} run{'s' if n > 1 else ''})" for value, n in Counter(values).items()]
    return f"{text}: {'; '.join(counts)}" if len(counts) > 1 else ""


def _code(found: Mapping[str, Any], package: str) -> str:
    """A package's commit, or what its files are known by."""
    digest, revision = (str(found.get(f"code.{package}.{key}") or "")[:12] for key in ("hash", "revision"))
    return f"{revision}, changed to {digest}" if revision and found.get(f"code.{package}.dirty") else revision or digest


def _identity(segment: Any) -> dict[str, Any]:
    """What the numbers of a segment depend on, in a form that can be compared."""
    found = flatten(segment) if isinstance(segment, dict) else {}
    code = {name: value for name, value in found.items() if name.startswith("code.") and name.endswith(".hash")}
    versions = {name: value for name, value in found.items() if name.startswith("versions.")}
    return {"code": code, "versions": versions, "processor": found.get("hardware.cpu")}


def _short(key: str, value: Any) -> str:
    """A value as it is printed; of a hash its beginning."""
    return str(value)[:12] if key.startswith("code.") else read.text(value)


def differences(one: Run, other: Run) -> list[tuple[str, str, str]]:
    """Where two runs differ in config, versions, source and machine."""
    parts = ("config.", "versions.", "code.", "hardware.", "status", *MACHINE)
    sides = [{k: _short(k, v) for k, v in flatten(run.result).items() if k.startswith(parts)} for run in (one, other)]
    rows = [(key, sides[0].get(key, "–"), sides[1].get(key, "–")) for key in dict.fromkeys([*sides[0], *sides[1]])]
    return [row for row in rows if row[1] != row[2]]


def command(run: Run) -> str:
    """The command that repeats a run, from what Hydra has noted of it; empty where that cannot be read."""
    try:
        text = files.content(run.folder / layout.OVERRIDES, 2**16).decode()
        listed = yaml.compose(text, yaml.SafeLoader).value  # type: ignore[no-untyped-call]
        overrides = [node.value for node in listed]  # not constructed, not resolved
        flags = [arg for arg in run.result["command"] if arg.startswith("--config")]
        return terminal.quoted("vggexp", "train", *flags, *overrides)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return ""
