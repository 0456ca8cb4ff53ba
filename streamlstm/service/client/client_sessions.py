"""What a client keeps: the server's models, its sessions with seq and fate, groups, calls.

Plain records for client_protocol.py, which moves them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import (
    InputError,
    RepeatedSessionError,
    SequenceError,
    SessionClosedError,
    SessionError,
    SessionEvictedError,
    SessionFencedError,
    SessionQuarantinedError,
    SessionUnknownError,
    StreamLSTMError,
)
from streamlstm.events import acceptable, as_events, rows_of, unacceptable
from streamlstm.head import Head, refusal

Array = npt.NDArray[Any]

RUN_BYTES_MAX: Final = 1 << 20
"""A longer run goes in pieces, so that it does not hold up the server's other clients."""

RESEND_S: Final = 1.0
"""First wait for an answer before the message is sent again."""

OPEN, CLOSED, EVICTED, FENCED, UNKNOWN_FATE, LOST, ROLLED_BACK, QUARANTINED = range(8)
NOTICES: Final = {"evicted": EVICTED, "fenced": FENCED, "quarantined": QUARANTINED}
ENDED: Final = (CLOSED, EVICTED, FENCED, LOST)
_WHY: Final[dict[int, tuple[type[SessionError], str]]] = {
    CLOSED: (SessionClosedError, "session {name!r} is closed: open it again"),
    EVICTED: (
        SessionEvictedError,
        "session {name!r} was idle longer than the server's time-to-live and its state is gone: "
        "open it again",
    ),
    FENCED: (
        SessionFencedError,
        "session {name!r} was opened elsewhere: open it with resume=True to take it back",
    ),
    UNKNOWN_FATE: (
        SequenceError,
        "session {name!r}: no answer came for the last request after event {seq}, so it may or "
        "may not have been applied: open it again with resume=True and compare seq",
    ),
    LOST: (
        SessionUnknownError,
        "session {name!r}: the server does not know it any more; this client had event {seq} "
        "acknowledged{more}: open it again and feed it from the start, or restore a saved state",
    ),
    ROLLED_BACK: (
        SequenceError,
        "session {name!r}: event {seq} was acknowledged, but the server lost it{more}: open it "
        "again with resume=True and feed it again from seq + 1",
    ),
    QUARANTINED: (
        SessionQuarantinedError,
        "session {name!r} is quarantined: event {seq} made its state non-finite; "
        "reset it or restore a state",
    ),
}
LOOKS: Final = frozenset({"state", "forecast", "counters"})
"""Operations that change nothing."""

IN_QUARANTINE: Final = LOOKS | {"reset", "restore", "close"}


@dataclass(frozen=True)
class RemoteModel:
    """A model of the server as `hello` tells it; inputs and outputs are (name, unit) pairs.

    dtype: of events, outputs and states. head: without its residuals.
    """

    name: str
    fingerprint: str
    dtype: np.dtype[Any]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    run_rows: int | None = None  # events of one run message at most
    largest: tuple[float, ...] | None = None  # what each input of an event may be at most
    window: int = 1  # messages of one session that may be unanswered
    head: Head | None = None

    @cached_property
    def shape(self) -> tuple[int]:
        """Of one event."""
        return (len(self.inputs),)

    @cached_property
    def output_size(self) -> int:
        """Bytes of one event's output."""
        return len(self.outputs) * self.dtype.itemsize

    def numbers(self, x: Any, ndim: int) -> Array:
        """Events as an array [..., inputs] of `dtype`, as an embedded engine takes them.

        Raises MissingInputError, DtypeError, ShapeError.
        """
        return as_events(x, [name for name, _ in self.inputs], ndim, self.dtype, self._time)

    def rows(self, events: Any) -> Any:
        """What to stream: of a data frame its rows. Raises as `numbers` does."""
        return rows_of(events, [name for name, _ in self.inputs], self._time)

    @property
    def _time(self) -> str | None:
        return None if self.head is None else self.head.time

    def check(self, X: Array) -> None:
        """Raise NonFiniteError as the engine would. X [rows, inputs]."""
        largest = np.finfo(self.dtype).max if self.largest is None else np.array(self.largest)
        if not acceptable(X, largest, self.head).all():
            raise unacceptable(X, largest, self.head)
        if self.head is None or self.head.missing != "reject":
            return
        lacking = np.isnan(X).any(axis=1)
        if lacking.any():
            index = int(np.argmax(lacking))
            names = [name for name, _ in self.inputs]
            raise refusal(index, dict(zip(names, X[index].tolist(), strict=True)), self.head)

    def pieces(self, X: Array) -> deque[bytes]:
        """A run's X [rows, inputs] as payloads, each good for one message."""
        width = max(len(self.inputs), len(self.outputs)) * X.itemsize
        rows = max(1, RUN_BYTES_MAX // width)
        if self.run_rows is not None:
            rows = min(rows, self.run_rows)
        return deque(X[start : start + rows].tobytes() for start in range(0, len(X), rows))

    def seen(self, op: str, got: Any) -> Any:
        """What one of LOOKS was answered with. Raises ValueError, TypeError."""
        if op == "counters":
            return {str(name): int(count) for name, count in dict(got).items()}
        if type(got) is not bytes:
            raise TypeError("it is not bin")
        if op == "state":
            return got
        quantiles = 0 if self.head is None else len(self.head.quantiles)
        return np.frombuffer(bytearray(got), np.float64).reshape(-1, quantiles)

    def result(self, y: bytes, *shape: int) -> Array:
        """Outputs as the caller's own array, writable."""
        return np.frombuffer(bytearray(y), self.dtype).reshape(*shape, len(self.outputs))


@dataclass(slots=True)
class Ledger:
    """seq and fate of this client's sessions as arrays, so that a group is checked in one pass.

    Row 0 stands for every session that was closed here.
    """

    seqs: Array = field(default_factory=lambda: np.zeros(64, np.int64))
    fates: Array = field(default_factory=lambda: np.full(64, CLOSED, np.uint8))
    sessions: dict[tuple[int, int], ClientSession] = field(default_factory=dict)  # handle, epoch
    free: list[int] = field(default_factory=lambda: list(range(63, 0, -1)))
    changes: int = 0  # grows with every fate and epoch, so that a group looks again only then
    # The same memory for one row at a time: four times as fast as an array's index.
    row_seqs: Any = field(init=False)  # memoryview
    row_fates: Any = field(init=False)

    def __post_init__(self) -> None:
        self.row_seqs, self.row_fates = self.seqs.data, self.fates.data

    def add(self, seq: int) -> int:
        if not self.free:
            size = len(self.seqs)
            self.free.extend(range(2 * size - 1, size - 1, -1))
            self.seqs = np.append(self.seqs, np.zeros(size, np.int64))
            self.fates = np.append(self.fates, np.full(size, CLOSED, np.uint8))
            self.row_seqs, self.row_fates = self.seqs.data, self.fates.data
        row = self.free.pop()
        self.seqs[row] = seq
        self.fates[row] = OPEN
        return row

    def remove(self, row: int) -> None:
        self.changes += 1
        if row:
            self.fates[row] = CLOSED
            self.free.append(row)


class Lane:
    """Messages that keep their order. Every call has one; a session is one."""

    held = False  # nothing is sent until the flight was sent again, or the session re-attached
    detached = False  # (handle, epoch) must not be used any more
    starved = False  # has something to send, but the client's credit is used up

    def __init__(self, window: int = 1) -> None:
        self.window = window
        self.flight: deque[Call] = deque()
        self.queue: deque[Call] = deque()

    @property
    def seq(self) -> int:
        """Number of the last change that was acknowledged."""
        return 0


class ClientSession(Lane):
    """A session as its client knows it."""

    token: int | None = None  # of the re-attachment that is not answered yet
    attach: Call | None = None  # that is on its way
    attach_wait_s = 0.0  # before the next one
    remote_seq = 0  # the server's, when it last re-attached
    more = ""  # what the fate's sentence adds

    def __init__(
        self, ledger: Ledger, model: RemoteModel, name: str, opened: tuple[int, int, int]
    ) -> None:
        super().__init__(model.window)
        handle, epoch, seq = opened
        self.ledger = ledger
        self.model = model
        self.name = name
        self.handle = handle
        self.epoch = epoch
        self.row = ledger.add(seq)
        self._last_seq = seq  # after close
        ledger.sessions[handle, epoch] = self

    @property
    def seq(self) -> int:
        """Number of the last change that was acknowledged."""
        seq: int = self.ledger.row_seqs[self.row] if self.row else self._last_seq
        return seq

    @property
    def fate(self) -> int:
        fate: int = self.ledger.row_fates[self.row]
        return fate

    @property
    def closed(self) -> bool:
        """Closed here, evicted, taken over or gone, as far as this client has heard."""
        return self.fate in ENDED

    def error(self) -> SessionError:
        """Why the session can't go on."""
        cls, sentence = _WHY[self.fate]
        return cls(sentence.format(name=self.name, seq=self.seq, more=self.more))

    def check(self, op: str) -> None:
        """Raise unless `op` may be asked for."""
        fate = self.fate
        if fate and not (fate == QUARANTINED and op in IN_QUARANTINE):
            raise self.error()

    def moved(self, handle: int, epoch: int) -> None:
        """It has another (handle, epoch) now."""
        del self.ledger.sessions[self.handle, self.epoch]
        self.handle, self.epoch = handle, epoch
        self.ledger.sessions[handle, epoch] = self
        self.ledger.changes += 1

    def remove(self) -> None:
        """It was closed."""
        self._last_seq = self.seq
        self.ledger.sessions.pop((self.handle, self.epoch), None)
        self.ledger.remove(self.row)
        self.row = 0


class ClientGroup:
    """Sessions stepped together; handles and epochs are packed once."""

    def __init__(self, ledger: Ledger, sessions: Sequence[ClientSession]) -> None:
        self.sessions = tuple(sessions)
        if not self.sessions:
            raise InputError("a group needs at least one session")
        self.model = self.sessions[0].model
        self.ledger = ledger
        for session in self.sessions:
            session.check("steps")
            if session.ledger is not ledger:
                raise SessionUnknownError(f"session {session.name!r} is another client's")
            if session.model != self.model:
                raise InputError(
                    f"a group has sessions of one model, got {self.model.name!r} "
                    f"and {session.model.name!r}"
                )
        self.rows = np.array([session.row for session in self.sessions])
        self.row_set = frozenset(session.row for session in self.sessions)
        if len(self.row_set) != len(self.rows):
            raise RepeatedSessionError("a group can't have a session twice")
        self.shape = (len(self.sessions), len(self.model.inputs))
        self.refresh()

    @property
    def seqs(self) -> Array:
        """Numbers of the last changes acknowledged, int64 [n]."""
        seqs: Array = self.ledger.seqs[self.rows]
        return seqs

    def refresh(self) -> None:
        """Look at every member again. Raises its SessionError."""
        for session in self.sessions:
            session.check("steps")
        self.pack()

    def pack(self) -> None:
        self.handles = np.array([s.handle for s in self.sessions], "<u8").tobytes()
        self.epochs = np.array([s.epoch for s in self.sessions], "<u4").tobytes()
        self.changes = self.ledger.changes


class Call:
    """A request on its way: `done` once it has a `result` or an `error`.

    on_done: called with the call when it is done.
    """

    done = False
    result: Any = None
    error: StreamLSTMError | None = None
    on_done: Callable[[Call], None] | None = None

    ident = 0  # of the message that is unanswered; 0 while none was sent
    frame = b""
    copies = 0  # sent and not refused
    due_s = inf  # when it is sent again
    wait_s = RESEND_S  # from one copy to the next
    refusal: StreamLSTMError | None = None  # the last one that was no verdict
    takes = 0  # numbers: one for an event, a reset, a restore
    seq: Any = 0  # the first of them
    last = 0
    alone = False  # nothing else of its session may be in flight
    payload = b""
    deadline_s: float | None = None  # of the caller's clock
    args: tuple[Any, ...] = ()
    group: ClientGroup | None = None
    ready = 0  # members of a group that were seen ready
    missing: Set[ClientSession] = frozenset()  # members of a group that re-attach first
    attaches: ClientSession | None = None  # an open that gets this session again

    def __init__(self, op: str, lane: Lane, session: ClientSession | None, expire_s: float) -> None:
        self.op = op
        self.lane = lane
        self.session = session
        self.expire_s = expire_s  # when the caller's patience ends

    def value(self) -> Any:
        """The result; raises the error."""
        if self.error is not None:
            raise self.error
        return self.result


class RunCall(Call):
    """Its pieces go one after the other, each a message of its own."""

    alone = True
    pieces: deque[bytes]  # not sent yet
    parts: list[bytes]  # answers so far

    def next_piece(self) -> None:
        model = self.session.model  # type: ignore[union-attr]
        self.payload = self.pieces.popleft()
        self.takes = len(self.payload) // (len(model.inputs) * model.dtype.itemsize)
