"""The columns of TensorBoard's table of hyperparameters: what varies among runs, and their scores."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggexp.runs import metrics
from vggexp.runs import read as runs
from vggexp.runs.read import Run

FOLDER = "table of HParams, "  # and a number; TensorBoard lists it below the runs

Columns = dict[str, bool]
"""Keys of the config, and whether all their values are numbers."""


def columns(found: Sequence[Run]) -> Columns:
    """The keys that vary; where none does, all that could."""
    configs = [run.config for run in found if run.status == "completed"]
    keys = runs.varied(configs) or dict.fromkeys(key for config in configs for key in config)
    values = {key: [config[key] for config in configs if config.get(key) is not None] for key in keys}
    shown = {key: each for key, each in values.items() if each and not key.startswith(runs.ASIDE)}
    return {key: all(isinstance(value, int | float) for value in each) for key, each in shown.items()}


def write(wanted: Columns, folder: Path) -> None:
    """Writes the columns into the folder that TensorBoard looks into, in place of those that were there.

    TensorBoard reads a list of columns but once, so that a new one needs a folder of its own.
    """
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.summary.writer import event_file_writer

    number = 1
    for old in folder.glob(f"{FOLDER}*"):
        number = int(old.name.removeprefix(FOLDER)) + 1
        shutil.rmtree(old)
    api: Any = api_pb2  # none of these modules says its types
    plugin: Any = plugin_data_pb2
    summaries: Any = summary_pb2
    events: Any = event_pb2
    files: Any = event_file_writer
    described: Any = metadata.create_summary_metadata
    kinds = {True: "DATA_TYPE_FLOAT64", False: "DATA_TYPE_STRING"}
    keys = [api.HParamInfo(name=key, type=kinds[numeric], differs=True) for key, numeric in wanted.items()]
    scores = [api.MetricInfo(name=api.MetricName(tag=name)) for name in metrics.RESULTS]
    experiment = api.Experiment(hparam_infos=keys, metric_infos=scores)
    about = described(plugin.HParamsPluginData(experiment=experiment))
    value = summaries.Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    writer = files.EventFileWriter(str(folder / f"{FOLDER}{number}"))
    writer.add_event(events.Event(wall_time=time.time(), summary=summaries.Summary(value=[value])))
    writer.close()
