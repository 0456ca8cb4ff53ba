"""The server as a pure state machine: frames in, replies out; no socket, clock or thread.

Two verbs. `receive` decodes a message, checks who may do it and schedules
it; `step` takes the next round of what is scheduled and returns the replies.

A round holds at most one message of a session, so that a micro-batch never
has a session twice and one session's messages keep their order: a message
goes into the first round after its session's last one. Sessions wait for
their own messages only.

`tick` evicts sessions nobody used, `drain` begins the end. Times are
seconds of any clock that does not go backwards, and come from the caller.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from streamlstm.errors import (
    InputError,
    ModelError,
    NonFiniteError,
    ProtocolError,
    SequenceError,
    ServerBusyError,
    ServerInternalError,
    ServerStoppingError,
    SessionExistsError,
    ShapeError,
    StateMismatchError,
    StreamLSTMError,
)
from streamlstm.serving import wire
from streamlstm.serving.table import (
    CLOSED,
    EVICTED,
    FENCED,
    HANDLE_BITS,
    Array,
    Bulk,
    EngineLike,
    Peer,
    SessionLike,
    SessionTable,
)

Reply = tuple[bytes, bytes]
"""(routing id of the peer, message)"""

NOTICE_SESSIONS_MAX: Final = 1000
EVICTIONS_PER_TICK_MAX: Final = 4096
BULKS_OF_A_PEER_MAX: Final = 16
_ROW_MASK: Final = (1 << HANDLE_BITS) - 1
_ALWAYS_ANSWERED: Final = frozenset({"hello", "stats"})
_OWN_FAULT: Final = "the server failed at {doing} by its own fault; its log says more"
STATE_OVERHEAD_BYTES_MAX: Final = 4096
"""How much longer than its numbers a saved state may be."""


class ServerState(enum.Enum):
    RUNNING = "running"
    DRAINING = "draining"  # takes no new work, finishes what it has
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much of one peer may wait; beyond it a message is answered BUSY and not stepped."""

    peer_messages: int = 1024
    peer_bytes: int = 32 << 20


@dataclass(slots=True, eq=False)
class _Request:
    """A message on its way; `fields` are those of wire.REQUESTS."""

    peer: Peer
    op: str
    ident: wire.Ident
    fields: tuple[Any, ...]
    size: int
    table: SessionTable | None = None
    session: Any = None  # the SessionLike it is for
    bulk: Bulk | None = None


class ServerProtocol:
    """Sessions of one or more engines behind the wire protocol.

    engines: one for each model; their model names must differ.
    read_state: State.from_bytes of those engines.
    ttl_s: idle time after which a session is evicted; None for never.
    report: called with what the server was doing and the exception, when an
        engine fails in a way that no message should be able to cause.
    """

    def __init__(
        self,
        engines: Sequence[EngineLike],
        read_state: Callable[[bytes], Any],
        *,
        ttl_s: float | None = None,
        limits: wire.Limits | None = None,
        queue: QueueLimits | None = None,
        server: str = "streamlstm",
        now: float = 0.0,
        report: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self.tables = tuple(SessionTable(engine, i) for i, engine in enumerate(engines))
        self._by_model = {table.name: table for table in self.tables}
        if len(self._by_model) != len(self.tables) or not self.tables:
            names = ", ".join(table.name for table in self.tables)
            raise ModelError(f"a server needs models of different names, got: {names or 'none'}")
        self.state = ServerState.RUNNING
        self.pending = 0
        self.undeliverable = 0  # counted by whoever sends
        self.overrun: set[bytes] = set()  # peers with too many replies unread
        self.overruns = 0
        self._limits = limits or wire.Limits()
        self._queue = queue or QueueLimits()
        self._decode = wire.Decoder(self._limits).request
        self._encoder = wire.Encoder()
        self._server = server
        self._read_state = read_state
        self._ttl_s = ttl_s
        self._report = report
        self._started_s = self._now = now
        self._peers: dict[bytes, Peer] = {}
        self._peers_made = 0
        self._rounds: deque[list[_Request]] = deque()
        self._round = 0  # number of the round that `step` takes next
        self._out: list[Reply] = []
        self._messages = self._replies = 0
        self._errors: Counter[str] = Counter()
        self._act: dict[str, Callable[[_Request], bytes]] = {
            "hello": self._hello,
            "open": self._open,
            "steps": self._steps,
            "run": self._run,
            "reset": self._reset,
            "state": self._state,
            "restore": self._restore,
            "close": self._close,
            "stats": self._stats,
        }

    # --- the verbs ---

    def receive(self, peer: bytes, frames: Sequence[bytes], now: float) -> None:
        """Take one message; refusals that need no engine are answered by the next `step`."""
        self._messages += 1
        if self.overrun and peer in self.overrun:
            self.undeliverable += 1  # a reply could not leave, so nothing is done
            return
        ident: wire.Ident = None
        try:
            op, ident, fields = self._decode(frames)
            if self.state is not ServerState.RUNNING and op not in _ALWAYS_ANSWERED:
                raise ServerStoppingError("the server is stopping and takes no new work")
            owner = self._peers.get(peer)
            if owner is None:
                owner = Peer(peer, 0)  # gets its number when it has something to remember
            request = _Request(owner, op, ident, fields, len(frames[0]))
            if self.pending:
                self._admit(owner, request.size)
            if op == "steps":
                self._place_bulk(request, now)
            elif op == "open":
                self._place_open(request)
            elif op in _ALWAYS_ANSWERED:
                self._schedule(request, self._round)
            else:
                self._place(request, now)
        except wire.BadMessageError as error:
            self._refuse(peer, error.ident, error)
        except StreamLSTMError as error:
            self._refuse(peer, ident, error)
        except Exception as error:
            self._fault("receive", error)
            self._refuse(peer, ident, ServerInternalError(_OWN_FAULT.format(doing="this message")))

    def step(self, now: float) -> list[Reply]:
        """Take the next round: one batched engine step for each model, then everything's replies.

        Returns what to send, in order. Call again while `pending` is not 0.
        """
        self._now = now
        if self._rounds:
            self._round += 1
            requests = self._rounds.popleft()
            if len(requests) == 1 and requests[0].op == "step":
                self._step_one(requests[0])
            else:
                self._step_round(requests)
        out, self._out = self._out, []
        self._replies += len(out)
        return out

    def tick(self, now: float) -> None:
        """Evict sessions idle longer than the time-to-live; the next `step` tells the owners."""
        if self._ttl_s is None:
            return
        for table in self.tables:
            lost: dict[int, tuple[Peer, list[tuple[str, int, int, int]]]] = {}
            for row in table.idle(now - self._ttl_s, self._round, EVICTIONS_PER_TICK_MAX):
                session, peer = table.sessions[row], table.peers[row]
                assert peer is not None
                entry = (session.name, table.wire_handle(row), session.epoch, session.seq)
                lost.setdefault(peer.number, (peer, []))[1].append(entry)
                table.release(row, EVICTED)
                session.close()
                table.counters.evicted += 1
            for peer, entries in lost.values():
                for start in range(0, len(entries), NOTICE_SESSIONS_MAX):
                    self._notify(peer, "evicted", entries[start : start + NOTICE_SESSIONS_MAX])
                self._forget_if_done(peer)

    def cut(self, address: bytes) -> None:
        """A peer's reply found no room: drop what it has here undone, until `mend`.

        Its sessions stay. A reply was lost already; later ones must not hide that.
        """
        self.overrun.add(address)
        self.overruns += 1
        for number, requests in enumerate(self._rounds):
            dropped = [request for request in requests if request.peer.address == address]
            if dropped:
                self._rounds[number] = [r for r in requests if r.peer.address != address]
                self.undeliverable += len(dropped)
                for request in dropped:
                    self._done(request)

    def mend(self, address: bytes) -> None:
        """A peer that was cut is gone, or reads again and was told."""
        self.overrun.discard(address)

    def overrun_notice(self) -> bytes:
        return self._encoder.notice("overrun", [])

    def drain(self) -> None:
        """Refuse new work and tell the owners; then `step` while `pending`, and `stop`."""
        if self.state is ServerState.RUNNING:
            self.state = ServerState.DRAINING
            for peer in self._peers.values():
                if peer.sessions:
                    self._notify(peer, "stopping", [])

    def stop(self) -> None:
        """Nothing is left to answer and nothing more will be received."""
        self.state = ServerState.STOPPED

    @property
    def peer_messages(self) -> int:
        """Messages of one peer that may wait."""
        return self._queue.peer_messages

    @property
    def evicted(self) -> int:
        """Sessions evicted so far."""
        return sum(table.counters.evicted for table in self.tables)

    # --- admission: who may, and in which round ---

    def _admit(self, peer: Peer, size: int) -> None:
        queue = self._queue
        if peer.pending >= queue.peer_messages or peer.pending_bytes + size > queue.peer_bytes:
            raise ServerBusyError(
                f"{peer.pending} messages of this client wait: "
                "the event was not stepped, send it again later"
            )

    def _place(self, request: _Request, now: float) -> None:
        """Schedule a message for one session after that session's last one."""
        handle: int = request.fields[0]
        row = handle & _ROW_MASK
        table = self._table(handle >> HANDLE_BITS)
        request.table = table
        request.session = table.owned(row, request.fields[1], request.peer)
        table.row_active_s[row] = now
        number = max(self._round, table.row_rounds[row] + 1)
        table.row_rounds[row] = number
        self._schedule(request, number)

    def _place_bulk(self, request: _Request, now: float) -> None:
        bulk = self._bulk(request)
        table, rows = bulk.table, bulk.rows
        table.active_s[rows] = now
        number = max(self._round, int(table.rounds[rows].max()) + 1)
        table.rounds[rows] = number
        request.table, request.bulk = table, bulk
        self._schedule(request, number)

    def _bulk(self, request: _Request) -> Bulk:
        """The sessions of a steps message; clients send the same ones again and again."""
        handles_given, epochs_given = request.fields[:2]
        bulks = request.peer.bulks
        known = bulks.get(handles_given)
        if (
            known is not None
            and known.version == known.table.version
            and known.epochs_given == epochs_given
        ):
            return known
        handles = wire.integers(handles_given, "<u8", "handles")
        epochs = wire.integers(epochs_given, "<u4", "epochs")
        if not len(handles) or len(handles) != len(epochs):
            raise ShapeError(
                f"steps needs as many epochs as handles and at least one, "
                f"got {len(handles)} handles and {len(epochs)} epochs"
            )
        models = handles >> HANDLE_BITS
        if (models != models[0]).any():
            raise InputError("one steps message is for sessions of one model")
        table = self._table(int(models[0]))
        rows = (handles & _ROW_MASK).astype(np.uint32)
        table.check_owned(rows, epochs, request.peer)
        group = table.engine.group_by_handle(rows, epochs)
        bulk = Bulk(table, table.version, epochs_given, rows.astype(np.intp), epochs, group)
        if isinstance(handles_given, bytes):
            if len(bulks) >= BULKS_OF_A_PEER_MAX:
                bulks.clear()
            bulks[handles_given] = bulk
        return bulk

    def _place_open(self, request: _Request) -> None:
        name, model, _ = request.fields
        if model is None and len(self.tables) == 1:
            table = self.tables[0]
        elif model in self._by_model:
            table = self._by_model[model]
        else:
            raise ModelError(
                f"open must name one of this server's models: {', '.join(self._by_model)}"
            )
        request.table = table
        number = self._round
        if name in table.engine:  # it waits for that session's messages
            row = table.engine[name].handle
            if row < len(table.sessions):  # else opened before there was a server
                number = max(number, table.row_rounds[row] + 1)
                table.row_rounds[row] = number
        self._schedule(request, number)

    def _table(self, index: int) -> SessionTable:
        if index >= len(self.tables):
            raise ProtocolError(
                "the handle is not one of this server: use handles as open gave them"
            )
        return self.tables[index]

    def _schedule(self, request: _Request, number: int) -> None:
        peer = request.peer
        if not peer.number:
            self._peers_made += 1
            peer.number = self._peers_made
            self._peers[peer.address] = peer
        peer.pending += 1
        peer.pending_bytes += request.size
        self.pending += 1
        index = number - self._round
        while index >= len(self._rounds):
            self._rounds.append([])
        self._rounds[index].append(request)

    # --- answering ---

    def _refuse(
        self, peer: bytes, ident: wire.Ident, error: StreamLSTMError, **details: object
    ) -> None:
        self._errors[type(error).code] += 1
        self._out.append((peer, self._encoder.error(ident, error, **details)))

    def _notify(self, peer: Peer, kind: str, entries: list[tuple[str, int, int, int]]) -> None:
        self._out.append((peer.address, self._encoder.notice(kind, entries)))

    def _done(self, request: _Request) -> None:
        peer = request.peer
        peer.pending -= 1
        peer.pending_bytes -= request.size
        self.pending -= 1
        if not peer.sessions:
            self._forget_if_done(peer)

    def _forget_if_done(self, peer: Peer) -> None:
        if not peer.pending and not peer.sessions:
            self._peers.pop(peer.address, None)

    def _reply_ok(self, request: _Request, reply: bytes) -> None:
        self._out.append((request.peer.address, reply))
        self._done(request)

    def _reply_error(self, request: _Request, error: Exception) -> None:
        if not isinstance(error, StreamLSTMError):
            self._fault(request.op, error)
            error = ServerInternalError(_OWN_FAULT.format(doing=request.op))
        self._refuse(request.peer.address, request.ident, error, **_details(error))
        self._done(request)

    def _fault(self, doing: str, error: Exception) -> None:
        if self._report is not None:
            self._report(doing, error)

    def _answer(self, request: _Request) -> None:
        """Do anything but a step, alone."""
        try:
            reply = self._act[request.op](request)
        except Exception as error:
            self._reply_error(request, error)
        else:
            self._reply_ok(request, reply)

    # --- steps ---

    def _step_round(self, requests: list[_Request]) -> None:
        events: dict[SessionTable, list[_Request]] = {}
        for request in requests:
            if request.op == "step":
                assert request.table is not None
                events.setdefault(request.table, []).append(request)
            else:
                self._answer(request)
        for table, batch in events.items():
            self._step_batch(table, batch)

    def _step_batch(self, table: SessionTable, batch: list[_Request]) -> None:
        """One event of each session in one engine step; who can't take part is refused alone."""
        if len(batch) == 1:
            self._step_one(batch[0])
            return
        good: list[_Request] = []
        rows: list[bytes] = []
        for request in batch:
            try:
                _check_seq(request.session, request.fields[2])
                rows.append(wire.event_bytes(request.fields[4], table.dtype, table.inputs))
            except Exception as error:
                self._reply_error(request, error)
            else:
                good.append(request)
        if len(good) < 2:
            for request in good:
                self._step_one(request)
            return
        X = np.frombuffer(b"".join(rows), table.dtype).reshape(len(good), -1)
        try:
            Y = table.engine.step([request.session for request in good], X)
        except StreamLSTMError:  # all or nothing: somebody's NaN, or a session lost meanwhile
            self._step_apart(table, good, X)
            return
        except Exception as error:
            self._fault("step", error)
            for request in good:
                self._reply_error(request, ServerInternalError("the server failed at this step"))
            return
        self._count(table, len(good))
        for request, y in zip(good, Y, strict=True):
            self._reply_ok(
                request, self._encoder.ok(request.ident, request.session.seq, y.tobytes())
            )

    def _step_apart(self, table: SessionTable, batch: list[_Request], X: Array) -> None:
        """A refused batch again: without the rows that are not finite, then one by one."""
        finite = [bool(np.isfinite(x).all()) for x in X]
        if all(finite):
            for request in batch:
                self._step_one(request)
            return
        for request, fine in zip(batch, finite, strict=True):
            if not fine:
                self._reply_error(request, NonFiniteError("the event holds NaN or infinity"))
        rest = [request for request, fine in zip(batch, finite, strict=True) if fine]
        if rest:
            self._step_batch(table, rest)

    def _step_one(self, request: _Request) -> None:
        table, session = request.table, request.session
        assert table is not None
        _, _, seq, _, x = request.fields
        try:
            if seq != session.seq + 1:
                _check_seq(session, seq)
            if type(x) is not bytes or len(x) != table.event_size:
                x = wire.event_bytes(x, table.dtype, table.inputs)
            table.x_bytes[:] = x
            session.step_into(table.x, table.y)
            reply = self._encoder.ok(request.ident, session.seq, table.y_bytes)
        except Exception as error:
            self._reply_error(request, error)
        else:
            table.counters.events += 1
            table.counters.micro_batches += 1
            self._reply_ok(request, reply)

    def _steps(self, request: _Request) -> bytes:
        bulk = request.bulk
        assert bulk is not None
        table, rows, group = bulk.table, bulk.rows, bulk.group
        X = wire.matrix(request.fields[4], table.dtype, table.inputs)
        if len(X) != len(rows):
            raise ShapeError(f"steps for {len(rows)} sessions needs as many events, got {len(X)}")
        if bulk.version != table.version:  # somebody took one over since, perhaps
            table.check_owned(rows, bulk.epochs, request.peer)
        seqs = group.seqs + 1
        if request.fields[2] is not None:
            given = wire.integers(request.fields[2], "<i8", "seqs")
            if given.shape != seqs.shape:
                raise ShapeError(f"steps for {len(rows)} sessions needs as many seqs")
            if not np.array_equal(given, seqs):
                index = int(np.argmax(given != seqs))
                raise _WrongSeqError(int(given[index]), int(seqs[index]), index)
        Y = group.step(X)
        self._count(table, len(rows))
        return self._encoder.ok(request.ident, seqs.tobytes(), Y.tobytes())

    def _count(self, table: SessionTable, events: int) -> None:
        table.counters.events += events
        table.counters.micro_batches += 1

    # --- everything else ---

    def _hello(self, request: _Request) -> bytes:
        return self._encoder.ok(
            request.ident,
            {
                "server": self._server,
                "versions": [wire.VERSION],
                "models": [_describe(table) for table in self.tables],
                "limits": {
                    "frame_bytes": self._limits.frame_bytes,
                    "name_bytes": self._limits.name_bytes,
                    "list_items": self._limits.items,
                    "pending_messages": self._queue.peer_messages,
                    "pending_bytes": self._queue.peer_bytes,
                    "ttl_s": self._ttl_s,
                },
            },
        )

    def _open(self, request: _Request) -> bytes:
        table = request.table
        assert table is not None
        engine = table.engine
        name, _, resume = request.fields
        if name not in engine:
            session: SessionLike = engine.open(name)
        elif resume:
            session = self._take_over(table, engine[name], request.peer)
        else:
            raise SessionExistsError(
                f"session {name!r} of model {table.name!r} is open already: "
                "choose another name, or open it with resume to take it over"
            )
        table.bind(session, request.peer, self._now)
        handle = table.wire_handle(session.handle)
        return self._encoder.ok(request.ident, handle, session.epoch, session.seq, table.name)

    def _take_over(self, table: SessionTable, session: SessionLike, peer: Peer) -> SessionLike:
        row = session.handle
        old = table.peers[row] if row < len(table.peers) else None
        if old is not None and old is not peer:
            entry = (session.name, table.wire_handle(row), session.epoch, session.seq)
            self._notify(old, "fenced", [entry])
        taken: SessionLike = session.take_over()
        if old is not None:
            table.release(row, FENCED)
            self._forget_if_done(old)
        return taken

    def _run(self, request: _Request) -> bytes:
        table, session = request.table, request.session
        assert table is not None
        _check_seq(session, request.fields[2])
        X = wire.matrix(request.fields[4], table.dtype, table.inputs)
        if len(X) > table.run_rows:
            raise ShapeError(
                f"a run has {len(X)} events; model {table.name!r} takes {table.run_rows} in one "
                "message (run_rows): send it in pieces"
            )
        Y = session.run(X)
        self._count(table, len(X))
        return self._encoder.ok(request.ident, session.seq, Y.tobytes())

    def _reset(self, request: _Request) -> bytes:
        request.session.reset()
        return self._encoder.ok(request.ident, request.session.seq)

    def _state(self, request: _Request) -> bytes:
        session = request.session
        return self._encoder.ok(request.ident, session.seq, session.state().to_bytes())

    def _restore(self, request: _Request) -> bytes:
        table, blob = request.table, request.fields[2]
        assert table is not None
        size_max = table.model.state_size * table.dtype.itemsize + STATE_OVERHEAD_BYTES_MAX
        if len(blob) > size_max:
            raise StateMismatchError(
                f"a state of model {table.name!r} has at most {size_max} bytes, got {len(blob)}"
            )
        request.session.restore(self._read_state(blob))
        return self._encoder.ok(request.ident, request.session.seq)

    def _close(self, request: _Request) -> bytes:
        session, table = request.session, request.table
        assert table is not None
        seq, row = session.seq, session.handle
        session.close()
        table.release(row, CLOSED)
        return self._encoder.ok(request.ident, seq)

    def _stats(self, request: _Request) -> bytes:
        return self._encoder.ok(request.ident, self.stats(self._now))

    def stats(self, now: float) -> dict[str, Any]:
        """Counters and sizes; what the `stats` operation answers."""
        return {
            "server": self._server,
            "state": self.state.value,
            "uptime_s": now - self._started_s,
            "durability": "memory",
            "clients": sum(1 for peer in self._peers.values() if peer.sessions),
            "pending": self.pending,
            "messages": self._messages,
            "replies": self._replies,
            "undeliverable": self.undeliverable,
            "overruns": self.overruns,
            "errors": dict(self._errors),
            "models": {
                table.name: {
                    "sessions": len(table.engine),
                    "max_sessions": table.engine.max_sessions,
                    "state_bytes": table.engine.state_bytes,
                    "events": table.counters.events,
                    "micro_batches": table.counters.micro_batches,
                    "evicted": table.counters.evicted,
                    "fingerprint": table.model.fingerprint,
                }
                for table in self.tables
            },
        }


class _WrongSeqError(SequenceError):
    """Keeps the numbers for the reply's details."""

    def __init__(self, given: int, expected: int, index: int | None = None) -> None:
        where = "" if index is None else f"index {index}: "
        super().__init__(f"{where}the event has seq {given}, the session's next is {expected}")
        self.details = {"expected": expected} | ({} if index is None else {"index": index})


def _details(error: Exception) -> dict[str, object]:
    return dict(error.details) if isinstance(error, _WrongSeqError) else {}


def _check_seq(session: SessionLike, given: int | None) -> None:
    if given is not None and given != session.seq + 1:
        raise _WrongSeqError(given, session.seq + 1)


def _describe(table: SessionTable) -> dict[str, Any]:
    model = table.model
    largest = getattr(table.engine, "largest_event", None)
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "dtype": np.dtype(model.dtype).name,
        "inputs": [[feature.name, feature.unit] for feature in model.inputs],
        "outputs": [[feature.name, feature.unit] for feature in model.outputs],
        "run_rows": table.run_rows,
        "largest": None if largest is None else [float(number) for number in largest],
    }
