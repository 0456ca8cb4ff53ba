"""Recovery: rows, then the journal's changes behind them, made again as the server made them.

A change whose seq the row has already is passed over, one that does not follow is damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlstm.errors import StoreDamagedError, StoreMismatchError
from streamlstm.service.operations import STEP
from streamlstm.service.server.answers import digest
from streamlstm.service.server.changes import (
    Ended,
    OfOne,
    Opened,
    Owned,
    Ran,
    Record,
    Stepped,
    SteppedTogether,
    as_read,
)
from streamlstm.service.server.checkpoint import Checkpoint
from streamlstm.service.server.journal import Journal
from streamlstm.service.server.sessions import Sessions

Array = npt.NDArray[Any]


def recover(journal: Journal, tables: Sequence[Sessions], checkpoint: Checkpoint) -> int:
    """Bring every session to where its last committed change left it; how many events it took.

    Raises StoreMismatchError when a record was written under another arithmetic class,
    StoreDamagedError when the records don't follow from the rows.
    """
    journal.store.check_names()
    changes = ((number, as_read(written)) for number, written in journal.read())
    ended = {change.session for _, change in changes if isinstance(change, Ended)}
    replay = _Replay(journal, tables, ended)
    journal.replaying = True
    last = 0
    for last, written in journal.read():  # noqa: B007
        replay.apply(as_read(written))
    journal.replaying = False
    journal.pass_id(replay.last_id)
    for sessions in tables:
        sessions.begin_counting()
    journal.appended = last
    checkpoint.finish()
    journal.own_arithmetic()
    journal.store.commit()
    return replay.events


class _GivenUpError(Exception):
    """A change of a session that --accept-loss gave up."""


class _Replay:
    """Makes changes to sessions as the server did."""

    def __init__(self, journal: Journal, tables: Iterable[Sessions], ended: set[int]) -> None:
        self._journal = journal
        self._by_model = {sessions.model_id: sessions for sessions in tables}
        self._ended = ended
        self._places: dict[int, tuple[Sessions, int]] = {}  # by session id
        self._trusted: set[int] = set()
        # After --accept-loss: changes of sessions that were given up have nothing to follow.
        self._lenient = journal.store.incomplete
        self.events = 0
        self.last_id = 0

    def apply(self, change: Record) -> None:
        with suppress(_GivenUpError):
            match change:
                case Opened():
                    self._open(change)
                case Stepped() if len(change.sessions) == 8:
                    self._step_one(change)
                case Stepped() | SteppedTogether():
                    self._step(change)
                case Ended():
                    self.last_id = max(self.last_id, change.session)
                case _:
                    if change.session not in self._ended:
                        self._change(change, *self._place(change.session))

    def _open(self, change: Opened) -> None:
        self.last_id = max(self.last_id, change.session)
        sessions = self._of_model(change.model)
        id = change.session
        if id in self._ended or self._journal.store.get(id) is not None:
            return
        numbers = None if change.state is None else np.frombuffer(change.state, sessions.dtype)
        seat = sessions.roster.open(change.name, change.token, 0.0, numbers, change.epoch)
        sessions.table.ids[seat] = id
        self._places[id] = sessions, seat

    def _change(self, change: Owned | Ran | OfOne, sessions: Sessions, seat: int) -> None:
        match change:
            case Owned():
                table = sessions.table
                table.epochs[seat], table.tokens[seat] = change.epoch, change.token
                table.dirty[seat] = True
            case Ran() if self._is_next(sessions, seat, change.first):
                rows = np.frombuffer(change.X, sessions.dtype).reshape(-1, sessions.inputs)
                sessions.run(seat, rows)
                self.events += len(rows)
            case Ran():
                pass
            case _ if self._is_next(sessions, seat, change.seq):
                sessions.redo(seat, change)

    def _step_one(self, change: Stepped) -> None:
        sessions = self._of_model(change.model)
        id = int.from_bytes(change.sessions, "little")
        if id not in self._ended:
            _, seat = self._place(id)
            if self._is_next(sessions, seat, int.from_bytes(change.seqs, "little")):
                sessions.step(seat, change.X)
                self.events += 1

    def _step(self, change: Stepped | SteppedTogether) -> None:
        sessions = self._of_model(change.model)
        rows = np.frombuffer(change.X, sessions.dtype).reshape(-1, sessions.inputs)
        seqs = np.frombuffer(change.seqs, np.int64)
        new = []
        for index, id in enumerate(np.frombuffer(change.sessions, np.int64).tolist()):
            if id not in self._ended:
                with suppress(_GivenUpError):
                    _, seat = self._place(id)
                    if self._is_next(sessions, seat, int(seqs[index])):
                        new.append((index, seat))
        most = sessions.states.max_resident
        for start in range(0, len(new), most):
            at, seats = (np.array(each) for each in zip(*new[start : start + most], strict=True))
            events = np.ascontiguousarray(rows[at])
            sessions.states.bring(seats)
            if change.digests is None:
                known_by = np.array([digest(STEP, x.tobytes()) for x in events], np.uint32)
            else:
                known_by = np.frombuffer(change.digests, np.uint32)[at]
            sessions.step_many(seats, events, known_by, together=False)
        self.events += len(new)

    def _of_model(self, model: int) -> Sessions:
        if model not in self._by_model:
            raise StoreMismatchError(
                "the journal holds events of a model that is not served now: start once with the "
                "models it was written with, and stop the server with SIGTERM"
            )
        if model not in self._trusted:
            self._journal.check_arithmetic(model)
            self._trusted.add(model)
        return self._by_model[model]

    def _place(self, id: int) -> tuple[Sessions, int]:
        place = self._places.get(id)
        if place is None:
            row = self._journal.store.get(id)
            if row is None:
                if self._lenient:
                    raise _GivenUpError
                raise StoreDamagedError(
                    f"the journal has a change of session {id}, which was never opened"
                )
            sessions = self._of_model(row.model)
            seat = sessions.roster.find(row.name, 0.0)
            assert seat is not None
            place = self._places[id] = sessions, seat
        return place

    def _is_next(self, sessions: Sessions, seat: int, seq: int) -> bool:
        """Whether a change is new to its session; the row may have it."""
        last = sessions.table.row_seqs[seat]
        if seq > last + 1:
            if self._lenient:
                raise _GivenUpError
            raise StoreDamagedError(
                f"session {sessions.table.names[seat]!r} is at change {last}, and the journal goes "
                f"on with {seq}: those between are missing"
            )
        return bool(seq == last + 1)
