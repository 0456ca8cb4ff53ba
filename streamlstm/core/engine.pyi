from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from streamlstm.core.arena import Arena
from streamlstm.core.head import CompiledHead
from streamlstm.core.network import Network

Array = NDArray[Any]

class EngineCore:
    network: Network
    arena: Arena
    dtype: np.dtype[Any]
    closed: bool
    state_bytes: int
    forked: bool
    largest_event: Array
    inputs: int
    outputs: int
    state_size: int
    def __new__(
        cls,
        network: Network,
        max_sessions: int,
        threads: int,
        largest_event: Array,
        vocabulary: int,
        head: CompiledHead | None = None,
    ) -> Self: ...
    def count_refused(self) -> None: ...
    def _totals(self) -> dict[str, int]: ...
    def _ensure_usable(self) -> None: ...
    def _open_row(self) -> tuple[int, int] | None: ...
    def _free_row(self, row: int, epoch: int) -> bool: ...
    def _next_epoch(self, row: int, epoch: int) -> int | None: ...
    def _read_row(self, row: int, epoch: int) -> tuple[Array, int] | None: ...
    def _write_row(
        self, row: int, epoch: int, numbers: Array | None = None, seq: int = -1
    ) -> bool: ...
    def _close_core(self) -> None: ...
