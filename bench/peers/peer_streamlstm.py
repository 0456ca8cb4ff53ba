"""streamlstm: one session, or one group of sessions, stepped into the caller's array."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

import streamlstm as sl
from peers.cells import Array, Cell
from peers.peer import Peer


class StreamLSTM(Peer):
    name = "streamlstm"

    def __init__(self, cell: Cell, threads: int = 1) -> None:
        self.engine = sl.Engine(cell.model, max_sessions=cell.batch, threads=threads)
        sessions = [self.engine.open(f"stream-{k}") for k in range(cell.batch)]
        self.one = cell.batch == 1
        self.step_into = (sessions[0] if self.one else self.engine.group(sessions)).step_into
        shape = (cell.units,) if self.one else (cell.batch, cell.units)
        self.out = np.empty(shape, np.float32)

    def event(self, x: Array) -> Array:
        return x[0] if self.one else x

    def loop(self, events: Iterable[Array]) -> Array:
        step_into, out = self.step_into, self.out
        for x in events:
            step_into(x, out)
        return out


PEERS = (StreamLSTM,)
