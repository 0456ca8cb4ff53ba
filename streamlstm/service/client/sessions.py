"""What a client keeps: its sessions with seq and fate, groups of them, calls on their lanes.

Plain records, which the parts of the protocol move.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import (
    InputError,
    RepeatedSessionError,
    SessionError,
    SessionUnknownError,
    StreamLSTMError,
)
from streamlstm.service import operations
from streamlstm.service.client.attachment import Attachment, checked
from streamlstm.service.client.fates import ENDED, IN_QUARANTINE, Fate, error_of
from streamlstm.service.client.models import RemoteModel
from streamlstm.service.operations import Operation

Array = npt.NDArray[Any]

RESEND_S: Final = 1.0
"""First wait for an answer before the message is sent again."""


@dataclass(slots=True)
class Ledger:
    """seq and fate of this client's sessions as arrays, so that a group is checked in one pass.

    Row 0 stands for every session that was closed here.
    """

    seqs: Array = field(default_factory=lambda: np.zeros(64, np.int64))
    fates: Array = field(default_factory=lambda: np.full(64, Fate.CLOSED, np.uint8))
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
            self.fates = np.append(self.fates, np.full(size, Fate.CLOSED, np.uint8))
            self.row_seqs, self.row_fates = self.seqs.data, self.fates.data
        row = self.free.pop()
        self.seqs[row] = seq
        self.fates[row] = Fate.OPEN
        return row

    def remove(self, row: int) -> None:
        self.changes += 1
        if row:
            self.fates[row] = Fate.CLOSED
            self.free.append(row)


class Lane:
    """Messages that keep their order. Every call has one; a session is one."""

    held = False  # nothing is sent until the flight was sent again, or the session re-attached
    starved = False  # has something to send, but the client's credit is used up

    def __init__(self, window: int = 1) -> None:
        self.window = window
        self.flight: deque[Call] = deque()
        self.queue: deque[Call] = deque()

    @property
    def seq(self) -> int:
        """Number of the last change that was acknowledged."""
        return 0

    @property
    def detached(self) -> bool:
        """Whether nothing may be sent until the session was attached again."""
        return False


class ClientSession(Lane):
    """A session as its client knows it."""

    attachment = Attachment.ATTACHED
    token: int | None = None  # of the re-attachment that is not answered yet
    attach: Call | None = None  # the call of one that was begun
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
        return error_of(self.fate, self.name, self.seq, self.more)

    def check(self, op: Operation) -> None:
        """Raise unless `op` may be asked for."""
        fate = self.fate
        if fate and not (fate == Fate.QUARANTINED and op in IN_QUARANTINE):
            raise self.error()

    def become(self, attachment: Attachment) -> None:
        """Go on to another attachment. Raises AssertionError where none leads there."""
        self.attachment = checked(self.attachment, attachment)

    @property
    def detached(self) -> bool:
        """(handle, epoch) must not be used any more."""
        return self.attachment is not Attachment.ATTACHED

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
            session.check(operations.STEPS)
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
            session.check(operations.STEPS)
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

    def __init__(
        self, op: Operation, lane: Lane, session: ClientSession | None, expire_s: float
    ) -> None:
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
