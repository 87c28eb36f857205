"""What a run and a sweep print on the terminal."""

import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.runs import layout, metrics, read
from vggexp.system import files, paths, terminal


def announce(cfg: Config, folder: Path) -> None:
    """Prints one line before anything heavy is loaded."""
    what = f"{network_name(cfg.model.spec())}, {'→'.join(map(str, cfg.data.sizes.values()))} px"
    how = f"{cfg.optimizer.target.rpartition('.')[2]} lr {cfg.optimizer.lr:g}, batch {cfg.data.batch_size}"
    terminal.say(f"{what}, {how}, {cfg.trainer.precision}, seed {cfg.seed} → {terminal.short(folder)}")


def network_name(model: Mapping[str, Any]) -> str:
    """A network in a few words, from its config."""
    name = str(model.get("arch") or model["_target_"].rpartition(".")[2])
    if model.get("blocks"):
        name = "-".join(f"{convolutions}×{channels}" for convolutions, channels in model["blocks"])
    name += " bn" if model.get("batch_norm") else ""
    return name + (f" ratio {model['ratio']}" if "ratio" in model else "")


def show_result(result: Mapping[str, Any], folder: Path) -> None:
    """Prints the table at the end of a run."""
    texts = {name: metrics.text(name, result.get(name)) for name in metrics.METRICS}
    rows = {
        "test accuracy": texts["test/acc"],
        "test loss": texts["test/loss"],
        "epochs": f"{result['epochs']} (tested: {result['best_epoch'] or 'untrained'})",
        "training speed": f"{texts['images_per_second']} images/s",
        "time": f"{texts['seconds']} s",
        "parameters": texts["parameters"],
        "peak memory": f"{texts['peak_memory_bytes']} GiB",
        "run folder": terminal.short(folder),
    }
    terminal.console().print(terminal.pairs(rows))
    terminal.say(f"look inside    {_look(result['config']['logger'], folder)}")


def _look(logger: Mapping[str, Any], folder: Path) -> str:
    """Where the numbers of a run are shown, by its logger."""
    name, place = logger["name"], terminal.argument(folder)
    if name == "tensorboard":
        return f"vggexp tensorboard {place}"
    shown = []
    if name == "mlflow":
        store = logger["uri"] or f"sqlite:///{paths.outputs()}/mlflow.db"
        page = "" if find_spec("flask") else "pip install mlflow; "  # mlflow-skinny has none
        remote = store.startswith(("http:", "https:"))
        shown = [store if remote else f"{page}mlflow ui --backend-store-uri {shlex.quote(store)}"]
    elif name == "wandb":
        known, *url = files.content(folder / layout.LOGGER_ID, 1000).decode().split()
        shown = url or [f"wandb sync --id {known} {place}/wandb/offline-run-*"]
    return ", or ".join([*shown, f"vggexp report {place}"])


def show_sweep(folder: Path, known: Mapping[Path, read.Run]) -> None:
    """Prints the closing table of a sweep: what varied and the results, the best first, failures last."""
    try:
        found = [run for run in read.find([folder], known) if run.status != "waiting"]
    except UserError:
        found = []  # nothing has begun; whatever the reason is, it is about to be said
    if not found:
        return
    varied = read.varied([run.config for run in found if run.config])
    labels = read.labels(found) if len(varied) > read.MOST else {}
    rows = []
    for run in sorted(found, key=lambda run: -(read.objective(run) or 0.0)):
        numbers = {name: metrics.text(name, run.number(name)) for name in metrics.SUMMARY}
        if run.status != "completed":
            numbers["test/acc"] = run.status
        texts = [labels[run.folder]] if labels else [read.text(run.config.get(key)) for key in varied]
        rows.append([*texts, *numbers.values(), str(run.folder.relative_to(folder))])
    varied = ["varied"] if labels else varied
    header = [*varied, *map(metrics.label, metrics.SUMMARY), "run"]
    terminal.say(f"{len(found)} runs in {terminal.short(folder)}")
    terminal.console().print(terminal.table(header, rows, left=len(varied)))
    for run in found:
        if run.status != "completed":
            terminal.say(f"{run.folder.relative_to(folder)}: {run.status}: {run.reason}")
