"""Who owns which row of one engine: lists for one event, arrays so that a bulk takes one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from streamlstm.errors import (
    SessionClosedError,
    SessionError,
    SessionEvictedError,
    SessionFencedError,
    SessionUnknownError,
)

Array = npt.NDArray[Any]

HANDLE_BITS: Final = 32
"""A wire handle is ``model index << 32 | engine handle``; clients must not look inside."""

RUN_WORK_MAX: Final = 200_000_000
"""Parameters times rows of one run: some 0.1 s in which nobody else is served."""


# What the service needs of an engine. streamlstm.engine has it, and so has the tests' fake one.


class FeatureLike(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...


class ModelLike(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def inputs(self) -> tuple[FeatureLike, ...]: ...
    @property
    def outputs(self) -> tuple[FeatureLike, ...]: ...
    @property
    def state_size(self) -> int: ...
    @property
    def parameters(self) -> int: ...


class SessionLike(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def handle(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def seq(self) -> int: ...
    def step_into(self, x: Any, out: Any) -> None: ...
    def run(self, X: Any) -> Array: ...
    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...
    def reset(self) -> None: ...
    def take_over(self) -> Any: ...
    def close(self) -> None: ...


class GroupLike(Protocol):
    @property
    def seqs(self) -> Array: ...
    def step(self, X: Any) -> Array: ...


class EngineLike(Protocol):
    @property
    def model(self) -> Any: ...  # a ModelLike
    @property
    def max_sessions(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object) -> bool: ...
    def __getitem__(self, name: str) -> Any: ...  # a SessionLike
    def open(self, name: str) -> Any: ...
    def step(self, sessions: Any, X: Any) -> Array: ...
    def group_by_handle(self, handles: Any, epochs: Any) -> Any: ...  # a GroupLike


@dataclass(slots=True, eq=False)
class Peer:
    """One connection: its ZeroMQ routing id, and how much it has here."""

    address: bytes
    number: int  # never used again; 0 stands for nobody
    sessions: int = 0
    pending: int = 0
    pending_bytes: int = 0
    bulks: dict[bytes, Bulk] = field(default_factory=dict)  # by their handles, as they came


@dataclass(slots=True, eq=False)
class Bulk:
    """The sessions of a steps message, found and checked; good while the table's version is."""

    table: SessionTable
    version: int
    epochs_given: object
    rows: Array
    epochs: Array
    group: GroupLike


@dataclass(slots=True)
class Counters:
    events: int = 0
    micro_batches: int = 0
    evicted: int = 0


_LOST: Final[tuple[tuple[type[SessionError], str], ...]] = (
    (SessionUnknownError, "no session has handle {handle} at epoch {epoch}: open it first"),
    (SessionClosedError, "session handle {handle} was closed"),
    (
        SessionFencedError,
        "another owner opened the session of handle {handle}: open it with resume to take it back",
    ),
    (
        SessionEvictedError,
        "the session of handle {handle} was idle longer than the server's time-to-live and its "
        "state is gone: open it again",
    ),
)
UNKNOWN, CLOSED, FENCED, EVICTED = range(4)


@dataclass(slots=True, eq=False)
class SessionTable:
    """The sessions of one engine as the service sees them, one entry for each engine row."""

    engine: EngineLike
    index: int
    version: int = 0  # grows whenever a session is bound or released
    counters: Counters = field(default_factory=Counters)
    sessions: list[Any] = field(default_factory=list)  # SessionLike or None
    peers: list[Peer | None] = field(default_factory=list)
    owners: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # Peer.number
    epochs: Array = field(default_factory=lambda: np.zeros(0, np.uint32))
    active_s: Array = field(default_factory=lambda: np.zeros(0, np.float64))
    rounds: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # last one scheduled
    lost_epochs: Array = field(default_factory=lambda: np.zeros(0, np.uint32))
    lost_causes: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    model: ModelLike = field(init=False)
    dtype: np.dtype[Any] = field(init=False)
    inputs: int = field(init=False)
    event_size: int = field(init=False)  # bytes
    run_rows: int = field(init=False)  # of one run at most
    x: Array = field(init=False)  # one event and its output, and their bytes
    y: Array = field(init=False)
    x_bytes: Any = field(init=False)
    y_bytes: Any = field(init=False)
    # The same memory for one row at a time: four times as fast as an array's index.
    row_active_s: Any = field(init=False)  # memoryview
    row_rounds: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.engine.model
        self.dtype = np.dtype(self.model.dtype)
        self.inputs = len(self.model.inputs)
        self.event_size = self.inputs * self.dtype.itemsize
        # A step multiplies and adds about as often as the model has parameters.
        self.run_rows = max(1, RUN_WORK_MAX // self.model.parameters)
        self.x = np.zeros(self.inputs, self.dtype)
        self.y = np.zeros(len(self.model.outputs), self.dtype)
        self.x_bytes, self.y_bytes = self.x.data.cast("B"), self.y.data.cast("B")
        self._grow(64)

    @property
    def name(self) -> str:
        return self.model.name

    def wire_handle(self, row: int) -> int:
        return self.index << HANDLE_BITS | row

    def bind(self, session: SessionLike, peer: Peer, now: float) -> None:
        """Give a session that nobody has to a peer."""
        row = session.handle
        if row >= len(self.sessions):
            self._grow(row + 1)
        self.version += 1
        self.sessions[row] = session
        self.peers[row] = peer
        self.owners[row] = peer.number
        self.epochs[row] = session.epoch
        self.active_s[row] = now
        peer.sessions += 1

    def release(self, row: int, cause: int) -> None:
        """Take a session from its owner and remember why."""
        peer = self.peers[row]
        assert peer is not None
        self.version += 1
        peer.sessions -= 1
        self.lost_epochs[row] = self.epochs[row]
        self.lost_causes[row] = cause
        self.sessions[row] = self.peers[row] = None
        self.owners[row] = 0

    def owned(self, row: int, epoch: int, peer: Peer) -> SessionLike:
        """The session of a row that `peer` owns at that epoch; else the SessionError that fits."""
        if row < len(self.peers) and self.peers[row] is peer:
            session: SessionLike = self.sessions[row]
            if session.epoch == epoch:
                return session
        raise self.lost(row, epoch)

    def check_owned(self, rows: Array, epochs: Array, peer: Peer) -> None:
        """`owned` for many rows [n] in one pass; the error names the first index that is not."""
        if len(rows) and int(rows.max()) >= len(self.owners):
            index = int(np.argmax(rows >= len(self.owners)))
        else:
            # A peer that has nothing has number 0, as rows that nobody has.
            good = (self.owners[rows] == peer.number) & (self.epochs[rows] == epochs)
            good &= peer.number > 0
            if good.all():
                return
            index = int(np.argmin(good))
        error = self.lost(int(rows[index]), int(epochs[index]))
        raise type(error)(f"index {index}: {error}")

    def lost(self, row: int, epoch: int) -> SessionError:
        cause = UNKNOWN
        if row < len(self.peers):
            if self.lost_causes[row] and self.lost_epochs[row] == epoch:
                cause = int(self.lost_causes[row])
            elif self.peers[row] is not None and self.epochs[row] == epoch:
                cause = FENCED  # alive, and another connection's
        cls, sentence = _LOST[cause]
        return cls(sentence.format(handle=self.wire_handle(row), epoch=epoch))

    def idle(self, before_s: float, round_now: int, at_most: int) -> list[int]:
        """Rows unused since `before_s` with nothing scheduled."""
        idle = (self.owners > 0) & (self.active_s < before_s) & (self.rounds < round_now)
        return [int(row) for row in np.flatnonzero(idle)[:at_most]]

    def _grow(self, rows: int) -> None:
        size = max(rows, 2 * len(self.sessions))
        extra = size - len(self.sessions)
        self.sessions.extend([None] * extra)
        self.peers.extend([None] * extra)
        self.owners = np.append(self.owners, np.zeros(extra, self.owners.dtype))
        self.epochs = np.append(self.epochs, np.zeros(extra, self.epochs.dtype))
        self.active_s = np.append(self.active_s, np.zeros(extra))
        self.rounds = np.append(self.rounds, np.full(extra, -1, self.rounds.dtype))
        self.lost_epochs = np.append(self.lost_epochs, np.zeros(extra, self.lost_epochs.dtype))
        self.lost_causes = np.append(self.lost_causes, np.zeros(extra, self.lost_causes.dtype))
        self.row_active_s = self.active_s.data
        self.row_rounds = self.rounds.data
