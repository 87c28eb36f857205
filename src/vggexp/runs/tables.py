"""What a run and a sweep print on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.runs import metrics, read
from vggexp.system import paths, terminal

LOOK = {
    "tensorboard": "vggexp tensorboard {folder}",
    "csv": "vggexp report {folder}",
    "mlflow": "mlflow ui --backend-store-uri {store}, or vggexp report {folder}",
    "wandb": "wandb sync {folder}/wandb/offline-run-*, or vggexp report {folder}",
}
"""Where the numbers of a run are shown, by the name of its logger."""


def announce(cfg: Config, folder: Path) -> None:
    """Prints one line before anything heavy is loaded."""
    what = f"{network_name(cfg.model.spec())}, {cfg.data.resize} px"
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
    logger, place = result["config"]["logger"], terminal.argument(folder)
    store = logger["uri"] or f"sqlite:///{paths.outputs()}/mlflow.db"
    terminal.say(f"look inside    {LOOK[logger['name']].format(folder=place, store=store)}")


def show_sweep(folder: Path) -> None:
    """Prints the closing table of a sweep: what varied and the results, the best first, failures last."""
    try:
        found = [run for run in read.find([folder]) if run.status != "waiting"]
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
