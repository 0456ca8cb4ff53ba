"""Steps: the events of a turn, of each model in one micro-batch.

Who can't take part is refused by himself, so that nobody's event depends on another's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamlstm.errors import CapacityError, InputError, ShapeError, StoreDamagedError
from streamlstm.service import column
from streamlstm.service.operations import STEP, Steps
from streamlstm.service.server.answers import (
    QuarantinedError,
    WrongSeqError,
    digest,
    digests,
)
from streamlstm.service.server.outcomes import Outcomes
from streamlstm.service.server.requests import Bulk, Request, entry
from streamlstm.service.server.sessions import Sessions

Array = npt.NDArray[Any]


def step_all(outcomes: Outcomes, requests: list[Request]) -> None:
    """Every `step` of a turn, at most one of a session."""
    batches: dict[Sessions, list[Request]] = {}
    for request in requests:
        batches.setdefault(request.sessions, []).append(request)
    for sessions, batch in batches.items():
        if len(batch) == 1:
            step_one(outcomes, batch[0])
        else:
            _step_batch(outcomes, sessions, batch)


def step_one(outcomes: Outcomes, request: Request) -> None:
    try:
        x = admitted(outcomes, request)
        if x is not None:
            sessions, seat = request.sessions, request.seat
            y = bytes(sessions.step(seat, x))
            outcomes.done(request, (sessions.table.row_seqs[seat], y))
    except Exception as error:
        outcomes.failed(request, error)


def admitted(outcomes: Outcomes, request: Request) -> bytes | None:
    """A step's input as bytes, or None when it was a repeat and is answered."""
    sessions: Sessions = request.sessions
    seat, fields = request.seat, request.fields
    table = sessions.table
    table.check_owner(seat, fields.epoch, request.peer)
    x = fields.payload
    if type(x) is not bytes or len(x) != sessions.event_size:
        x = column.event_bytes(x, sessions.dtype, sessions.inputs)
    last, seq = table.row_seqs[seat], fields.seq
    if seq is not None and seq != last + 1:
        y = sessions.answers.find(seat, seq, digest(STEP, x), last)
        outcomes.done(request, (seq, y))
        return None
    if fields.deadline is not None:
        outcomes.check_deadline(fields.deadline)
    return x


def _step_batch(outcomes: Outcomes, sessions: Sessions, batch: list[Request]) -> None:
    good: list[Request] = []
    events: list[bytes] = []
    for request in batch:
        try:
            x = admitted(outcomes, request)
            if x is not None and request.seat in sessions.states.held:
                raise QuarantinedError(sessions.table.row_seqs[request.seat])
        except Exception as error:
            outcomes.failed(request, error)
        else:
            if x is not None:
                good.append(request)
                events.append(x)
    if good:
        _step_events(outcomes, sessions, good, events)


def _step_events(
    outcomes: Outcomes, sessions: Sessions, good: list[Request], events: list[bytes]
) -> None:
    seats = np.array([request.seat for request in good])
    X = np.frombuffer(b"".join(events), sessions.dtype).reshape(len(good), -1)
    known_by = np.array([digest(STEP, x) for x in events], np.uint32)
    try:
        sessions.states.bring(seats)
        seqs, Y = sessions.step_many(seats, X, known_by, together=False)
    except (CapacityError, StoreDamagedError):  # more than may be resident, or one is lost
        for request in good:
            step_one(outcomes, request)
        return
    except InputError:
        _step_apart(outcomes, sessions, good, events, X)
        return
    except Exception as error:
        for request in good:
            outcomes.failed(request, error)
        return
    held = sessions.states.held
    for request, seq, y in zip(good, seqs.tolist(), Y, strict=True):
        if request.seat in held:
            outcomes.failed(request, QuarantinedError(seq))
        else:
            outcomes.done(request, (seq, y.tobytes()))


def _step_apart(
    outcomes: Outcomes, sessions: Sessions, batch: list[Request], events: list[bytes], X: Array
) -> None:
    """A refused batch again: who is refused by himself, the others together."""
    try:
        seats = np.array([request.seat for request in batch])
        refused = sessions.refused(seats, X) or range(len(batch))
    except Exception as error:
        for request in batch:
            outcomes.failed(request, error)
        return
    for k in refused:
        step_one(outcomes, batch[k])
    rest = sorted(set(range(len(batch))).difference(refused))
    if rest:
        _step_events(outcomes, sessions, [batch[k] for k in rest], [events[k] for k in rest])


# --- steps of many sessions in one message --------------------------------------------------------


def steps(outcomes: Outcomes, request: Request) -> tuple[object, ...]:
    """The values of its reply. Raises StreamLSTMError."""
    assert request.bulk is not None
    bulk: Bulk = request.bulk
    fields: Steps = request.fields
    sessions, seats = bulk.sessions, bulk.seats
    table, payload = sessions.table, fields.payload
    X = column.matrix(payload, sessions.dtype, sessions.inputs)
    if len(X) != len(seats):
        raise ShapeError(f"steps for {len(seats)} sessions needs as many events, got {len(X)}")
    if bulk.version != table.version:  # somebody took one over since, perhaps
        table.check_owners(seats, bulk.epochs, request.peer)
    known_by = digests(payload if isinstance(payload, bytes) else X.tobytes(), len(seats))
    if fields.seqs is not None:
        given = column.integers(fields.seqs, "<i8", "seqs")
        if given.shape != seats.shape:
            raise ShapeError(f"steps for {len(seats)} sessions needs as many seqs")
        lasts = table.seqs[seats]
        if not np.array_equal(given, lasts + 1):
            return _steps_again(bulk, given, lasts, known_by)
    outcomes.check_deadline(fields.deadline)
    if bulk.version != table.version:
        sessions.states.bring(seats)
        bulk.group = sessions.states.group(seats)
        bulk.version = table.version
    seqs, Y = sessions.step_many(seats, X, known_by, together=True, group=bulk.group)
    if table.version != bulk.version:
        held = [seat for seat in seats.tolist() if seat in sessions.states.held]
        outcomes.notify(request.peer, "quarantined", [entry(sessions, seat) for seat in held])
    return seqs.tobytes(), Y.tobytes()


def _steps_again(bulk: Bulk, given: Array, lasts: Array, known_by: Array) -> tuple[object, ...]:
    """Answer a repeat of `steps`; refuse what is neither all new nor all known."""
    if (given > lasts).any():
        index = int(np.argmax(given != lasts + 1))
        raise WrongSeqError(int(given[index]), int(lasts[index]) + 1, index)
    Y = bulk.sessions.answers.find_many(bulk.seats, given, known_by, lasts)
    return given.tobytes(), Y.tobytes()
