"""Where a run's numbers and pictures go, beside `metrics.csv`: the logger that one word chooses."""

import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.tensorboard.summary import hparams

from vggexp.config.schema import Config, flatten
from vggexp.errors import UserError
from vggexp.system import paths

RUN_ID = "logger_id.txt"
"""In a run's folder: by what name the logger knows the run, so that it goes on there."""

ASIDE = (
    *("allowed_packages", "checkpoint.", "inspect.", "logger."),
    *("data._target_", "data.root", "data.cache_dir", "data.num_workers", "data.test_each_epoch"),
    *("trainer.benchmark", "trainer.detect_anomaly", "trainer.enable_progress_bar", "trainer.log_every_n_steps"),
)
"""What runs are not compared by, though it is in their configs."""

RESULTS = ("test/acc", "val/acc", "test/loss", "val/loss", "images_per_second", "train/acc", "train/loss")
"""In the order of interest: TensorBoard's table shows five before it is asked for more."""

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}


def make(cfg: Config, folder: Path, first_step: int | None) -> Logger | None:
    """
    Args:
        folder: of the run.
        first_step: that a run which goes on will log; None of a new one.

    Raises:
        UserError: its package is not installed, or its server cannot be reached.
    """
    spec = cfg.logger
    logger: Logger
    if spec.name == "csv":
        return None
    if spec.name == "tensorboard":
        purge: Any = {} if first_step is None else {"purge_step": first_step}
        return TensorBoardLogger(folder, name="", version="", default_hp_metric=False, **purge)
    if find_spec(PACKAGES[spec.name]) is None:
        raise UserError(f"logger={spec.name}: is not installed; pip install 'vggexp[{spec.name}]'", 1)
    known = (folder / RUN_ID).read_text().strip() if (folder / RUN_ID).exists() else None
    try:
        logger = _mlflow(cfg, folder, known) if spec.name == "mlflow" else _wandb(cfg, folder, known)
        if known is None:
            (folder / RUN_ID).write_text(f"{logger.version}\n")
            logger.log_hyperparams(_flat(cfg))
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f"logger={spec.name}: cannot be used: {type(error).__name__}: {text}", 1) from error
    return logger


def _mlflow(cfg: Config, folder: Path, known: str | None) -> Any:
    uri = cfg.logger.uri or f"sqlite:///{(paths.outputs() / 'mlflow.db').resolve()}"
    return MLFlowLogger(
        experiment_name=cfg.logger.project or "vggexp",
        run_name=folder.name,
        tracking_uri=uri,
        artifact_location=None if cfg.logger.uri else (paths.outputs() / "mlflow").resolve().as_uri(),
        run_id=known,
    )


def _wandb(cfg: Config, folder: Path, known: str | None) -> Any:
    import wandb

    return WandbLogger(
        project=cfg.logger.project,
        name=folder.name,
        save_dir=folder,
        offline=cfg.logger.mode == "offline",
        id=known or secrets.token_hex(4),
        resume="allow",
        settings=wandb.Settings(silent=True, console="off"),
    )


def conclude(logger: Logger | None, cfg: Config, result: dict[str, Any]) -> None:
    """Tells the final results, so that runs can be compared: in TensorBoard a row of its table of hyperparameters.

    Its metrics are the scalars that the run has logged under these names.
    """
    metrics = {name: result[name] for name in RESULTS if result.get(name) is not None}
    if isinstance(logger, TensorBoardLogger):
        for summary in hparams(_flat(cfg), dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call]
            logger.experiment._get_file_writer().add_summary(summary)
        logger.experiment.flush()
    elif logger is not None:
        logger.log_metrics({f"final/{name}": value for name, value in metrics.items()})


def _flat(cfg: Config) -> dict[str, Any]:
    """What runs are compared by, as plain values."""
    leaves = flatten(cfg.model_dump(by_alias=True))
    flat = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in leaves.items()}
    return {key: value for key, value in flat.items() if not key.startswith(ASIDE) and value != "None"}
