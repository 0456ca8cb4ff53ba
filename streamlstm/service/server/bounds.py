"""What one message may ask of a model, so that nobody waits long for another's request."""

from __future__ import annotations

from typing import Final

import numpy as np

from streamlstm.errors import StateMismatchError
from streamlstm.head import AHEAD_MAX, FILL_MAX, Head
from streamlstm.service.contract import ModelLike

RUN_WORK_MAX: Final = 200_000_000
"""Parameters times steps of one run or forecast: some 0.1 s in which nobody else is served."""
FORECAST_BYTES_MAX: Final = 65_536
"""Of an answer to a request of 21 bytes: many of them may wait for a client that does not read."""
HEAD_WORK: Final = 1_500
"""What a head does in a step, in parameters."""
STATE_OVERHEAD_BYTES_MAX: Final = 4096
"""How much longer than its numbers a saved state may be."""


class Bounds:
    """Of one model. run_rows, forecast_steps: as `hello` tells them."""

    def __init__(self, model: ModelLike) -> None:
        self._head = head = model.head
        self._parameters = model.parameters  # a step multiplies and adds about as often
        self.run_rows = max(1, RUN_WORK_MAX // (model.parameters * _steps_max(head)))
        size = model.state_size * np.dtype(model.event_dtype).itemsize
        self._state_bytes = size + STATE_OVERHEAD_BYTES_MAX
        self._name = model.name
        self.forecast_steps = 0
        if head is not None:
            by_bytes = FORECAST_BYTES_MAX // (8 * len(head.quantiles))
            by_work = head.horizon + RUN_WORK_MAX // self._ahead_work(head)
            self.forecast_steps = max(1, min(AHEAD_MAX, by_bytes, by_work))

    def check_state(self, blob: bytes) -> None:
        """Raise StateMismatchError if it is too large for a saved state."""
        if len(blob) > self._state_bytes:
            raise StateMismatchError(
                f"a state of model {self._name!r} has at most {self._state_bytes} bytes, got "
                f"{len(blob)}"
            )

    def forecast_work(self, steps: int) -> int:
        """Of a forecast, unless it is refused: the network makes the steps beyond the horizon."""
        head = self._head
        if head is None or steps > self.forecast_steps:
            return 0
        quantiles = steps * len(head.quantiles)
        return max(0, steps - head.horizon) * self._ahead_work(head) + quantiles

    def _ahead_work(self, head: Head) -> int:
        """Of a step beyond the horizon: the network, the head, its quantiles and their sorting."""
        quantiles = len(head.quantiles)
        sorting = head.horizon * quantiles * (8 + quantiles) // 8
        return self._parameters + HEAD_WORK + sorting


def _steps_max(head: Head | None) -> int:
    """Steps of the network that one event may make: with some heads it fills a gap."""
    if head is None or head.time is None or head.spacing == "gap":
        return 1
    return 1 + FILL_MAX if head.missing in ("hold", "predict") else 1
