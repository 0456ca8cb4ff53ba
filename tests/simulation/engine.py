"""The simulated engine: a cheap fold that forgets nothing, and where it can be made to die.

A session's state is a pair (a, b) of integers; event (x, y) makes it ``31 * (a, b) + (x, y)``
modulo a prime, and the state is the output. Each step is a bijection of the state, so an event
that is lost, doubled or moved shows in every later output. All numbers are exact in float32.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from service.fake_engine import Engine, Model, Session, _finite
from streamlstm.errors import StoreError
from streamlstm.store import Store

PRIME = 65521
FACTOR = 31
POISON = 7777  # as x of an event: the state turns infinite

CRASH_PLACES = ("idle", "engine", "append", "commit", "replies", "put", "trim", "delete")
"""Between two events; before a step; after it, with nothing in the store; with all written and
nothing committed; committed and nothing told; before rows, the journal's trim and a deletion."""

Pair = tuple[int, int]


def fold(state: Pair, x: Pair) -> Pair:
    """One event, as the oracle computes it."""
    return (FACTOR * state[0] + x[0]) % PRIME, (FACTOR * state[1] + x[1]) % PRIME


def blob_of(state: Pair) -> bytes:
    """The engine's saved state, as fake_engine.State has it."""
    return b"fold" + np.array(state, np.float32).tobytes()


class CrashError(BaseException):
    """The server's process ends here. No `except Exception` of the server stops it."""


class Fuse:
    """Ends the server at its n-th visit of a place; `full` makes the store fail there instead."""

    def __init__(self) -> None:
        self.place = ""
        self.left = 0
        self.full = False

    def arm(self, place: str, left: int, full: bool = False) -> None:
        self.place, self.left, self.full = place, left, full

    def burn(self, place: str) -> None:
        if place != self.place:
            return
        self.left -= 1
        if self.left <= 0:
            self.place = ""
            if self.full:
                raise StoreError("the disk is full")
            raise CrashError(place)


class FoldEngine(Engine):
    def __init__(self, fuse: Fuse, max_sessions: int) -> None:
        super().__init__(Model(), max_sessions)
        self.fuse = fuse

    def step(self, sessions: list[Session], X: Any) -> Any:
        self.fuse.burn("engine")
        for session in sessions:
            session._live()
        _finite(X)
        rows = [session.row for session in sessions]
        assert len(set(rows)) == len(rows)
        # In Python's floats: so few numbers are slower as arrays. An infinite one turns into NaN.
        outputs = []
        for row, (x, y) in zip(rows, X.tolist(), strict=True):
            a, b = self.sums[row].tolist()
            if x == POISON:
                outputs.append((inf, inf))
            else:
                outputs.append(((a * FACTOR + x) % PRIME, (b * FACTOR + y) % PRIME))
        Y = np.array(outputs, np.float32)
        for row, y in zip(rows, Y, strict=True):
            self.sums[row] = y
            self.seqs[row] += 1
        return Y


class FusedStore(Store):
    """The real store, over a connection that outlives the server; it can die at every write."""

    def __init__(
        self, connection: sqlite3.Connection, fuse: Fuse, committed: Callable[[], None] | None
    ) -> None:
        self.fuse = fuse
        self.committed = committed
        super().__init__(connection, "async")

    def append(self, record: bytes) -> int:
        self.fuse.burn("append")  # the step was done, nothing is in the store
        return super().append(record)

    def put(self, rows: Any) -> None:
        rows = list(rows)
        if rows:
            self.fuse.burn("put")
        super().put(rows)

    def trim(self, through: int) -> None:
        self.fuse.burn("trim")
        super().trim(through)

    def delete(self, ids: Any) -> int:
        self.fuse.burn("delete")
        return super().delete(ids)

    def commit(self) -> None:
        writing = self._connection.in_transaction
        if writing:
            self.fuse.burn("commit")  # all is written, and torn
        super().commit()
        if writing and self.committed is not None:
            self.committed()
