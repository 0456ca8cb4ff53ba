"""What an operation does, one function each: from a request to the values of its reply.

Steps have a file of their own (stepping.py). Where a request may not be done, its function raises
the StreamLSTMError that says why, and has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from streamlstm.errors import (
    SessionExistsError,
    SessionFencedError,
    SessionUnknownError,
    ShapeError,
)
from streamlstm.service import column, operations
from streamlstm.service.operations import Operation
from streamlstm.service.server import stepping
from streamlstm.service.server.answers import WrongSeqError, digest
from streamlstm.service.server.changes import OF_ONE
from streamlstm.service.server.connections import Connections, Peer
from streamlstm.service.server.outcomes import Outcomes
from streamlstm.service.server.requests import Request, entry
from streamlstm.service.server.sessions import Sessions
from streamlstm.service.server.table import CLOSED, FENCED

Values: TypeAlias = tuple[object, ...]
Act: TypeAlias = Callable[["Surroundings", Request], Values]


class Surroundings:
    """What acts need beside the request."""

    def __init__(
        self,
        outcomes: Outcomes,
        connections: Connections,
        read_state: Callable[[bytes], Any],
    ) -> None:
        self.outcomes = outcomes
        self.connections = connections
        self.read_state = read_state

    def hand_over(self, sessions: Sessions, seat: int, peer: Peer) -> None:
        """A session is this peer's from now on; the owner it had is told."""
        if sessions.table.peers[seat] is peer:
            return
        before = entry(sessions, seat)
        old = sessions.table.disown(seat, FENCED)
        if old is not None:
            self.outcomes.notify(old, "fenced", [before])
            self.connections.forget_if_done(old)
        sessions.table.own(seat, peer, self.outcomes.served_s)


# --- changes --------------------------------------------------------------------------------------


def _steps(around: Surroundings, request: Request) -> Values:
    return stepping.steps(around.outcomes, request)


def _run(around: Surroundings, request: Request) -> Values:
    sessions, seat = request.sessions, request.seat
    fields: operations.Run = request.fields
    X = column.matrix(fields.payload, sessions.dtype, sessions.inputs)
    most = sessions.bounds.run_rows
    if len(X) > most:
        raise ShapeError(
            f"a run has {len(X)} events; model {sessions.name!r} takes {most} in one message "
            "(run_rows): send it in pieces"
        )
    last, first = sessions.table.row_seqs[seat], fields.seq
    if not len(X):
        return last, b""
    if first is not None and first != last + 1:
        known_by = digest(operations.RUN, X.tobytes())
        Y = sessions.answers.find_run(seat, first, len(X), known_by, last)
        return first + len(X) - 1, Y
    around.outcomes.check_deadline(fields.deadline)
    Y = sessions.run(seat, X)
    return sessions.table.row_seqs[seat], Y


def _change(around: Surroundings, request: Request) -> Values:
    """Any change of one session that takes one number."""
    fields, sessions = request.fields, request.sessions
    return (sessions.change(request.seat, request.op, fields, around.read_state),)


# --- looks ----------------------------------------------------------------------------------------


def _state(_: Surroundings, request: Request) -> Values:
    blob = request.sessions.state(request.seat).to_bytes()
    return request.sessions.table.row_seqs[request.seat], blob


def _forecast(_: Surroundings, request: Request) -> Values:
    forecast = request.sessions.forecast(request.seat, request.fields.steps).tobytes()
    return request.sessions.table.row_seqs[request.seat], forecast


def _counters(_: Surroundings, request: Request) -> Values:
    counters = request.sessions.counters(request.seat)
    return request.sessions.table.row_seqs[request.seat], counters


# --- opening and closing --------------------------------------------------------------------------


def _open(around: Surroundings, request: Request) -> Values:
    sessions: Sessions = request.sessions
    fields: operations.Open = request.fields
    name, token, now = fields.name, fields.token, around.outcomes.served_s
    seat = sessions.roster.find(name, now)
    if seat is None:
        if fields.resume and fields.epoch is not None:
            sessions.roster.check_model(name)
            raise _UnknownNameError(name)
        seat = sessions.roster.open(name, token or 0, now)
        sessions.table.own(seat, request.peer, now)
    elif token and sessions.table.tokens[seat] == token:
        around.hand_over(sessions, seat, request.peer)  # the same request again
    elif not fields.resume:
        raise _exists(sessions, name)
    elif fields.epoch is None or sessions.table.row_epochs[seat] == fields.epoch:
        around.hand_over(sessions, seat, request.peer)
        sessions.roster.begin_epoch(seat, token or 0)
    else:
        raise SessionFencedError(
            f"session {name!r} was opened elsewhere since epoch {fields.epoch}: open it with "
            "resume and no epoch to take it back"
        )
    return _opened(sessions, seat)


def _fork(around: Surroundings, request: Request) -> Values:
    sessions: Sessions = request.sessions
    fields: operations.Fork = request.fields
    name, token, now = fields.name, fields.token, around.outcomes.served_s
    seat = sessions.roster.find(name, now)
    if seat is None:
        last = sessions.table.row_seqs[request.seat]
        if fields.seq is not None and fields.seq != last:
            raise WrongSeqError(fields.seq, last + 1)
        seat = sessions.roster.fork(request.seat, name, token or 0, now)
        sessions.table.own(seat, request.peer, now)
    elif token and sessions.table.tokens[seat] == token:
        around.hand_over(sessions, seat, request.peer)
    else:
        raise _exists(sessions, name)
    return _opened(sessions, seat)


def _opened(sessions: Sessions, seat: int) -> Values:
    _, handle, epoch, seq = entry(sessions, seat)
    return handle, epoch, seq, sessions.model.name, sessions.model.fingerprint


def _close(_: Surroundings, request: Request) -> Values:
    sessions, seat = request.sessions, request.seat
    seq = sessions.table.row_seqs[seat]
    sessions.roster.end(seat, CLOSED)
    return (seq,)


class _UnknownNameError(SessionUnknownError):
    """Keeps the last durable seq for the reply's details: there is none left."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no session {name!r} is here or in the store, its state is gone: open it anew and "
            "feed it from event 1"
        )
        self.details = {"seq": 0}


def _exists(sessions: Sessions, name: str) -> SessionExistsError:
    return SessionExistsError(
        f"session {name!r} of model {sessions.name!r} is open already: "
        "choose another name, or open it with resume to take it over"
    )


ACTS: Final[dict[Operation, Act]] = {
    operations.OPEN: _open,
    operations.FORK: _fork,
    operations.STEPS: _steps,
    operations.RUN: _run,
    operations.STATE: _state,
    operations.FORECAST: _forecast,
    operations.COUNTERS: _counters,
    operations.CLOSE: _close,
    **dict.fromkeys(OF_ONE, _change),
}
"""All but `step`, which is done in micro-batches, and those that ask the server of itself."""
