"""vggexp runs [FOLDER ...] [where=CONDITIONS] [sort=KEY] [columns=KEYS] [json=true] [csv=FILE]

Lists runs, those under outputs/ by default, the newest last.

vggexp runs diff A B                        in what two runs differ: config, code, versions, machine, results
vggexp runs mark A [tags=a,b] [note=TEXT]   writes on a run, which changes no number
vggexp runs remove where=CONDITIONS         lists what would be removed, and its size; confirm=true removes it

  where     conditions that runs meet, such as "data.resize=32 status=failed", "val/acc>0.9" or "tags=mine"
  sort      by a result, a key of the config, or started, status, size, ...; -KEY: the largest first; default: started
  columns   what the list shows, e.g. optimizer.lr,val/acc,size
  json      prints everything that is known of each run
  csv       writes the list into a file

A run that trains, and one outside of outputs/, is never removed.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggexp.commands import options
from vggexp.config.schema import REMARKS
from vggexp.errors import UserError
from vggexp.report import notes
from vggexp.runs import code, layout, manifest, metrics, query, read, select
from vggexp.runs.read import Run
from vggexp.system import files, paths, terminal
from vggexp.system.terminal import say, short

VARIED = "varied"  # what sets a run apart from those beside it
COLUMNS = ("run", "status", VARIED, "val/acc", "test/acc", "epochs", "seconds", "size")


class Listing(options.Options):
    where: str | None = None
    sort: str = "started"
    columns: options.Words = COLUMNS
    csv: Path | None = None


class Marks(options.Options):
    tags: options.Words | None = None
    note: str | None = None


class Removal(options.Options):
    where: str
    confirm: bool = False


def main(args: list[str]) -> int:
    actions = {"diff": _diff, "mark": _mark, "remove": _remove}
    if args and args[0] in actions and not Path(args[0]).exists():
        return actions[args[0]](args[1:])
    as_json, args = options.take("json", args)
    if as_json not in (None, "true", "false"):
        raise UserError(f"json={as_json}: must be true or false")
    named, others = options.folders(args)
    given, _ = options.parse(Listing, others)
    found = query.sort(query.select(_find(named), given.where), given.sort)
    if as_json == "true":
        print(json.dumps([_everything(run) for run in found], indent=1))
        return 0
    for column in given.columns:
        query.check(found, "columns", "run" if column == VARIED else column)
    if given.csv is not None:
        layout.check_output(given.csv, "csv")
        header = [column for column in given.columns if column != VARIED]
        with files.writing(given.csv.parent, f"csv={given.csv}"):
            files.write_csv(given.csv, header, [[query.value(run, name) for name in header] for run in found])
        say(f"{len(found)} runs in {short(given.csv)}")
        return 0
    varied = read.labels(found) if VARIED in given.columns else {}
    rows = [[varied[run.folder] if name == VARIED else _text(run, name) for name in given.columns] for run in found]
    words = [name in (VARIED, "run", *query.OWN[:-1]) for name in given.columns]
    header = list(map(metrics.label, given.columns))
    terminal.console().print(terminal.table(header, rows, left=[*words, False].index(False)))
    return 0


def _diff(args: list[str]) -> int:
    if len(args) != 2:
        raise UserError(f"diff {' '.join(args)}: takes two runs, folders or last; vggexp runs diff A B")
    one, other = (read.read(select.run(name, "diff")) for name in args)
    rows = notes.differences(one, other)
    for name in dict.fromkeys([*one.result, *other.result]):
        if name in metrics.METRICS or name in REMARKS:
            texts = [_text(run, name) for run in (one, other)]
            rows += [(name, texts[0], texts[1])] if texts[0] != texts[1] else []
    terminal.console().print(terminal.table(["differs", short(one.folder), short(other.folder)], rows, left=3))
    for line in code.diff(one.folder, one.result.get("code"), other.folder, other.result.get("code")):
        say(line)
    return 0


def _mark(args: list[str]) -> int:
    if not args:
        raise UserError("mark: names no run; vggexp runs mark RUN tags=a,b note=TEXT")
    given, _ = options.parse(Marks, args[1:])
    folder = select.run(args[0], "mark")
    with manifest.lock(folder, f"mark {args[0]}"):
        content = manifest.load(folder, f"mark {args[0]}")
        if given.tags is not None:
            content["tags"] = list(given.tags)
        if given.note is not None:
            content["note"] = given.note
        manifest.write(folder, content)
    tags = ", ".join(content.get("tags") or ["none"])
    say(f"{short(folder)}: tags {tags}; note: {content.get('note') or 'none'}")
    return 0


def _remove(args: list[str]) -> int:
    named, others = options.folders(args)
    given, _ = options.parse(Removal, others)
    if not given.where.strip():
        raise UserError("where: is empty; name what is to be removed, e.g. where=status=failed")
    root = paths.outputs().resolve()
    found = [run for run in query.select(_find(named), given.where) if run.status != "waiting"]
    for run in found:
        if run.status == "running":
            raise UserError(f"{short(run.folder)}: is running; stop it first, or add status!=running to where=")
        if root not in run.folder.resolve().parents or run.folder.is_symlink():
            raise UserError(f"{short(run.folder)}: is outside {paths.outputs()}/; remove it yourself")
    sizes = [read.size(run.folder) for run in found]
    for run, size in zip(found, sizes, strict=True):
        say(f"{short(run.folder)}  {run.status}  {size / 2**20:,.1f} MiB")
    say(f"{len(found)} runs, {sum(sizes) / 2**20:,.1f} MiB" + ("" if given.confirm else "; confirm=true removes them"))
    for run in found if given.confirm else []:
        with files.writing(run.folder, short(run.folder)):
            with manifest.lock(run.folder, short(run.folder), seconds=0):
                shutil.rmtree(run.folder, ignore_errors=paths.WINDOWS)  # which keeps the lock while it is held
            if paths.WINDOWS:
                shutil.rmtree(run.folder)
    return 0


def _find(named: Sequence[str]) -> list[Run]:
    places = select.places(named, [paths.outputs()])
    if not named and not places[0].is_dir():
        raise UserError(f"there is no run under {paths.outputs()}/; start one, or name its folder")
    return read.find(places)


def _text(run: Run, name: str) -> str:
    found = query.value(run, name)
    if name == "run":
        return short(run.folder)
    if name == "size":
        return f"{found / 2**20:,.1f} MiB"
    if isinstance(found, list):
        return ", ".join(map(str, found))
    if name in metrics.METRICS:
        return metrics.text(name, run.number(name))
    return "–" if found is None else read.text(found)


def _everything(run: Run) -> dict[str, Any]:
    own = {"run": str(run.folder), "status": run.status, "reason": run.reason}
    return {**run.result, **own, "size": read.size(run.folder)}
