"""Where the time of a few training steps goes: a table on the terminal, a trace for chrome://tracing or Perfetto."""

from pathlib import Path
from typing import Any

import lightning as L
from torch import profiler

WAIT, STEPS = 2, 10
TOP = 15


class Profile(L.Callback):
    """Watches STEPS steps after the first WAIT ones, in the first process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._watch: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero and trainer.global_step == WAIT and self._watch is None:
            self._watch = profiler.profile(record_shapes=True, activities=list(profiler.supported_activities()))  # type: ignore[no-untyped-call]
            self._watch.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if self._watch and (trainer.global_step == WAIT + STEPS or trainer.is_last_batch or trainer.should_stop):
            self._watch.__exit__(None, None, None)
            self.folder.mkdir(exist_ok=True)
            self._watch.export_chrome_trace(str(self.folder / "trace.json"))
            by = f"self_{'cuda' if pl_module.device.type == 'cuda' else 'cpu'}_time_total"
            print(self._watch.key_averages().table(sort_by=by, row_limit=TOP, max_name_column_width=40))
            self._watch = False
