"""What a run and a sweep say on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vggexp.config.schema import Config
from vggexp.runs import read as runs


def announce(cfg: Config, folder: Path) -> None:
    """One line before anything heavy is loaded."""
    model, data = cfg.model.spec(), cfg.data
    console().print(
        f"{network_name(model)}, {data.resize} px, {cfg.optimizer.target.rpartition('.')[2]} lr {cfg.optimizer.lr:g}, "
        f"batch {data.batch_size}, {cfg.trainer.precision}, seed {cfg.seed} → {short(folder)}",
        soft_wrap=True,
    )


def network_name(model: Mapping[str, Any]) -> str:
    """A network in a few words, from its config."""
    name = str(model.get("arch") or model["_target_"].rpartition(".")[2])
    if model.get("blocks"):
        name = "-".join(f"{convs}×{channels}" for convs, channels in model["blocks"])
    name += " bn" if model.get("batch_norm") else ""
    return name + (f" ratio {model['ratio']}" if "ratio" in model else "")


def show_evaluation(scores: Mapping[str, Any], stored: Mapping[str, Any] | None, folder: Path) -> None:
    """What `vggexp.inference.evaluate` found; `stored` is the result of the run, if it tested this checkpoint."""
    terminal = console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("class", "precision", "recall", "f1", "images"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, row in scores["classes"].items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), str(row["images"]))
    terminal.print(table)
    summary = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    summary.add_row("test accuracy", f"{scores['test/acc']:.4f}", style="bold")
    summary.add_row("test loss", f"{scores['test/loss']:.4f}")
    summary.add_row("calibration error", f"{scores['calibration_error']:.4f}")
    if stored is not None and "test/acc" in stored:
        same = all(stored[name] == scores[name] for name in ("test/acc", "test/loss"))
        text = f"accuracy {stored['test/acc']!r}, loss {stored['test/loss']!r}"
        summary.add_row("the run stored", "the same numbers" if same else f"other numbers: {text}")
    summary.add_row("tables, pictures", short(folder))
    terminal.print(summary)


def show_result(result: Mapping[str, Any], folder: Path) -> None:
    """The table at the end of a run."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "test accuracy": _number(result.get("test/acc"), ".4f"),
        "test loss": _number(result.get("test/loss"), ".4f"),
        "epochs": f"{result['epochs']} (tested: {result['best_epoch'] or 'untrained'})",
        "training speed": f"{_number(result['images_per_second'], ',.0f')} images/s",
        "time": f"{result['seconds']:.0f} s",
        "parameters": f"{result['parameters']:,}",
        "peak memory": f"{result['peak_memory_bytes'] / 2**30:.2f} GiB",
        "run folder": short(folder),
    }
    for name, value in rows.items():
        table.add_row(name, value, style="bold" if name == "test accuracy" else "")
    console().print(table)
    console().print(f"look inside    python -m vggexp.tensorboard {short(folder)}", soft_wrap=True)


def show_sweep(folder: Path) -> None:
    """The closing table of a sweep: what varied and the results, the best val/acc first, failures last."""
    found = [run for run in runs.find([folder]) if run.status != "waiting"]
    if not found:
        return
    configs = {run.folder: run.config for run in found}
    varied = runs.varied(configs.values())
    table = Table(title=f"{len(found)} runs in {short(folder)}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (*varied, "val/acc", "test/acc", "test/loss", "images/s", "seconds", "run"):
        table.add_column(name, overflow="fold")
    for run in sorted(found, key=runs.rank):
        table.add_row(
            *(runs.text(configs[run.folder].get(key)) for key in varied),
            _number(run.number("val/acc"), ".4f"),
            _number(run.number("test/acc"), ".4f") if run.status == "completed" else run.status,
            _number(run.number("test/loss"), ".4f"),
            _number(run.number("images_per_second"), ",.0f"),
            _number(run.number("seconds"), ".0f"),
            str(run.folder.relative_to(folder)),
        )
    console().print(table)
    for run in found:
        if run.status != "completed":
            console().print(f"{run.folder.relative_to(folder)}: {run.status}: {run.reason}", soft_wrap=True)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def short(folder: Path) -> str:
    """As the user would write it, from where they stand."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def console(stderr: bool = False) -> Console:
    """The terminal; into a file or a pipe, wide enough for every table."""
    terminal = Console(highlight=False, stderr=stderr)
    return terminal if terminal.is_terminal else Console(highlight=False, stderr=stderr, width=max(terminal.width, 140))
