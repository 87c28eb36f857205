"""Where a run's numbers, pictures and texts go beside `metrics.csv`: the logger that one word chooses."""

import secrets
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import hparams

from vggexp.config.schema import Config, flatten
from vggexp.errors import UserError, described
from vggexp.inspection.pictures import Picture
from vggexp.runs import layout, metrics
from vggexp.system import files, paths, terminal
from vggexp.system.signals import Interrupted

ASIDE = (
    *("allowed_packages", "checkpoint.", "inspect.", "logger."),
    *("data._target_", "data.root", "data.cache_dir", "data.num_workers", "data.test_each_epoch"),
    *("trainer.benchmark", "trainer.detect_anomaly", "trainer.enable_progress_bar", "trainer.log_every_n_steps"),
)
"""Keys of the config by which runs are not compared."""

RESULTS = tuple(dict.fromkeys((*metrics.COMPARED, "images_per_second", *metrics.SCORES)))
"""The most interesting first: TensorBoard's table shows five before it is asked for more."""


class Board:
    """Takes the calls of torch's SummaryWriter, `add_image` and so on, and shows nothing.

    Subclasses override what their logger can show.
    """

    def __init__(self, logger: Any = None) -> None:
        self.logger = logger

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("add_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return lambda *args, **options: None


class TensorBoard(Board):
    """Shows everything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return getattr(self.logger.experiment, name)  # type: ignore[no-any-return]


class MLflow(Board):
    """Keeps pictures and texts as a run's artifacts."""

    def add_image(self, tag: str, picture: Picture, step: int, **_: Any) -> None:
        self.logger.experiment.log_image(self.logger.run_id, Image.fromarray(picture), f"{tag}/{step:06}.png")

    def add_text(self, tag: str, markdown: str, *_: Any) -> None:
        self.logger.experiment.log_text(self.logger.run_id, markdown, f"{tag}.md")


class WandB(Board):
    """Shows pictures, histograms and texts."""

    def add_image(self, tag: str, picture: Picture, *_: Any, **__: Any) -> None:
        self.logger.log_image(tag, [Image.fromarray(picture)], step=None)

    def add_histogram(self, tag: str, values: Tensor, *_: Any, bins: int) -> None:
        import wandb

        bars = np.histogram(values.numpy(), bins=bins)
        self.logger.experiment.log({tag: wandb.Histogram(np_histogram=bars)}, commit=False)

    def add_text(self, tag: str, markdown: str, *_: Any) -> None:
        self.logger.log_text(tag, columns=["text"], data=[[markdown]])


BOARDS: dict[str, type[Board]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
"""The board of each logger, by the logger's name."""


class _MLflow(MLFlowLogger):
    """A run in MLflow that may be resumed: its points are logged once, and its status is true."""

    _known: dict[str, set[int]] | None = None

    def resume(self, values: Mapping[str, Any]) -> None:
        """A resumed run repeats what it had logged after it saved, bit by bit; MLflow would keep both.

        The parameters that it was started with cannot be changed there; those of `values` that differ become tags.
        """
        self._known = {}
        self.experiment.update_run(self.run_id, status="RUNNING")
        params = self.experiment.get_run(self.run_id).data.params
        for name, value in values.items():
            if params.get(name) != str(value):
                self.experiment.set_tag(self.run_id, f"resumed.{name}", str(value))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._known is not None:
            for name in metrics.keys() - self._known.keys():
                history = self.experiment.get_metric_history(str(self.run_id), name)
                self._known[name] = {point.step for point in history}
            metrics = {name: value for name, value in metrics.items() if step not in self._known[name]}
        if metrics:
            super().log_metrics(metrics, step)

    def finalize(self, status: str = "success") -> None:
        super().finalize("KILLED" if isinstance(sys.exception(), Interrupted) else status)


class _WandB(WandbLogger):
    """A run in W&B that may be resumed: what is logged after the last save, a resumed run will log again."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._held: list[tuple[Mapping[str, Any], int | None]] = []

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._held.append((metrics, step))

    def save(self) -> None:
        held, self._held = self._held, []
        for values, step in held:
            super().log_metrics(values, step)

    def finalize(self, status: str) -> None:
        if status == "success":
            self.save()
        super().finalize(status)


def make(cfg: Config, folder: Path, first_step: int | None) -> Logger | None:
    """The logger of a run; None if `metrics.csv` is all."""
    name = cfg.logger.name
    if name == "csv":
        return None
    if name == "tensorboard":
        return TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=first_step)
    if find_spec(name) is None:
        raise UserError(f"logger={name}: is not installed; pip install 'vggexp[{name}]'", 1)
    path = folder / layout.LOGGER_ID
    known = files.content(path, 200).decode().strip() if path.exists() else None
    try:
        logger: _MLflow | _WandB = _mlflow(cfg, folder, known) if name == "mlflow" else _wandb(cfg, folder, known)
        if known is None:
            files.write_text(path, f"{logger.version}\n")
            logger.log_hyperparams(_compared(cfg))
        elif isinstance(logger, _MLflow):
            logger.resume(_compared(cfg))
        elif cfg.logger.mode == "offline":
            sends = f"wandb sync --id {known} {terminal.argument(folder)}/wandb/offline-run-*"
            terminal.say(f"logger=wandb: offline, each part of a resumed run has a folder of its own; {sends}")
    except Exception as error:
        raise UserError(f"logger={name}: cannot be used: {described(error)}", 1) from error
    return logger


def _mlflow(cfg: Config, folder: Path, known: str | None) -> Any:
    return _MLflow(
        experiment_name=cfg.logger.project or "vggexp",
        run_name=folder.name,
        tracking_uri=cfg.logger.uri or f"sqlite:///{(paths.outputs() / 'mlflow.db').resolve()}",
        artifact_location=None if cfg.logger.uri else (paths.outputs() / "mlflow").resolve().as_uri(),
        run_id=known,
    )


def _wandb(cfg: Config, folder: Path, known: str | None) -> Any:
    import wandb

    settings, name = wandb.Settings(silent=True, console="off"), known or secrets.token_hex(4)
    where: Any = {"project": cfg.logger.project, "save_dir": folder, "offline": cfg.logger.mode == "offline"}
    return _WandB(name=folder.name, id=name, resume="allow", settings=settings, **where)


def conclude(logger: Logger | None, cfg: Config, result: dict[str, Any]) -> None:
    """Logs the final results, so that runs can be compared: in TensorBoard a row of its table of hyperparameters.

    The row's metrics are the scalars that the run has logged under these names.
    """
    final = {name: result[name] for name in RESULTS if result.get(name) is not None}
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.flush()
        # not add_hparams, which would log the metrics once more, in a run of its own
        writer = FileWriter(logger.log_dir)
        for summary in hparams(_compared(cfg), dict.fromkeys(final, 0.0)):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        writer.close()
    elif logger is not None:
        logger.log_metrics({f"final/{name}": value for name, value in final.items()}, step=result["steps"])
        logger.save()


def _compared(cfg: Config) -> dict[str, Any]:
    """The values by which runs are compared, as plain values."""
    leaves = flatten(cfg.values())
    flat = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in leaves.items()}
    return {key: value for key, value in flat.items() if not key.startswith(ASIDE) and value != "None"}
