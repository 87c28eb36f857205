"""Says when training really begins or goes on: nothing is left to refuse by then."""

from collections.abc import Callable
from typing import Any

import lightning as L


class Start(L.Callback):
    """Calls a function once, before the first step."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_train_batch_start(self, *_: Any) -> None:
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()
