"""Options that meet: every pair of values, and three of those that touch the step, are refused or train exactly."""

import random
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import compare
import pytest
from covertable import make
from pydantic import BaseModel
from trials import Server, Tally

from conftest import TINY, configure
from processes import environment, server
from vggexp.config.components import SCHEMAS
from vggexp.config.schema import GROUPS, Config
from vggexp.runs import manifest

CHOICES: dict[str, list[Any]] = {
    "model": ["vgg11", "vgg16_c", "vgg11_lrn", "alexnet"],
    "optimizer": ["adam", "adamw", "sgd", "muon"],
    "scheduler": ["none", "cosine", "onecycle", "triangular"],
    "logger": ["tensorboard", "csv", "mlflow", "wandb"],
    "inspect": ["off", "default"],
    "launcher": [None, "processes", "joblib", "submitit_local", "ray"],
}
"""Config groups, and how the run is launched."""

VALUES: dict[str, list[Any]] = {
    "data.resize": [32, 65, "{0:32,1:65}"],
    "data.seed": [None, 1],
    "data.batch_size": [64, 50],
    "data.val_size": [100, 0],
    "data.train_size": [None, 130],
    "data.num_workers": [0, 1],
    "data.shift": [0, 2],
    "data.cutout": [0, 8],
    "model.ratio": [16],
    "model.hidden": [4096, 0],
    "optimizer.lr": [0.001, 0.01],
    "optimizer.eps": [1e-8],
    "trainer.accelerator": ["cpu"],
    "trainer.devices": [1],
    "trainer.num_nodes": [1],
    "trainer.max_epochs": [2],
    "trainer.max_steps": [None, 5],
    "trainer.max_time": [None, "00:00:30:00"],
    "trainer.compile": [None, "default"],
    "trainer.limit_train_batches": [1.0, 0.5, 3],
    "trainer.limit_val_batches": [1.0, 2],
    "trainer.limit_test_batches": [1.0, 2],
    "trainer.precision": ["auto", "32-true", "bf16-mixed"],  # 16-mixed needs a GPU
    "trainer.enable_progress_bar": [True],
    "checkpoint.every_n_seconds": [300.0, 0.1],
}
"""Keys for which the schema allows values that a small run cannot show, or that no machine has."""

ELSEWHERE = (
    *("logger.", "inspect.", "seed", "tags", "note", "allowed_packages", "metrics"),
    *("data.root", "data.cache_dir", "data.test_size", "model.weights", "model.arch", "model.blocks"),
    "optimizer.sgd_layers",
)
"""Keys that groups set, or that do not change how a run goes."""

STEP = (
    *("optimizer", "scheduler", "trainer.precision", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches"),
    *("model.batch_norm", "trainer.detect_anomaly", "model.dropout", "data.val_size", "trainer.strategy"),
)
"""The ten that touch the step: every three of their values meet."""


def leaves(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key of a schema, with its annotation and the metadata that narrow it."""
    for name, field in schema.model_fields.items():
        key = f"{prefix}{name}"
        if not prefix and name in GROUPS:
            for kind in dict.fromkeys(SCHEMAS.values()):
                if issubclass(kind, SCHEMAS[name].__bases__) and not kind.__name__.startswith("_"):
                    yield from leaves(kind, f"{key}.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{key}.")
        elif name != "target":
            yield key, field.annotation, field.metadata


def values(annotation: Any, metadata: Any = ()) -> list[Any]:
    """A few values that an annotation allows; none for texts and lists."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(parts[0], parts[1].metadata if hasattr(parts[1], "metadata") else parts[1:])
    if origin in (Union, types.UnionType):
        return [value for part in parts for value in values(part)]
    if origin is Literal:
        return list(parts)
    if annotation is types.NoneType:
        return [None]
    if annotation is bool:
        return [False, True]
    if annotation in (int, float):
        lowest = next((bound.ge for bound in metadata if hasattr(bound, "ge")), None)
        return (
            [0.5] if lowest is None else [annotation(lowest), annotation(lowest) + (1 if annotation is int else 0.25)]
        )
    return []


def factors() -> dict[str, list[Any]]:
    """Every option and some of its values; the default comes first."""
    found: dict[str, list[Any]] = dict(CHOICES)
    for key, annotation, metadata in leaves(Config):
        if not key.startswith(ELSEWHERE):
            found[key] = list(dict.fromkeys([*found.get(key, []), *(VALUES.get(key) or values(annotation, metadata))]))
    return {key: some for key, some in found.items() if some}


def possible(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is refused by design, and would hide all that the row has beside it."""
    without: dict[str, Any] = {}
    if row["data.test_each_epoch"] or row["data.val_size"] == 0:
        without |= {"data.val_size": 0, "trainer.early_stopping.patience": None}
    if row["model"] == "alexnet":
        without["data.resize"] = 65
    if row["optimizer.momentum"] == 0:
        without["optimizer.nesterov"] = False
    return row | without


def arguments(row: dict[str, Any]) -> list[str]:
    """The command line of a row; keys that its groups do not have are left out."""
    row = possible(row)
    groups = [f"{key}={row[key]}" for key in CHOICES if key != "launcher"]
    has = configure(*TINY[:3], *groups, "data.resize=65", "model.ratio=16").model_dump(by_alias=True)
    args = [*TINY[:3], *groups, *(["-m", f"hydra/launcher={row['launcher']}"] if row["launcher"] else [])]
    for key, value in row.items():
        node: Any = has
        for part in key.split("."):
            node = node.get(part, ...) if isinstance(node, dict) else ...
        if key not in CHOICES and node is not ...:
            args.append(
                f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"
            )
    return args


@pytest.mark.slow
def test_options_that_meet(
    tally: Callable[[str], Tally], farm: Server, tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    """A row is refused in a line, or it trains; stopped and resumed it gives the same, goes on, and can be used."""
    options = tally("options")
    every = factors()
    assert len(every) > 45
    draw = random.Random(6)
    if count(1, 0):
        triples = {"fields": [key for key in STEP if key in every], "strength": 3}
        rows = make(every, strength=2, salt="options", sub_models=[triples])  # takes some minutes
    else:
        rows = [{key: draw.choice(some) for key, some in every.items()} for _ in range(56)]
    draw.shuffle(rows)
    rows.sort(
        key=lambda row: (row["launcher"] or "", row["logger"] in ("mlflow", "wandb"), row["trainer.compile"] or "")
    )
    lines = [arguments(row) for row in rows[: count(len(rows), 1)]]  # not in threads, in which Hydra cannot compose

    def trial(farm: Server, number: int) -> None:
        args = lines[number]
        whole, parts = tmp_path / f"{number}", tmp_path / f"{number}b"
        at = f"outputs/run{'/0' if '-m' in args else ''}"
        place = f"hydra.{'sweep' if '-m' in args else 'run'}.dir=outputs/run"
        for cwd in (whole, parts):
            cwd.mkdir()
        with options.trial(" ".join(args)):
            code = farm.run([*args, place], whole)
            log = (whole / "log").read_text()
            assert "Traceback" not in log, log
            if code != 0:
                output = whole / at / "output.log"
                log += output.read_text() if output.exists() else ""
                assert code in (1, 2, 3), log
                assert "unknown key" not in log, log
                assert "Traceback" not in log, log
                assert "vggexp: " in log, log
                result = whole / at / "result.json"
                assert not result.exists() or "epochs" not in manifest.load(result.parent, ""), log
                return
            expected = compare.outcome(whole / at)
            stopped = farm.run([*args, place], parts, [("stop_at", 4)])
            assert stopped in (0, 1, 143), (parts / "log").read_text()
            resume = [f"resume={at}", "allowed_packages=[synthetic]"]
            assert farm.run(resume, parts) == 0, (parts / "log").read_text()
            found = compare.differences(expected, compare.outcome(parts / at))
            assert not found, found[:5]
            assert farm.run([*resume, "trainer.max_epochs=3"], whole) == 0, (whole / "log").read_text()
            for words in (["evaluate"], ["export", "formats=safetensors"]):
                use = [*words, f"run={at}", "allowed_packages=[synthetic]"]
                process = server().start(*use, cwd=whole, env=environment(), log=whole / "log")
                assert process.wait() == 0, (whole / "log").read_text()

    farm.map(trial, range(len(lines)))
    options.check()
