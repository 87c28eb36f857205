"""Where a run's numbers, pictures and texts go beside `metrics.csv`: the logger that one word chooses."""

import secrets
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import hparams

from vggexp.config.schema import Config, flatten
from vggexp.errors import Pruned, UserError, described
from vggexp.inspection.pictures import Picture
from vggexp.runs import layout, metrics, read
from vggexp.system import files, paths
from vggexp.system.signals import Interrupted


class Board:
    """Takes the calls of torch's SummaryWriter, `add_image` and so on; what a subclass lacks, it does not show."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("add_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return lambda *args, **options: None


class _TensorBoard(Board, TensorBoardLogger):
    """Shows everything, and has no file of hyperparameters, which would be empty: they are in the config."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return getattr(self.experiment, name) if name.startswith("add_") else super().__getattr__(name)

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


class _Lasting(Board):
    """A run elsewhere that may be resumed; a subclass logs nothing twice."""

    def finalize(self, status: str = "success") -> None:
        """Does nothing at the end of training, nor of the test: the run goes on until `close`."""


class _MLflow(_Lasting, MLFlowLogger):
    """Keeps pictures and texts as artifacts; resumed, it repeats, bit by bit, what it had logged after it saved."""

    _known: dict[str, set[int]] | None = None

    def __init__(self, cfg: Config, folder: Path, known: str | None) -> None:
        super().__init__(
            experiment_name=cfg.logger.project or "vggexp",
            run_name=folder.name,
            tracking_uri=cfg.logger.uri or f"sqlite:///{(paths.outputs() / 'mlflow.db').resolve()}",
            artifact_location=None if cfg.logger.uri else (paths.outputs() / "mlflow").resolve().as_uri(),
            run_id=known,
        )

    def add_image(self, tag: str, picture: Picture, step: int, **_: Any) -> None:
        self.experiment.log_image(self.run_id, Image.fromarray(picture), f"{tag}/{step:06}.png")

    def add_text(self, tag: str, markdown: str, *_: Any) -> None:
        self.experiment.log_text(self.run_id, markdown, f"{tag}.md")

    def resume(self, values: Mapping[str, Any]) -> None:
        """The parameters that it was started with cannot be changed; those of `values` that differ become tags."""
        self._known = {}
        self.experiment.update_run(self.run_id, status="RUNNING")
        params = self.experiment.get_run(self.run_id).data.params
        for name, value in values.items():
            if params.get(name) != str(value):
                self.experiment.set_tag(self.run_id, f"resumed.{name}", str(value))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._known is not None:
            for name in metrics.keys() - self._known.keys():
                history = self.experiment.get_metric_history(str(self.run_id), name)
                self._known[name] = {point.step for point in history}
            metrics = {name: value for name, value in metrics.items() if step not in self._known[name]}
        if metrics:
            super().log_metrics(metrics, step)

    @rank_zero_only
    def close(self) -> None:
        error = sys.exception()
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, Interrupted | Pruned) else "FAILED"
        self.experiment.set_terminated(self.run_id, status)


class _WandB(_Lasting, WandbLogger):
    """Shows pictures, histograms and texts; W&B cannot be asked what it has offline, so a file keeps names by step."""

    def __init__(self, cfg: Config, folder: Path, known: str | None) -> None:
        import wandb

        settings, name = wandb.Settings(silent=True, console="off"), known or secrets.token_hex(4)
        where: Any = {"project": cfg.logger.project, "save_dir": folder, "offline": cfg.logger.mode == "offline"}
        super().__init__(name=folder.name, id=name, resume="allow", settings=settings, **where)
        self._logged = logged = folder / layout.LOGGED
        self._known = set(files.content(logged, 2**27).decode().split("\n")) if logged.exists() else set()

    def add_image(self, tag: str, picture: Picture, step: int, **_: Any) -> None:
        self.log_image(tag, [Image.fromarray(picture)], step)

    def add_histogram(self, tag: str, values: Tensor, step: int, *, bins: int) -> None:
        import wandb

        bars = np.histogram(values.numpy(), bins=bins)
        self.log_metrics({tag: wandb.Histogram(np_histogram=bars)}, step)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        self.log_text(tag, columns=["text"], data=[[markdown]], step=step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        new = {f"{step} {name}": name for name in metrics if f"{step} {name}" not in self._known}
        if new:
            super().log_metrics({name: metrics[name] for name in new.values()}, step)
            with open(self._logged, "a", encoding="utf-8", opener=files.no_link) as file:
                file.writelines(f"{line}\n" for line in new)

    @rank_zero_only
    def close(self) -> None:
        self.experiment.finish(int(sys.exception() is not None))


def make(cfg: Config, folder: Path, first_step: int | None) -> Logger | None:
    """The logger of a run; None if `metrics.csv` is all."""
    name = cfg.logger.name
    if name == "csv":
        return None
    if name == "tensorboard":
        return _TensorBoard(folder, name="", version="", default_hp_metric=False, purge_step=first_step)
    if find_spec(name) is None:
        raise UserError(f"logger={name}: is not installed; {paths.install(name)}", 1)
    path = folder / layout.LOGGER_ID
    known = files.content(path, 1000).decode().split()[0] if path.exists() else None
    try:
        logger: _MLflow | _WandB = _MLflow(cfg, folder, known) if name == "mlflow" else _WandB(cfg, folder, known)
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return logger  # only the first process logs
        if known is None:
            where = [logger.experiment.url] if cfg.logger.mode == "online" else []
            files.write_text(path, "".join(f"{line}\n" for line in [logger.version, *where]))
            logger.log_hyperparams(_compared(cfg))
        elif isinstance(logger, _MLflow):
            logger.resume(_compared(cfg))
    except Exception as error:
        raise UserError(f"logger={name}: cannot be used: {described(error)}", 1) from error
    return logger


def conclude(logger: Logger | None, cfg: Config, result: dict[str, Any]) -> None:
    """Logs the final results, so that runs can be compared: in TensorBoard, a row of its table of hyperparameters.

    The row's metrics are scalars of the run; `vggexp tensorboard` says which, because only one of all runs may.
    """
    final = {name: result[name] for name in metrics.RESULTS if result.get(name) is not None}
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.flush()
        # not add_hparams, which would log the metrics once more, in a run of its own
        writer = FileWriter(logger.log_dir)
        _, *session = hparams(_compared(cfg), {})  # type: ignore[no-untyped-call]
        for summary in session:
            writer.add_summary(summary)
        writer.close()
    elif logger is not None:
        logger.log_metrics({f"final/{name}": value for name, value in final.items()}, step=result["steps"])


def close(logger: Logger | None) -> None:
    """Ends a run's entry, which from then on says how the run has ended: by the error that is being handled, if any."""
    if isinstance(logger, _MLflow | _WandB):
        logger.close()


def _compared(cfg: Config) -> dict[str, Any]:
    """The values by which runs are compared, as plain values."""
    leaves = flatten(cfg.values())
    flat = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in leaves.items()}
    return {key: value for key, value in flat.items() if not key.startswith(read.ASIDE) and value != "None"}
