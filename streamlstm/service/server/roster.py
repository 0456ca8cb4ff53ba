"""Who has a seat: sessions come (opened, forked, loaded from the store) and end.

Callers have checked who may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy.typing as npt

from streamlstm.errors import CapacityError, StateMismatchError, StoreDamagedError
from streamlstm.service.contract import EngineLike
from streamlstm.service.server.changes import Changes, Ended, Opened, Owned
from streamlstm.service.server.states import States
from streamlstm.store import SessionRow

Array = npt.NDArray[Any]


class Roster:
    """The sessions of one model, `total` of them here or in the store."""

    def __init__(
        self, engine: EngineLike[Any], changes: Changes, states: States, model_id: int
    ) -> None:
        self.engine = engine
        self.model = engine.model
        self.table, self.answers, self.journal = changes.table, changes.answers, changes.journal
        self.changes = changes
        self.states = states
        self.model_id = model_id
        self.total = 0 if self.journal is None else self.journal.store.count(model_id)
        self._unswept: Iterator[tuple[int, str]] | None = None  # stored ones

    def find(self, name: str, now: float) -> int | None:
        """The seat of a session, live or stored; None where there is none of that name."""
        seat = self.table.by_name.get(name)
        if seat is None and self.journal is not None:
            row = self.journal.store.find(self.model_id, name)
            return None if row is None else self.load(row, now)
        return seat

    def open(
        self, name: str, token: int, now: float, numbers: Array | None = None, epoch: int = 0
    ) -> int:
        """A session of a new name, in its initial state or that of `numbers`; nobody's yet.

        Raises CapacityError, StateMismatchError (the store has it under another model).
        """
        journal = self.journal
        replaying = journal is not None and journal.replaying
        if self.total >= self.engine.max_sessions and not replaying:
            raise CapacityError(
                f"all {self.engine.max_sessions} sessions are open; close some, or start the "
                "server with a larger --max-sessions"
            )
        self.check_model(name)
        self.states.make_room(1, ())
        session = self.engine.adopt(name, numbers, 0)
        session_id = 0 if journal is None else journal.new_id()
        seat = self._add(name, session_id, epoch=epoch, token=token, seq=0, now=now)
        self.states.settle(seat, session)
        self.answers.clear(seat, 0)
        self.total += 1
        self.table.dirty[seat] = True
        blob = None if numbers is None else numbers.tobytes()
        begun = int(self.table.epochs[seat])
        self.changes.note(Opened(self.model_id, session_id, name, begun, token, blob))
        return seat

    def check_model(self, name: str) -> None:
        """Raise StateMismatchError if the store has the session under another model."""
        if self.journal is None:
            return
        other = self.journal.store.find_other(self.model.name, name, self.model_id)
        if other is not None:
            raise StateMismatchError(
                f"the store has session {name!r} of model {self.model.name!r} {other[:12]}, this "
                f"server has {self.model.fingerprint[:12]}: serve that model, or remove the "
                "session with `streamlstm sessions DIR NAME --remove`"
            )

    def load(self, row: SessionRow, now: float) -> int:
        """A seat for a stored session."""
        seat = self._add(row.name, row.id, epoch=row.epoch, token=row.token, seq=row.seq, now=now)
        self.states.load(seat, row)
        return seat

    def _add(self, name: str, session_id: int, **facts: Any) -> int:
        if self.table.full:
            self.table.grow(2 * self.table.seats)
            self.answers.grow(self.table.seats)
            self.states.grow()
        return self.table.add(name, session_id, **facts)

    def begin_epoch(self, seat: int, token: int) -> None:
        """A new owner, or the old one come back."""
        table = self.table
        table.begin_epoch(seat, token)
        if self.journal is not None:
            table.dirty[seat] = True
            self.changes.note(Owned(int(table.ids[seat]), int(table.epochs[seat]), token))

    def fork(self, seat: int, name: str, token: int, now: float) -> int:
        """A new session that starts from a copy of this one's state, with seq 0."""
        self.states.at(seat)
        return self.open(name, token, now, self.states.numbers([seat])[0])

    def end(self, seat: int, cause: int) -> None:
        """Close or evict a session."""
        self.states.drop(seat)
        if self.journal is not None:
            session_id = int(self.table.ids[seat])
            self.changes.note(Ended(session_id))
            self.journal.store.delete([session_id])
        self.table.remove(seat, cause)
        self.total -= 1

    def sweep(self, at_most: int) -> int:
        """Evict those of the next stored sessions that have no seat; how many it looked at."""
        assert self.journal is not None
        if self._unswept is None:
            self._unswept = self.journal.store.names(self.model_id)
        seen: list[tuple[int, str]] = []
        with suppress(StoreDamagedError):  # those behind it stay, as `sessions --check` tells
            seen.extend(islice(self._unswept, at_most))
        idle = [session_id for session_id, name in seen if name not in self.table.by_name]
        evicted = self.journal.store.delete(idle)  # some may have been opened and closed since
        self.total -= evicted
        self.states.meters.evicted += evicted
        return len(seen)

    def check(self) -> None:
        """What holds between two turns. Raises AssertionError."""
        assert len(self.table) <= self.total, "more sessions sit here than are counted"
