"""The last state of a session that was finite: its row, and the journal behind it replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlstm.errors import NonFiniteError
from streamlstm.service.contract import EngineLike, SessionLike
from streamlstm.service.server.changes import (
    Ended,
    Opened,
    Owned,
    Ran,
    Record,
    Stepped,
    SteppedTogether,
    as_read,
)
from streamlstm.service.server.journal import Journal

Array = npt.NDArray[Any]


def state_of(engine: EngineLike[Any], session: SessionLike[Any]) -> Array:
    """The state [state_size] of an engine's session."""
    row, epoch = (np.array([n], np.uint32) for n in (session.row, session.epoch))
    numbers: Array = engine.group_by_row(row, epoch).numbers()[0]
    return numbers


def last_good(
    engine: EngineLike[Any], journal: Journal, names: Mapping[int, str]
) -> dict[int, Array | None]:
    """The last finite state of each session, by id; None where there is none.

    names: of the sessions, by id; no session of such a name may be in the engine.
    Raises StoreDamagedError.
    """
    replays = {id: _Replay(engine, journal, id, name) for id, name in names.items()}
    try:
        for _, written in journal.read():
            change = as_read(written)
            if isinstance(change, (Stepped, SteppedTogether)):
                for index, id in enumerate(np.frombuffer(change.sessions, np.int64).tolist()):
                    if id in replays:
                        replays[id].step(change, index)
            elif change.session in replays:
                replays[change.session].apply(change)
    finally:
        for each in replays.values():
            each.session.close()
    return {id: each.good for id, each in replays.items()}


class _Replay:
    """One session replayed by itself, as far as its state is finite."""

    session: SessionLike[Any]

    def __init__(self, engine: EngineLike[Any], journal: Journal, id: int, name: str) -> None:
        row = journal.store.get(id)
        self._engine = engine
        self._dtype = np.dtype(engine.model.event_dtype)
        self._inputs = len(engine.model.inputs)
        self._goes_on = True
        self._seq = 0 if row is None else row.seq
        self._name = name
        self.good: Array | None = None
        self.put(None if row is None else row.state or None)

    def step(self, change: Stepped | SteppedTogether, index: int) -> None:
        """The event of the record at that index."""
        seq = int(np.frombuffer(change.seqs, np.int64)[index])
        x = self._rows(change.X)[index]
        self._move(seq, 1, lambda: self.session.step(x))

    def apply(self, change: Record) -> None:
        """Any other change of this session."""
        match change:
            case Opened() if not self._seq:
                self.put(change.state)
            case Ran():
                rows = self._rows(change.X)
                self._move(change.first, len(rows), lambda: self.session.run(rows))
            case Opened() | Owned() | Ended() | Stepped() | SteppedTogether():
                pass
            case _:
                self._move(change.seq, 1, lambda: change.redo(self))

    def _rows(self, X: bytes) -> Array:
        return np.frombuffer(X, self._dtype).reshape(-1, self._inputs)

    def put(self, state: bytes | None) -> None:
        if self.good is not None:
            self.session.close()
        numbers = None if state is None else np.frombuffer(state, self._dtype)
        self.session = self._engine.adopt(self._name, numbers, self._seq)
        self.good = self.numbers()

    def numbers(self) -> Array:
        return state_of(self._engine, self.session)

    def _move(self, first: int, count: int, change: Callable[[], object]) -> None:
        if not self._goes_on or first != self._seq + 1:
            return
        with suppress(NonFiniteError):
            change()
        numbers = self.numbers()
        self._goes_on = bool(np.isfinite(numbers).all())
        if self._goes_on:
            self.good = numbers
            self._seq += count
