"""A shard: sessions of one or more models, and what is done to them, turn by turn.

`submit` checks who may do a request and queues it (rounds.py); `turn` takes the next of the queue,
does it, commits it (journal.py) and gives the outcomes: what is told is committed. Nothing here
knows of frames, or of the clock beyond the times it is given.

A session is idle for as long as the server served and heard nothing of it. A server that stood
still (a paused machine, a hung disk) heard nobody, and a clock that jumps says nothing: of the time
between two turns no more than SERVED_S_MAX counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from streamlstm.errors import (
    InputError,
    ModelError,
    ProtocolError,
    RepeatedSessionError,
    ShapeError,
)
from streamlstm.service import column
from streamlstm.service.contract import EngineLike
from streamlstm.service.operations import (
    FORECAST,
    OPEN,
    RUN,
    STEP,
    STEPS,
    Operation,
    Steps,
)
from streamlstm.service.server.acts import ACTS, Surroundings, Values
from streamlstm.service.server.checkpoint import Checkpoint
from streamlstm.service.server.connections import Connections, Peer
from streamlstm.service.server.journal import Journal
from streamlstm.service.server.meters import ServerMeters
from streamlstm.service.server.outcomes import Outcomes, Report
from streamlstm.service.server.recovery import recover
from streamlstm.service.server.requests import Bulk, Entry, Outcome, Request, entry
from streamlstm.service.server.rounds import QueueLimits, Rounds
from streamlstm.service.server.sessions import Sessions
from streamlstm.service.server.stepping import step_all, step_one
from streamlstm.service.server.table import EVICTED, HANDLE_BITS
from streamlstm.store import Store

Answers: TypeAlias = Mapping[Operation, Callable[[], Values]]

NOTICE_SESSIONS_MAX: Final = 1000
EVICTIONS_PER_TICK_MAX: Final = 4096
SERVED_S_MAX: Final = 0.5
"""Between two turns: an idle server makes one each 0.2 s."""

BULKS_OF_A_PEER_MAX: Final = 16
_SEAT_MASK: Final = (1 << HANDLE_BITS) - 1


class Shard:
    """Sessions of some engines behind a queue.

    engines: one for each model; their model names must differ.
    read_state: State.from_bytes of those engines.
    store: where sessions last; None keeps them in memory only. Recovers from it: raises StoreError.
    max_resident: sessions of each model with their state in the engine; needs a store.
    ttl_s: idle time after which a session is evicted; None for never.
    clock: measures how long turns take, to bound the queue by time; None measures nothing.
    answers: what the owner of the shard answers itself, at any time, by operation.
    report: called when an engine fails in a way that no message should be able to cause.
    """

    def __init__(
        self,
        engines: Sequence[EngineLike[Any]],
        read_state: Callable[[bytes], Any],
        connections: Connections,
        meters: ServerMeters,
        answers: Answers,
        *,
        store: Store | None = None,
        max_resident: int | None = None,
        ttl_s: float | None = None,
        queue: QueueLimits | None = None,
        now: float = 0.0,
        clock: Callable[[], float] | None = None,
        report: Report | None = None,
    ) -> None:
        self.journal = None if store is None else Journal(store)
        self.tables = tuple(
            Sessions(engine, i, self.journal, max_resident) for i, engine in enumerate(engines)
        )
        self._by_model = {sessions.name: sessions for sessions in self.tables}
        if len(self._by_model) != len(self.tables) or not self.tables:
            names = ", ".join(sessions.name for sessions in self.tables)
            raise ModelError(f"a server needs models of different names, got: {names or 'none'}")
        self._checkpoint: Checkpoint | None = None
        if self.journal is not None:
            self._checkpoint = Checkpoint(self.journal, self.tables)
            meters.recovered_events = recover(self.journal, self.tables, self._checkpoint)
        self.rounds = Rounds(queue or QueueLimits())
        self.outcomes = Outcomes(self.rounds, connections, meters, report)
        self.outcomes.now = now
        self._connections = connections
        self._answers = answers
        self._around = Surroundings(self.outcomes, connections, read_state)
        self._ttl_s = ttl_s
        self._swept = self.journal is None
        self._clock = clock

    # --- the verbs ---

    def submit(self, request: Request) -> None:
        """Queue a request. Raises StreamLSTMError: it is refused, and nothing remembers it."""
        op = request.op
        if op in self._answers:
            self._put(request, self.rounds.earliest)
            return
        if self.rounds.pending:
            self.rounds.admit(request.peer, request.size)
        if op is STEPS:
            self._place_bulk(request)
        elif op is OPEN:
            self._place_open(request)
        else:
            self._place(request)

    def turn(self, now: float) -> list[Outcome]:
        """Do the next turn of the queue: one batched engine step for each model, and all else.

        The outcomes in order, those of requests refused since the last turn first; all of them
        are committed. Raises StoreError when they could not be: the server must end, and what it
        did since the last turn never was.
        """
        outcomes = self.outcomes
        elapsed_s = now - outcomes.now
        if elapsed_s > 0:
            outcomes.served_s += elapsed_s if elapsed_s < SERVED_S_MAX else SERVED_S_MAX
        outcomes.now = now
        requests = self.rounds.take()
        started_s = 0.0 if self._clock is None else self._clock()
        if len(requests) == 1 and requests[0].op is STEP:
            step_one(outcomes, requests[0])
        elif requests:
            for request in requests:
                if request.op is not STEP:
                    self._do(request)
            step_all(outcomes, [request for request in requests if request.op is STEP])
        if self._checkpoint is not None and self.journal is not None:
            self._checkpoint.turn(now, idle=not requests)
            self.journal.commit()
        if requests and self._clock is not None:
            self.rounds.measured(requests, self._clock() - started_s)
        return outcomes.take()

    def _do(self, request: Request) -> None:
        """Anything but a step, alone."""
        try:
            if request.op in self._answers:
                values = self._answers[request.op]()
            else:
                if request.op.to_session:
                    # A session may have changed hands since its message was queued.
                    table = request.sessions.table
                    table.check_owner(request.seat, request.fields.epoch, request.peer)
                values = ACTS[request.op](self._around, request)
        except Exception as error:
            self.outcomes.failed(request, error)
        else:
            self.outcomes.done(request, values)

    def evict(self) -> None:
        """End sessions idle longer than the time-to-live; the next `turn` tells the owners.

        For when everything that arrived was submitted: what was not heard counts for nothing.
        """
        if self._ttl_s is None:
            return
        served_s = self.outcomes.served_s
        for sessions in self.tables:
            lost: dict[Peer, list[Entry]] = {}
            idle = sessions.table.idle(
                served_s - self._ttl_s, self.rounds.number, EVICTIONS_PER_TICK_MAX
            )
            for seat in idle:
                peer = sessions.table.peers[seat]
                if peer is not None:
                    lost.setdefault(peer, []).append(entry(sessions, seat))
                sessions.roster.end(seat, EVICTED)
                sessions.meters.evicted += 1
            for peer, entries in lost.items():
                for start in range(0, len(entries), NOTICE_SESSIONS_MAX):
                    some = entries[start : start + NOTICE_SESSIONS_MAX]
                    self.outcomes.notify(peer, "evicted", some)
                self._connections.forget_if_done(peer)
        if not self._swept and served_s > self._ttl_s:
            # Stored sessions that nobody opened since the start have no seat to be idle in.
            self._swept = not any(s.roster.sweep(EVICTIONS_PER_TICK_MAX) for s in self.tables)

    def drop(self, address: bytes) -> int:
        """Take all that waits of a peer off the queue, undone; how many there were."""
        dropped = self.rounds.drop(address)
        for request in dropped:
            self._connections.forget_if_done(request.peer)
        return len(dropped)

    def finish(self) -> None:
        """Nothing more will be submitted. Raises StoreError."""
        if self._checkpoint is not None:
            self._checkpoint.finish()

    @property
    def evicted(self) -> int:
        """Sessions so far."""
        return sum(sessions.meters.evicted for sessions in self.tables)

    def check(self) -> None:
        """What holds between two turns. Raises AssertionError; for tests, it takes its time."""
        owned: dict[Peer, int] = {}
        for sessions in self.tables:
            sessions.check()
            for seat in sessions.table.by_name.values():
                peer = sessions.table.peers[seat]
                if peer is not None:
                    owned[peer] = owned.get(peer, 0) + 1
        for peer, count in owned.items():
            assert peer.sessions == count, "a peer's sessions are not counted"
        self.rounds.check()
        self._connections.check()
        if self.journal is not None:
            self.journal.check()

    # --- who may, and in which round ---

    def _place(self, request: Request) -> None:
        """Queue a message for one session after that session's last one."""
        fields = request.fields
        handle = fields.handle
        seat = handle & _SEAT_MASK
        sessions = self._sessions(handle >> HANDLE_BITS)
        table = sessions.table
        table.check_owner(seat, fields.epoch, request.peer)
        request.sessions, request.seat = sessions, seat
        op = request.op
        if op is STEP:
            request.work += sessions.parameters
        elif op is RUN:
            X = fields.payload
            rows = len(X) // sessions.event_size if isinstance(X, bytes) else len(X)
            request.work += rows * sessions.parameters
        elif op is FORECAST:
            request.work += sessions.bounds.forecast_work(fields.steps)
        number = self.rounds.after(table.row_rounds[seat], sessions.answers.window)
        table.row_active_s[seat] = self.outcomes.served_s
        table.row_rounds[seat] = number
        self._put(request, number)

    def _place_bulk(self, request: Request) -> None:
        bulk = self._bulk(request)
        table, seats = bulk.sessions.table, bulk.seats
        number = self.rounds.after(int(table.rounds[seats].max()), bulk.sessions.answers.window)
        table.active_s[seats] = self.outcomes.served_s
        table.rounds[seats] = number
        request.sessions, request.bulk = bulk.sessions, bulk
        request.work += len(seats) * bulk.sessions.parameters
        self._put(request, number)

    def _bulk(self, request: Request) -> Bulk:
        """The sessions of a steps message; clients send the same ones again and again."""
        fields: Steps = request.fields
        bulks: dict[bytes, Bulk] = request.peer.bulks
        packed = fields.handles if isinstance(fields.handles, bytes) else None
        bulk = None if packed is None else bulks.get(packed)
        if (
            bulk is not None
            and bulk.version == bulk.sessions.table.version
            and bulk.epochs_given == fields.epochs
        ):
            return bulk
        handles = column.integers(fields.handles, "<u8", "handles")
        epochs = column.integers(fields.epochs, "<u4", "epochs")
        if not len(handles) or len(handles) != len(epochs):
            raise ShapeError(
                f"steps needs as many epochs as handles and at least one, "
                f"got {len(handles)} handles and {len(epochs)} epochs"
            )
        models = handles >> HANDLE_BITS
        if (models != models[0]).any():
            raise InputError("one steps message is for sessions of one model")
        sessions = self._sessions(int(models[0]))
        seats = (handles & _SEAT_MASK).astype(np.intp)
        sessions.table.check_owners(seats, epochs, request.peer)
        if len(np.unique(seats)) != len(seats):
            raise RepeatedSessionError("a session stands twice in one steps message")
        bulk = Bulk(sessions, -1, fields.epochs, seats, epochs)
        if packed is not None:
            if len(bulks) >= BULKS_OF_A_PEER_MAX:
                bulks.clear()
            bulks[packed] = bulk
        return bulk

    def _place_open(self, request: Request) -> None:
        name, model = request.fields.name, request.fields.model
        if model is None and len(self.tables) == 1:
            sessions = self.tables[0]
        elif model in self._by_model:
            sessions = self._by_model[model]
        else:
            raise ModelError(
                f"open must name one of this server's models: {', '.join(self._by_model)}"
            )
        request.sessions = sessions
        number = self.rounds.earliest
        seat = sessions.table.by_name.get(name)
        if seat is not None:  # it waits for that session's messages
            number = self.rounds.after(sessions.table.row_rounds[seat], sessions.answers.window)
            sessions.table.row_rounds[seat] = number
        self._put(request, number)

    def _sessions(self, index: int) -> Sessions:
        if index >= len(self.tables):
            raise ProtocolError(
                "the handle is not one of this server: use handles as open gave them"
            )
        return self.tables[index]

    def _put(self, request: Request, number: int) -> None:
        if not request.peer.number:
            self._connections.keep(request.peer)
        self.rounds.put(request, number)
