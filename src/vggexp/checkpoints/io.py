"""How Lightning saves and finds the checkpoints of a run: each is written whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import CheckpointIO

from vggexp.checkpoints import file as checkpoint
from vggexp.errors import NON_FINITE, UserError
from vggexp.system.files import replace, replacing
from vggexp.system.terminal import argument, say


class CheckpointFiles(CheckpointIO):
    """Writes and reads the checkpoints of Lightning's Trainer.

    A new file is written beside the old one and read again; only then does it take the old one's name, and the old
    one the name that `rotate` gives for it.
    """

    def __init__(self, rotate: Mapping[str, str]) -> None:
        self.rotate = rotate

    def save_checkpoint(self, content: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Refuses weights that are not finite; whatever goes wrong, the files before it are kept."""
        path = Path(path)
        for name, weight in [*content["state_dict"].items(), *content.get("current_model_state", {}).items()]:
            if weight.is_floating_point() and not bool(weight.isfinite().all()):
                message = "holds values that are not finite, so it is not saved; try a smaller optimizer.lr"
                raise UserError(f"{name}: {message}", NON_FINITE)
        try:
            path.parent.mkdir(exist_ok=True)  # not its parents: a run folder that was removed does not come back
            for abandoned in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
                abandoned.unlink()
            with replacing(path) as temporary:
                checkpoint.write(content, temporary)
                if path.name in self.rotate and path.exists():
                    replace(path, path.with_name(self.rotate[path.name]))
        except OSError as error:
            again = argument(path.parent.parent, "resume")
            advice = f"the checkpoints saved before are intact: make room, then {again}"
            raise UserError(f"{path}: cannot be written: {error.strerror or error}; {advice}", 1) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a file onto the CPU; nothing that it holds is ever run, whatever `weights_only` says."""
        content = checkpoint.read(Path(path), "checkpoint")
        for weights in (content["state_dict"], content.get("current_model_state", {})):
            checkpoint.check_finite(weights, f"checkpoint={path}")
        return content

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def newest(paths: Sequence[Path], run: Path) -> Path | None:
    """The first intact file of `paths`, the newest first, from which `run` resumes; None if none of them exists.

    A damaged one is named and set aside; if all are damaged, the run cannot be resumed.
    """
    paths = [path for path in paths if path.exists()]
    for n, path in enumerate(paths):
        if (problem := checkpoint.damage(path)) is None:
            for other in paths[:n]:
                replace(other, other.with_suffix(".damaged"))  # else the next save would rotate it over the good one
            return path
        if path != paths[-1]:
            say(f"{path}: {problem}; the checkpoint before it is used")
    if paths:
        names = " and ".join(path.name for path in paths)
        raise UserError(f"resume={run}: {names} cannot be read; train again in a new folder", 1)
    return None
