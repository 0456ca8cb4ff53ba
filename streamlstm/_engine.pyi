from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm._arena import Arena
from streamlstm._head import CompiledHead
from streamlstm._network import Network
from streamlstm.engine import Engine
from streamlstm.errors import InputError

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

class SessionCore:
    engine: Any
    name: str
    handle: int
    epoch: int
    closed: bool
    seq: int
    _closed: bool
    def __init__(self, engine: EngineCore, name: str, row: int, epoch: int) -> None: ...
    def step(self, x: Any) -> Array: ...
    def step_into(self, x: Array, out: Array) -> None: ...
    def run(self, X: Any) -> Array: ...
    def forecast(self, steps: int) -> Array: ...

class Group:
    engine: Engine
    seqs: NDArray[np.int64]
    def __init__(
        self,
        engine: EngineCore,
        sessions: Any = None,
        handles: ArrayLike | None = None,
        epochs: ArrayLike | None = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def numbers(self) -> Array: ...
    def step(self, X: Any) -> Array: ...
    def step_into(self, X: Array, out: Array) -> None: ...
    def refusals(self, X: Any) -> dict[int, InputError]: ...
    def run(self, X: Any) -> Array: ...
    def forecast(self, steps: int) -> Array: ...
