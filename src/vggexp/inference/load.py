"""A finished network: which one is meant, and loaded without trusting what its file says."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.runs import layout, manifest
from vggexp.runs import manifest as record
from vggexp.system import paths

if TYPE_CHECKING:
    from vggexp.training.classifier import Classifier

OVERRIDABLE = ("data.", "trainer.", "allowed_packages")
"""What may differ between training a network and using it: where the data lie and what it runs on."""


@dataclass(frozen=True)
class Trained:
    """What a run has made.

    Args:
        path: of the checkpoint.
        cfg: of the run that wrote it.
        classes: names, by label.
        module: in evaluation mode, on the CPU.
        result: what the run stored, where the checkpoint is the one that it tested.
    """

    path: Path
    cfg: Config
    classes: tuple[str, ...]
    module: "Classifier"
    result: dict[str, Any] | None

    @property
    def folder(self) -> Path:
        """Of the run, or where there is none, of the checkpoint."""
        parent = self.path.parent
        return parent.parent if (parent.parent / layout.RESULT).exists() else parent


def find(run: str, outputs: Path | None = None) -> Path:
    """The checkpoint that `run` means: a checkpoint file, the one that a run tested, or the `last` run's.

    Raises:
        UserError: there is none, or the run has not finished.
    """
    path = Path(run).expanduser()
    if run == "last" and not path.exists():
        path = record.latest(outputs or paths.outputs(), "run=last")
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"run={run}: no such folder or file; name a run folder, a checkpoint file, or last")
    if not (path / layout.RESULT).is_file():
        raise UserError(f"run={path}: holds no {layout.RESULT}, so it is no run folder; name one, or a checkpoint file")
    result, found = manifest.load(path, f"run={path}"), _tested(path)
    if result["status"] != "completed":
        reason = f" ({result['reason']})" if result.get("reason") else ""
        if result["status"] == "running" and not manifest.is_locked(path):
            reason = f" (but no process works on it: it was killed; to go on, train with resume={path})"
        remedy = f"; to use what it has so far, run={found}" if found.exists() else ""
        raise UserError(f"run={path}: did not finish: its status is {result['status']}{reason}{remedy}")
    if not found.exists():
        raise UserError(f"run={path}: holds no checkpoint; name another run")
    return found


def load(run: str, overrides: dict[str, Any]) -> Trained:
    """The network that `run` means.

    A checkpoint names the classes that it is built from; they are held against the allowed packages, of which those
    beyond the project's own count only if the caller names them.

    Raises:
        UserError: it cannot be found or read, is not of this project, or is damaged.
    """
    path = find(run)
    from vggexp import checkpoint  # torch and Lightning: only now, when the place is known

    place = f"run={path}"
    content = checkpoint.read(path, "run")
    known = content.get("hyper_parameters")
    if not isinstance(known, dict) or not isinstance(known.get("config"), dict) or "state_dict" not in content:
        raise UserError(
            f"{place}: is no checkpoint of a run; to start from bare weights, train with model.weights={path}"
        )
    config = {**known["config"], "allowed_packages": []}
    if isinstance(config.get("trainer"), dict) and config["trainer"].get("precision") == "auto":
        config["trainer"] = {**config["trainer"], "precision": content.get("precision", "auto")}
    try:
        cfg = compose.validate(OmegaConf.to_container(OmegaConf.merge(config, overrides)), Config)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    parent = path.parent.parent
    result = manifest.load(parent, place) if (parent / layout.RESULT).is_file() else None
    if result is not None:
        _same_network(place, known["config"]["model"], result["config"]["model"])

    import torch

    from vggexp.training.classifier import Classifier

    try:
        with torch.device("meta"):  # takes no memory, however large the file says that its network is
            Classifier(cfg.model_dump(by_alias=True)).load_state_dict(content["state_dict"], assign=True)
        module = Classifier(cfg.model_dump(by_alias=True), known.get("classes", ()))
        module.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        first = [line.strip() for line in str(error).splitlines()[:2]]
        raise UserError(f"{place}: its weights are not of the network that it names: {' '.join(first)}") from error
    tested = result is not None and result["status"] == "completed" and path.resolve() == _tested(parent).resolve()
    return Trained(path, cfg, tuple(known.get("classes", ())), module.eval(), result if tested else None)


def _tested(folder: Path) -> Path:
    best = folder / "checkpoints" / "best.ckpt"
    return best if best.exists() else folder / "checkpoints" / "last.ckpt"


def _same_network(place: str, checkpoint: dict[str, Any], run: dict[str, Any]) -> None:
    for key in {**run, **checkpoint}:
        if checkpoint.get(key) != run.get(key):
            raise UserError(
                f"{place}: is of another network than its run: model.{key}={checkpoint.get(key)} "
                f"in the checkpoint, {run.get(key)} in {layout.RESULT}"
            )
