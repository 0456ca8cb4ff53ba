"""The server as a pure state machine: frames in, replies out; no socket, thread or file.

Two verbs. `receive` decodes a message, checks who may do it and queues it
(rounds.py); `step` takes the next turn of the queue, does it (sessions.py),
commits it (journal.py) and returns the replies: what is told is committed.

`tick` evicts sessions nobody used, `drain` begins the end. Times are seconds
of any clock, and come from the caller; the store and the engines do too.

A session is idle for as long as the server served and heard nothing of it. A
server that stood still (a paused machine, a hung disk) heard nobody, and a clock
that jumps says nothing: of the time between two steps no more than SERVED_S_MAX
counts.
"""

from __future__ import annotations

import enum
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import (
    CapacityError,
    DeadlineError,
    InputError,
    ModelError,
    ProtocolError,
    RepeatedSessionError,
    ServerInternalError,
    ServerStoppingError,
    SessionExistsError,
    SessionFencedError,
    SessionUnknownError,
    ShapeError,
    StateMismatchError,
    StoreDamagedError,
    StoreError,
    StreamLSTMError,
)
from streamlstm.head import Head
from streamlstm.service import column, operations, wire
from streamlstm.service.contract import EngineLike
from streamlstm.service.operations import Operation
from streamlstm.service.server.answers import (
    RESET,
    RESTORE,
    RUN,
    STEP,
    QuarantinedError,
    WrongSeqError,
    digest,
    digests,
)
from streamlstm.service.server.journal import Journal
from streamlstm.service.server.rounds import QueueLimits, Request, Rounds
from streamlstm.service.server.sessions import Sessions
from streamlstm.service.server.table import CLOSED, EVICTED, FENCED, HANDLE_BITS, Peer

if TYPE_CHECKING:
    from streamlstm.store import Store

Array = npt.NDArray[Any]
Reply = tuple[bytes, bytes]
"""(routing id of the peer, message)"""

NOTICE_SESSIONS_MAX: Final = 1000
EVICTIONS_PER_TICK_MAX: Final = 4096
SERVED_S_MAX: Final = 0.5
"""Between two steps: an idle server makes one each 0.2 s."""

BULKS_OF_A_PEER_MAX: Final = 16
_SLOT_MASK: Final = (1 << HANDLE_BITS) - 1
_ALWAYS_ANSWERED: Final = frozenset({operations.HELLO, operations.STATS})
_OWN_FAULT: Final = "the server failed at {doing} by its own fault; its log says more"
STATE_OVERHEAD_BYTES_MAX: Final = 4096
"""How much longer than its numbers a saved state may be."""


class ServerState(enum.Enum):
    RUNNING = "running"
    DRAINING = "draining"  # takes no new work, finishes what it has
    STOPPED = "stopped"


@dataclass(slots=True, eq=False)
class _Bulk:
    """The sessions of a steps message, found and checked; good while the table's version is."""

    sessions: Sessions
    version: int
    epochs_given: object
    slots: Array
    epochs: Array
    group: Any = None


class ServerProtocol:
    """Sessions of one or more engines behind the wire protocol.

    engines: one for each model; their model names must differ.
    read_state: State.from_bytes of those engines.
    store: where sessions last; None keeps them in memory only. Recovers from it: raises StoreError.
    max_resident: sessions of each model with their state in the engine; needs a store.
    ttl_s: idle time after which a session is evicted; None for never.
    clock: measures how long turns take, to bound the queue by time; None measures nothing.
    report: called with what the server was doing and the exception, when an
        engine fails in a way that no message should be able to cause.
    """

    def __init__(
        self,
        engines: Sequence[EngineLike[Any]],
        read_state: Callable[[bytes], Any],
        *,
        store: Store | None = None,
        max_resident: int | None = None,
        ttl_s: float | None = None,
        limits: wire.Limits | None = None,
        queue: QueueLimits | None = None,
        server: str = "streamlstm",
        now: float = 0.0,
        clock: Callable[[], float] | None = None,
        report: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self.journal = None if store is None else Journal(store)
        self.tables = tuple(
            Sessions(engine, i, self.journal, max_resident) for i, engine in enumerate(engines)
        )
        self._by_model = {sessions.name: sessions for sessions in self.tables}
        if len(self._by_model) != len(self.tables) or not self.tables:
            names = ", ".join(sessions.name for sessions in self.tables)
            raise ModelError(f"a server needs models of different names, got: {names or 'none'}")
        if self.journal is not None:
            self.journal.recover(self.tables)
        self.state = ServerState.RUNNING
        self.undeliverable = 0  # replies and notices, counted by whoever sends
        self._dropped = 0  # messages of peers that do not read, left undone
        self.overrun: set[bytes] = set()  # peers with too many replies unread
        self.overruns = 0
        self._limits = limits or wire.Limits()
        self._rounds = Rounds(queue or QueueLimits())
        self._decode = wire.Decoder(self._limits).request
        self._encoder = wire.Encoder()
        self._server = server
        self._boot = int.from_bytes(os.urandom(7))
        self._read_state = read_state
        self._ttl_s = ttl_s
        self._swept = self.journal is None
        self._clock = clock
        self._report = report
        self._started_s = self._now = now
        self._served_s = 0.0
        self._peers: dict[bytes, Peer] = {}
        self._peers_made = 0
        self._out: list[Reply] = []
        self._messages = self._replies = 0
        self._errors: Counter[str] = Counter()
        self._act: dict[Operation, Callable[[Request], bytes]] = {
            operations.HELLO: self._hello,
            operations.OPEN: self._open,
            operations.FORK: self._fork,
            operations.STEPS: self._steps,
            operations.RUN: self._run,
            operations.RESET: self._reset,
            operations.STATE: self._state,
            operations.FORECAST: self._forecast,
            operations.COUNTERS: self._counters,
            operations.RESTORE: self._restore,
            operations.CLOSE: self._close,
            operations.STATS: self._stats,
        }

    # --- the verbs ---

    def receive(self, peer: bytes, frames: Sequence[bytes]) -> None:
        """Take one message; refusals that need no engine are answered by the next `step`."""
        self._messages += 1
        if self.overrun and peer in self.overrun:
            self._dropped += 1  # a reply could not leave, so nothing is done
            return
        ident: wire.Ident = None
        try:
            op, ident, fields = self._decode(frames)
            if self.state is not ServerState.RUNNING and op not in _ALWAYS_ANSWERED:
                raise ServerStoppingError("the server is stopping and takes no new work")
            owner = self._peers.get(peer)
            if owner is None:
                owner = Peer(peer, 0)  # gets its number when it has something to remember
            request = Request(owner, op, ident, fields, len(frames[0]))
            if self._rounds.pending and op not in _ALWAYS_ANSWERED:
                self._rounds.admit(owner, request.size)
            if op is operations.STEPS:
                self._place_bulk(request)
            elif op is operations.OPEN:
                self._place_open(request)
            elif op in _ALWAYS_ANSWERED:
                self._put(request, self._rounds.earliest)
            else:
                self._place(request)
        except wire.BadMessageError as error:
            self._refuse(peer, error.ident, error)
        except StreamLSTMError as error:
            self._refuse(peer, ident, error)
        except Exception as error:
            self._fault("receive", error)
            self._refuse(peer, ident, ServerInternalError(_OWN_FAULT.format(doing="this message")))

    def step(self, now: float) -> list[Reply]:
        """Take the next turn: one batched engine step for each model, then everything's replies.

        Returns what to send, in order; all of it is committed. Call again while `pending` is not
        0. Raises StoreError when it could not be committed: the server must end, and what it did
        since the last turn never was.
        """
        self._served_s += min(max(now - self._now, 0.0), SERVED_S_MAX)
        self._now = now
        requests = self._rounds.take()
        started_s = 0.0 if self._clock is None else self._clock()
        if len(requests) == 1 and requests[0].op is operations.STEP:
            self._step_one(requests[0])
        elif requests:
            self._step_round(requests)
        if self.journal is not None:
            self.journal.checkpoint(self.tables, now, idle=not requests)
            self.journal.commit()
        if requests and self._clock is not None:
            self._rounds.measured(requests, self._clock() - started_s)
        out, self._out = self._out, []
        self._replies += len(out)
        return out

    def tick(self) -> None:
        """Evict sessions idle longer than the time-to-live; the next `step` tells the owners.

        For when everything that arrived was received: what still lies in the socket was not heard.
        """
        if self._ttl_s is None:
            return
        for sessions in self.tables:
            table = sessions.table
            lost: dict[int, tuple[Peer, list[tuple[str, int, int, int]]]] = {}
            idle = table.idle(
                self._served_s - self._ttl_s, self._rounds.number, EVICTIONS_PER_TICK_MAX
            )
            for slot in idle:
                peer = table.peers[slot]
                if peer is not None:
                    entry = self._entry(sessions, slot)
                    lost.setdefault(peer.number, (peer, []))[1].append(entry)
                sessions.end(slot, EVICTED)
                sessions.evicted += 1
            for peer, entries in lost.values():
                for start in range(0, len(entries), NOTICE_SESSIONS_MAX):
                    self._notify(peer, "evicted", entries[start : start + NOTICE_SESSIONS_MAX])
                self._forget_if_done(peer)
        if not self._swept and self._served_s > self._ttl_s:
            # Stored sessions that nobody opened since the start have no slot to be idle in.
            self._swept = not any(s.sweep(EVICTIONS_PER_TICK_MAX) for s in self.tables)

    def cut(self, address: bytes) -> None:
        """A peer's reply found no room: drop what it has here undone, until `mend`.

        Its sessions stay. A reply was lost already; later ones must not hide that.
        """
        self.overrun.add(address)
        self.overruns += 1
        dropped = self._rounds.drop(address)
        self._dropped += len(dropped)
        for request in dropped:
            self._forget_if_done(request.peer)

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
        """Nothing is left to answer and nothing more will be received. Raises StoreError."""
        self.state = ServerState.STOPPED
        if self.journal is not None:
            self.journal.finish(self.tables)

    @property
    def pending(self) -> int:
        """Messages that wait."""
        return self._rounds.pending

    @property
    def peer_messages(self) -> int:
        """Messages of one peer that may wait."""
        return self._rounds.limits.peer_messages

    @property
    def evicted(self) -> int:
        """Sessions evicted so far."""
        return sum(sessions.evicted for sessions in self.tables)

    # --- who may, and in which round ---

    def _place(self, request: Request) -> None:
        """Queue a message for one session after that session's last one."""
        handle, epoch = request.fields.handle, request.fields.epoch
        slot = handle & _SLOT_MASK
        sessions = self._sessions(handle >> HANDLE_BITS)
        table = sessions.table
        table.check_owner(slot, epoch, request.peer)
        request.sessions, request.slot = sessions, slot
        if request.op is operations.STEP:
            request.work += sessions.parameters
        elif request.op is operations.RUN:
            X = request.fields.payload
            rows = len(X) // sessions.event_size if isinstance(X, bytes) else len(X)
            request.work += rows * sessions.parameters
        elif request.op is operations.FORECAST:
            request.work += sessions.forecast_work(request.fields.steps)
        number = self._rounds.after(table.row_rounds[slot], sessions.answers.window)
        table.row_active_s[slot] = self._served_s
        table.row_rounds[slot] = number
        self._put(request, number)

    def _place_bulk(self, request: Request) -> None:
        bulk = self._bulk(request)
        table, slots = bulk.sessions.table, bulk.slots
        number = self._rounds.after(int(table.rounds[slots].max()), bulk.sessions.answers.window)
        table.active_s[slots] = self._served_s
        table.rounds[slots] = number
        request.sessions, request.bulk = bulk.sessions, bulk
        request.work += len(slots) * bulk.sessions.parameters
        self._put(request, number)

    def _bulk(self, request: Request) -> _Bulk:
        """The sessions of a steps message; clients send the same ones again and again."""
        handles_given, epochs_given = request.fields.handles, request.fields.epochs
        bulks = request.peer.bulks
        known: _Bulk | None = bulks.get(handles_given)
        if (
            known is not None
            and known.version == known.sessions.table.version
            and known.epochs_given == epochs_given
        ):
            return known
        handles = column.integers(handles_given, "<u8", "handles")
        epochs = column.integers(epochs_given, "<u4", "epochs")
        if not len(handles) or len(handles) != len(epochs):
            raise ShapeError(
                f"steps needs as many epochs as handles and at least one, "
                f"got {len(handles)} handles and {len(epochs)} epochs"
            )
        models = handles >> HANDLE_BITS
        if (models != models[0]).any():
            raise InputError("one steps message is for sessions of one model")
        sessions = self._sessions(int(models[0]))
        slots = (handles & _SLOT_MASK).astype(np.intp)
        sessions.table.check_owners(slots, epochs, request.peer)
        if len(np.unique(slots)) != len(slots):
            raise RepeatedSessionError("a session stands twice in one steps message")
        bulk = _Bulk(sessions, -1, epochs_given, slots, epochs)
        if isinstance(handles_given, bytes):
            if len(bulks) >= BULKS_OF_A_PEER_MAX:
                bulks.clear()
            bulks[handles_given] = bulk
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
        number = self._rounds.earliest
        slot = sessions.table.by_name.get(name)
        if slot is not None:  # it waits for that session's messages
            number = self._rounds.after(sessions.table.row_rounds[slot], sessions.answers.window)
            sessions.table.row_rounds[slot] = number
        self._put(request, number)

    def _sessions(self, index: int) -> Sessions:
        if index >= len(self.tables):
            raise ProtocolError(
                "the handle is not one of this server: use handles as open gave them"
            )
        return self.tables[index]

    def _put(self, request: Request, number: int) -> None:
        peer = request.peer
        if not peer.number:
            self._peers_made += 1
            peer.number = self._peers_made
            self._peers[peer.address] = peer
        self._rounds.put(request, number)

    # --- answering ---

    def _refuse(self, peer: bytes, ident: wire.Ident, error: StreamLSTMError) -> None:
        self._errors[type(error).code] += 1
        details: dict[str, object] = getattr(error, "details", {})
        self._out.append((peer, self._encoder.error(ident, error, **details)))

    def _notify(self, peer: Peer, kind: str, entries: list[tuple[str, int, int, int]]) -> None:
        self._out.append((peer.address, self._encoder.notice(kind, entries)))

    def _entry(self, sessions: Sessions, slot: int) -> tuple[str, int, int, int]:
        """A session as notices tell it."""
        table = sessions.table
        return table.names[slot], table.handle(slot), table.row_epochs[slot], table.row_seqs[slot]

    def _done(self, request: Request) -> None:
        self._rounds.done(request)
        if not request.peer.sessions:
            self._forget_if_done(request.peer)

    def _forget_if_done(self, peer: Peer) -> None:
        if not peer.pending and not peer.sessions:
            self._peers.pop(peer.address, None)

    def _reply_ok(self, request: Request, reply: bytes) -> None:
        self._out.append((request.peer.address, reply))
        self._done(request)

    def _reply_error(self, request: Request, error: Exception) -> None:
        if isinstance(error, StoreError) and not isinstance(error, StoreDamagedError):
            raise error
        if not isinstance(error, StreamLSTMError):
            self._fault(request.op.name, error)
            error = ServerInternalError(_OWN_FAULT.format(doing=request.op.name))
        self._refuse(request.peer.address, request.ident, error)
        self._done(request)

    def _fault(self, doing: str, error: Exception) -> None:
        if self._report is not None:
            self._report(doing, error)

    def _answer(self, request: Request) -> None:
        """Do anything but a step, alone."""
        try:
            if request.op.to_session:
                assert request.sessions is not None
                # A session may have changed hands since its message was queued.
                request.sessions.table.check_owner(request.slot, request.fields.epoch, request.peer)
            reply = self._act[request.op](request)
        except Exception as error:
            self._reply_error(request, error)
        else:
            self._reply_ok(request, reply)

    # --- steps ---

    def _step_round(self, requests: list[Request]) -> None:
        events: dict[Sessions, list[Request]] = {}
        for request in requests:
            if request.op is operations.STEP:
                assert request.sessions is not None
                events.setdefault(request.sessions, []).append(request)
            else:
                self._answer(request)
        for sessions, batch in events.items():
            self._step_batch(sessions, batch)

    def _event(self, request: Request) -> bytes | None:
        """A step's input as bytes, or None when it was a repeat and is answered."""
        sessions, slot = request.sessions, request.slot
        assert sessions is not None
        _, epoch, seq, deadline, x = request.fields
        table = sessions.table
        table.check_owner(slot, epoch, request.peer)
        if type(x) is not bytes or len(x) != sessions.event_size:
            x = column.event_bytes(x, sessions.dtype, sessions.inputs)
        last = table.row_seqs[slot]
        if seq is not None and seq != last + 1:
            y = sessions.answers.find(slot, seq, digest(STEP, x), last)
            self._reply_ok(request, self._encoder.ok(request.ident, seq, y))
            return None
        if deadline is not None:
            self._check_deadline(deadline)
        return x

    def _check_deadline(self, deadline: float | None) -> None:
        if deadline is not None and self._now > deadline:
            raise DeadlineError(
                f"its turn came {self._now - deadline:.3f} s after the deadline: not stepped"
            )

    def _step_one(self, request: Request) -> None:
        sessions, slot = request.sessions, request.slot
        assert sessions is not None
        try:
            x = self._event(request)
            if x is None:
                return
            y = sessions.step(slot, x)
            reply = self._encoder.ok(request.ident, sessions.table.row_seqs[slot], y)
        except Exception as error:
            self._reply_error(request, error)
        else:
            self._reply_ok(request, reply)

    def _step_batch(self, sessions: Sessions, batch: list[Request]) -> None:
        """One event of each session in one engine step; who can't take part is refused alone."""
        if len(batch) == 1:
            self._step_one(batch[0])
            return
        good: list[Request] = []
        events: list[bytes] = []
        for request in batch:
            try:
                x = self._event(request)
                if x is not None and request.slot in sessions.quarantined:
                    raise QuarantinedError(sessions.table.row_seqs[request.slot])
            except Exception as error:
                self._reply_error(request, error)
            else:
                if x is not None:
                    good.append(request)
                    events.append(x)
        if good:
            self._step_events(sessions, good, events)

    def _step_events(self, sessions: Sessions, good: list[Request], events: list[bytes]) -> None:
        slots = np.array([request.slot for request in good])
        X = np.frombuffer(b"".join(events), sessions.dtype).reshape(len(good), -1)
        known_by = np.array([digest(STEP, x) for x in events], np.uint32)
        try:
            sessions.bring(slots)
            seqs, Y = sessions.step_many(slots, X, known_by, "step")
        except (CapacityError, StoreDamagedError):  # more than may be resident, or one is lost
            for request in good:
                self._step_one(request)
            return
        except InputError:
            self._step_apart(sessions, good, events, slots, X)
            return
        except Exception as error:
            for request in good:
                self._reply_error(request, error)
            return
        encode = self._encoder.ok
        for request, seq, y in zip(good, seqs.tolist(), Y, strict=True):
            if request.slot in sessions.quarantined:
                self._reply_error(request, QuarantinedError(seq))
            else:
                self._reply_ok(request, encode(request.ident, seq, y.tobytes()))

    def _step_apart(
        self,
        sessions: Sessions,
        batch: list[Request],
        events: list[bytes],
        slots: Array,
        X: Array,
    ) -> None:
        """A refused batch again: who is refused by himself, the others together."""
        try:
            alone = sessions.refused(slots, X) or range(len(batch))
        except Exception as error:
            for request in batch:
                self._reply_error(request, error)
            return
        for k in alone:
            self._step_one(batch[k])
        rest = sorted(set(range(len(batch))).difference(alone))
        if rest:
            self._step_events(sessions, [batch[k] for k in rest], [events[k] for k in rest])

    def _steps(self, request: Request) -> bytes:
        bulk: _Bulk = request.bulk
        sessions, slots = bulk.sessions, bulk.slots
        table = sessions.table
        _, _, seqs_given, deadline, payload = request.fields
        X = column.matrix(payload, sessions.dtype, sessions.inputs)
        if len(X) != len(slots):
            raise ShapeError(f"steps for {len(slots)} sessions needs as many events, got {len(X)}")
        if bulk.version != table.version:  # somebody took one over since, perhaps
            table.check_owners(slots, bulk.epochs, request.peer)
        known_by = digests(payload if isinstance(payload, bytes) else X.tobytes(), len(slots))
        if seqs_given is not None:
            given = column.integers(seqs_given, "<i8", "seqs")
            if given.shape != slots.shape:
                raise ShapeError(f"steps for {len(slots)} sessions needs as many seqs")
            lasts = table.seqs[slots]
            if not np.array_equal(given, lasts + 1):
                return self._steps_again(request, given, lasts, known_by)
        self._check_deadline(deadline)
        if bulk.version != table.version:
            sessions.bring(slots)
            bulk.group = sessions.group(slots)
            bulk.version = table.version
        seqs, Y = sessions.step_many(slots, X, known_by, "steps", bulk.group)
        if table.version != bulk.version:
            held = [int(slot) for slot in slots if int(slot) in sessions.quarantined]
            self._notify(request.peer, "quarantined", [self._entry(sessions, s) for s in held])
        return self._encoder.ok(request.ident, seqs.tobytes(), Y.tobytes())

    def _steps_again(self, request: Request, given: Array, lasts: Array, known_by: Array) -> bytes:
        """Answer a repeat of `steps`; refuse what is neither all new nor all known."""
        if (given > lasts).any():
            index = int(np.argmax(given != lasts + 1))
            raise WrongSeqError(int(given[index]), int(lasts[index]) + 1, index)
        sessions, slots = request.bulk.sessions, request.bulk.slots
        Y = sessions.answers.find_many(slots, given, known_by, lasts)
        return self._encoder.ok(request.ident, given.tobytes(), Y.tobytes())

    def _run(self, request: Request) -> bytes:
        sessions, slot = request.sessions, request.slot
        assert sessions is not None
        _, _, first, deadline, payload = request.fields
        X = column.matrix(payload, sessions.dtype, sessions.inputs)
        if len(X) > sessions.run_rows:
            raise ShapeError(
                f"a run has {len(X)} events; model {sessions.name!r} takes {sessions.run_rows} in "
                "one message (run_rows): send it in pieces"
            )
        last = sessions.table.row_seqs[slot]
        if not len(X):
            return self._encoder.ok(request.ident, last, b"")
        if first is not None and first != last + 1:
            known_by = digest(RUN, X.tobytes())
            Y = sessions.answers.find_run(slot, first, len(X), known_by, last)
            return self._encoder.ok(request.ident, first + len(X) - 1, Y)
        self._check_deadline(deadline)
        Y = sessions.run(slot, X)
        return self._encoder.ok(request.ident, sessions.table.row_seqs[slot], Y)

    # --- other changes of a session ---

    def _is_new(self, request: Request, seq: int | None, known_by: int) -> bool:
        """Whether a numbered change is the next one; a repeat is not, anything else is refused."""
        assert request.sessions is not None
        last = request.sessions.table.row_seqs[request.slot]
        if seq is None or seq == last + 1:
            return True
        request.sessions.answers.find(request.slot, seq, known_by, last)
        return False

    def _reset(self, request: Request) -> bytes:
        sessions, seq = request.sessions, request.fields.seq
        assert sessions is not None
        if self._is_new(request, seq, digest(RESET, b"")):
            sessions.reset(request.slot)
            seq = sessions.table.row_seqs[request.slot]
        return self._encoder.ok(request.ident, seq)

    def _restore(self, request: Request) -> bytes:
        sessions, (_, _, seq, blob) = request.sessions, request.fields
        assert sessions is not None
        size_max = sessions.model.state_size * sessions.dtype.itemsize + STATE_OVERHEAD_BYTES_MAX
        if len(blob) > size_max:
            raise StateMismatchError(
                f"a state of model {sessions.name!r} has at most {size_max} bytes, got {len(blob)}"
            )
        known_by = digest(RESTORE, blob)
        if self._is_new(request, seq, known_by):
            sessions.restore(request.slot, self._read_state(blob), known_by)
            seq = sessions.table.row_seqs[request.slot]
        return self._encoder.ok(request.ident, seq)

    def _state(self, request: Request) -> bytes:
        sessions, slot = request.sessions, request.slot
        assert sessions is not None
        blob = sessions.state(slot).to_bytes()
        return self._encoder.ok(request.ident, sessions.table.row_seqs[slot], blob)

    def _forecast(self, request: Request) -> bytes:
        sessions, slot = request.sessions, request.slot
        assert sessions is not None
        forecast = sessions.forecast(slot, request.fields.steps).tobytes()
        return self._encoder.ok(request.ident, sessions.table.row_seqs[slot], forecast)

    def _counters(self, request: Request) -> bytes:
        sessions, slot = request.sessions, request.slot
        assert sessions is not None
        counters = sessions.counters(slot)
        return self._encoder.ok(request.ident, sessions.table.row_seqs[slot], counters)

    def _close(self, request: Request) -> bytes:
        sessions, slot = request.sessions, request.slot
        assert sessions is not None
        seq = sessions.table.row_seqs[slot]
        sessions.end(slot, CLOSED)
        return self._encoder.ok(request.ident, seq)

    # --- opening ---

    def _open(self, request: Request) -> bytes:
        sessions = request.sessions
        assert sessions is not None
        name, _, resume, epoch, token = request.fields
        slot = sessions.find(name, self._served_s)
        if slot is None:
            if resume and epoch is not None:
                sessions.check_model(name)
                raise _UnknownNameError(name)
            slot = sessions.open(name, token or 0, self._served_s)
            sessions.table.own(slot, request.peer, self._served_s)
        elif token and sessions.table.tokens[slot] == token:
            self._hand_over(sessions, slot, request.peer)  # the same request again
        elif not resume:
            raise _exists(sessions, name)
        elif epoch is None or sessions.table.row_epochs[slot] == epoch:
            self._hand_over(sessions, slot, request.peer)
            sessions.begin_epoch(slot, token or 0)
        else:
            raise SessionFencedError(
                f"session {name!r} was opened elsewhere since epoch {epoch}: open it with resume "
                "and no epoch to take it back"
            )
        return self._opened(request, sessions, slot)

    def _fork(self, request: Request) -> bytes:
        sessions = request.sessions
        assert sessions is not None
        _, _, seq, name, token = request.fields
        slot = sessions.find(name, self._served_s)
        if slot is None:
            last = sessions.table.row_seqs[request.slot]
            if seq is not None and seq != last:
                raise WrongSeqError(seq, last + 1)
            slot = sessions.fork(request.slot, name, token or 0, self._served_s)
            sessions.table.own(slot, request.peer, self._served_s)
        elif token and sessions.table.tokens[slot] == token:
            self._hand_over(sessions, slot, request.peer)
        else:
            raise _exists(sessions, name)
        return self._opened(request, sessions, slot)

    def _hand_over(self, sessions: Sessions, slot: int, peer: Peer) -> None:
        if sessions.table.peers[slot] is peer:
            return
        entry = self._entry(sessions, slot)
        old = sessions.table.disown(slot, FENCED)
        if old is not None:
            self._notify(old, "fenced", [entry])
            self._forget_if_done(old)
        sessions.table.own(slot, peer, self._served_s)

    def _opened(self, request: Request, sessions: Sessions, slot: int) -> bytes:
        _, handle, epoch, seq = self._entry(sessions, slot)
        model = sessions.model
        return self._encoder.ok(request.ident, handle, epoch, seq, model.name, model.fingerprint)

    # --- what the server tells of itself ---

    def _hello(self, request: Request) -> bytes:
        queue = self._rounds.limits
        return self._encoder.ok(
            request.ident,
            {
                "server": self._server,
                "versions": [wire.VERSION],
                "boot": self._boot,
                "clock": self._now,
                "durability": self._durability,
                "models": [_describe(sessions) for sessions in self.tables],
                "limits": {
                    "frame_bytes": self._limits.frame_bytes,
                    "name_bytes": self._limits.name_bytes,
                    "list_items": self._limits.items,
                    "pending_messages": queue.peer_messages,
                    "pending_bytes": queue.peer_bytes,
                    "ttl_s": self._ttl_s,
                },
            },
        )

    @property
    def _durability(self) -> str:
        return "memory" if self.journal is None else self.journal.store.durability

    def _stats(self, request: Request) -> bytes:
        return self._encoder.ok(request.ident, self.stats(self._now))

    def stats(self, now: float) -> dict[str, Any]:
        """Counters and sizes; what the `stats` operation answers."""
        return {
            "server": self._server,
            "state": self.state.value,
            "uptime_s": now - self._started_s,
            "durability": self._durability,
            "recovered_events": 0 if self.journal is None else self.journal.recovered,
            "clients": sum(1 for peer in self._peers.values() if peer.sessions),
            "pending": self.pending,
            "wait_s": self._rounds.wait_s,
            "messages": self._messages,
            "replies": self._replies,
            "undeliverable": self.undeliverable,
            "dropped": self._dropped,
            "overruns": self.overruns,
            "errors": dict(self._errors),
            "models": {
                sessions.name: {
                    "sessions": sessions.total,
                    "resident": len(sessions.engine),
                    "spilled": sessions.spilled,
                    "quarantined": len(sessions.quarantined),
                    "stepped_alone": sessions.alone,
                    "max_sessions": sessions.engine.max_sessions,
                    "state_bytes": sessions.engine.state_bytes,
                    "events": sessions.events,
                    "readings": sessions.readings(),
                    "micro_batches": sessions.micro_batches,
                    "evicted": sessions.evicted,
                    "fingerprint": sessions.model.fingerprint,
                    "arithmetic": sessions.engine.arithmetic,
                }
                for sessions in self.tables
            },
        }


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


def _head_text(head: Head) -> str:
    """A head as hello tells it; the residuals are as many as the horizon has steps."""
    return json.dumps(head.description() | {"residuals": []})


def _describe(sessions: Sessions) -> dict[str, Any]:
    model = sessions.model
    largest = sessions.engine.largest_event
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "dtype": sessions.dtype.name,
        "head": None if model.head is None else _head_text(model.head),
        "inputs": [[feature.name, feature.unit] for feature in model.inputs],
        "outputs": [[feature.name, feature.unit] for feature in model.outputs],
        "run_rows": sessions.run_rows,
        "forecast_steps": sessions.forecast_steps,
        "window": sessions.answers.window,
        "largest": None if largest is None else [float(number) for number in largest],
    }
