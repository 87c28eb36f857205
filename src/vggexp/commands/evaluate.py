"""vggexp evaluate run=PATH [output=FOLDER] [data.KEY=VALUE ...] [trainer.KEY=VALUE ...]

Scores a finished network on the test set.

  run       a run folder, a checkpoint file, or last: the newest run under outputs/
  output    where the files go; default: evaluation/ in the run's folder
  data.*    where the data are now, e.g. data.root=FOLDER; trainer.* what to run on, e.g. trainer.accelerator=cpu

Writes evaluation.json, per_class.csv, confusion.csv, confusion.png and mistakes.png: the images that the network got
wrong with the highest probability.
"""

from pathlib import Path

from vggexp.commands import options
from vggexp.inference import load
from vggexp.runs import layout, metrics
from vggexp.system import files, terminal

COLUMNS = ("precision", "recall", "f1")


class Evaluate(options.Options):
    run: str
    output: Path | None = None


def main(args: list[str]) -> int:
    given, overrides = options.parse(Evaluate, args, load.OVERRIDABLE)
    network = load.load(given.run, overrides)
    folder = given.output or network.folder / layout.EVALUATION
    from vggexp.inference.evaluate import evaluate

    with files.writing(folder, f"output={folder}"):
        scores = evaluate(network, folder)
    rows = [[name, *(f"{row[key]:.3f}" for key in COLUMNS), row["images"]] for name, row in scores["classes"].items()]
    console = terminal.console()
    console.print(terminal.table(("class", *COLUMNS, "images"), rows))
    summary = {
        "test accuracy": metrics.text("test/acc", scores["test/acc"]),
        "test loss": metrics.text("test/loss", scores["test/loss"]),
        "calibration error": f"{scores['calibration_error']:.4f}",
    }
    if network.result is not None and "test/acc" in network.result:
        stored = network.result
        same = all(stored[name] == scores[name] for name in ("test/acc", "test/loss"))
        other = f"other numbers: accuracy {stored['test/acc']!r}, loss {stored['test/loss']!r}"
        summary["the run stored"] = "the same numbers" if same else other
    console.print(terminal.pairs(summary | {"tables, pictures": terminal.short(folder)}))
    return 0
