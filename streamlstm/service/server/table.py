"""Who owns which session of a model: its seat, epoch and seq, as arrays.

A seat is a session's from its opening to its end. Where its state is meanwhile, its residence,
goes by the moves of `_MOVES` and no others.
"""

from __future__ import annotations

import enum
import os
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import (
    SessionClosedError,
    SessionError,
    SessionEvictedError,
    SessionFencedError,
    SessionUnknownError,
)
from streamlstm.service.server.connections import Peer

Array = npt.NDArray[Any]

HANDLE_BITS: Final = 32
"""A wire handle is ``model index << 32 | seat``; clients must not look inside."""


class Residence(enum.IntEnum):
    """Where the state of a seat's session is."""

    ENDED = 0  # nobody sits there
    FRESH = 1  # it has just come, and its state is on the way
    RESIDENT = 2  # in the engine
    SPILLED = 3  # in the store
    QUARANTINED = 4  # an event made it non-finite: the last good one is held, if it is known


_MOVES: Final[dict[Residence, frozenset[Residence]]] = {
    Residence.ENDED: frozenset({Residence.FRESH}),
    Residence.FRESH: frozenset(Residence) - {Residence.FRESH},
    # Also to another row of the engine.
    Residence.RESIDENT: frozenset(Residence) - {Residence.FRESH},
    Residence.SPILLED: frozenset({Residence.RESIDENT, Residence.ENDED}),
    Residence.QUARANTINED: frozenset({Residence.RESIDENT, Residence.ENDED}),
}
_MAY: Final = np.array([[to in _MOVES[at] for to in Residence] for at in Residence])

ENDED: Final = int(Residence.ENDED)
FRESH: Final = int(Residence.FRESH)
RESIDENT: Final = int(Residence.RESIDENT)
SPILLED: Final = int(Residence.SPILLED)
QUARANTINED: Final = int(Residence.QUARANTINED)

_LOST: Final[tuple[tuple[type[SessionError], str], ...]] = (
    (SessionUnknownError, "no session has handle {handle} at epoch {epoch}: open it first"),
    (SessionClosedError, "session handle {handle} was closed"),
    (
        SessionFencedError,
        "the session of handle {handle} is another connection's: open it with resume to take it "
        "back",
    ),
    (
        SessionEvictedError,
        "the session of handle {handle} was idle longer than the server's time-to-live and its "
        "state is gone: open it again",
    ),
)
UNKNOWN, CLOSED, FENCED, EVICTED = range(4)


class SessionTable:
    """Sessions by seat. One array for each fact, so that a bulk is checked in one pass."""

    _ARRAYS: Final = {
        "residence": np.uint8,
        "owners": np.int64,  # Peer.number, 0 for nobody
        "epochs": np.uint32,
        "seqs": np.int64,  # of the last change applied
        "tokens": np.int64,  # of the open that began the epoch, 0 for none
        "ids": np.int64,  # in the store
        "dirty": np.bool_,  # changed since its row was written
        "active_s": np.float64,
        "rounds": np.int64,  # the last one with a message for it
        "lost_epochs": np.uint32,
        "lost_causes": np.uint8,
    }
    residence: Array
    owners: Array
    epochs: Array
    seqs: Array
    tokens: Array
    ids: Array
    dirty: Array
    active_s: Array
    rounds: Array
    lost_epochs: Array
    lost_causes: Array

    def __init__(self, index: int) -> None:
        self.index = index
        self.version = 0  # grows whenever a session changes hands or place
        self.by_name: dict[str, int] = {}
        self.names: list[str] = []  # "" for a free seat
        self.peers: list[Peer | None] = []
        self._free: list[int] = []
        # The arrays' memory for one seat at a time: four times as fast as an array's index.
        self.row_active_s: Any = None
        self.row_rounds: Any = None
        self.row_epochs: Any = None
        self.row_seqs: Any = None
        self.row_dirty: Any = None
        for name, dtype in self._ARRAYS.items():
            setattr(self, name, np.zeros(0, dtype))
        self.grow(64)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def seats(self) -> int:
        """How many there are, free ones included."""
        return len(self.names)

    def handle(self, seat: int) -> int:
        """What clients call a seat."""
        return self.index << HANDLE_BITS | seat

    @property
    def full(self) -> bool:
        """Whether `add` needs a `grow` first."""
        return not self._free

    def add(
        self, name: str, session_id: int, *, epoch: int, token: int, seq: int, now: float
    ) -> int:
        """A seat for a session that nobody owns yet; epoch 0 stands for any new one."""
        seat = self._free.pop()
        self.version += 1
        self.by_name[name] = seat
        self.names[seat] = name
        self.move(seat, Residence.FRESH)
        self.ids[seat] = session_id
        self.epochs[seat] = epoch or self._next_epoch(seat)
        self.tokens[seat] = token
        self.seqs[seat] = seq
        self.dirty[seat] = False
        self.active_s[seat] = now
        return seat

    def _next_epoch(self, seat: int) -> int:
        # The first of a seat is random: a handle of an earlier server must not fit by chance.
        last = int(self.lost_epochs[seat]) or int.from_bytes(os.urandom(4))
        return (last + 1) % (1 << 32) or 1

    def remove(self, seat: int, cause: int) -> None:
        """The session ends, or is forgotten here."""
        self.disown(seat, cause)
        self.lost_epochs[seat] = self.epochs[seat]
        self.lost_causes[seat] = cause
        del self.by_name[self.names[seat]]
        self.names[seat] = ""
        self.move(seat, Residence.ENDED)
        self.dirty[seat] = False
        self._free.append(seat)

    def move(self, seats: Any, to: Residence) -> None:
        """The state of a seat's session, or of all of seats [n], is elsewhere from now on."""
        if not np.all(_MAY[self.residence[seats], to]):
            raise AssertionError(f"seats {seats}: {self.residence[seats]} can't become {to!r}")
        self.residence[seats] = to
        self.version += 1

    def own(self, seat: int, peer: Peer, now: float) -> None:
        """Give a session that nobody owns to a peer."""
        self.version += 1
        self.peers[seat] = peer
        self.owners[seat] = peer.number
        self.active_s[seat] = now
        peer.sessions += 1

    def disown(self, seat: int, cause: int) -> Peer | None:
        """Take a session from its owner, if it has one, and remember why."""
        self.version += 1
        peer, self.peers[seat] = self.peers[seat], None
        self.owners[seat] = 0
        self.lost_epochs[seat] = self.epochs[seat]
        self.lost_causes[seat] = cause
        if peer is not None:
            peer.sessions -= 1
        return peer

    def begin_epoch(self, seat: int, token: int) -> None:
        """A new ownership; what was sent under the last one fits no more."""
        self.version += 1
        self.lost_epochs[seat] = self.epochs[seat]
        self.lost_causes[seat] = FENCED
        # A store that power loss took back must not give the same epoch to another: not just + 1.
        stride = 1 + int.from_bytes(os.urandom(2)) if self.ids[seat] else 1
        self.epochs[seat] = (int(self.epochs[seat]) + stride) % (1 << 32) or 1
        self.tokens[seat] = token

    def check_owner(self, seat: int, epoch: int, peer: Peer) -> None:
        """Raise the SessionError that fits unless `peer` owns the seat at that epoch."""
        if not (
            seat < len(self.peers) and self.peers[seat] is peer and self.row_epochs[seat] == epoch
        ):
            raise self.lost(seat, epoch)

    def check_owners(self, seats: Array, epochs: Array, peer: Peer) -> None:
        """`check_owner` for many seats [n] in one pass; the error names the first index."""
        if len(seats) and int(seats.max()) >= len(self.owners):
            index = int(np.argmax(seats >= len(self.owners)))
        else:
            # A peer that has nothing has number 0, as seats that nobody has.
            good = (self.owners[seats] == peer.number) & (self.epochs[seats] == epochs)
            good &= peer.number > 0
            if good.all():
                return
            index = int(np.argmin(good))
        error = self.lost(int(seats[index]), int(epochs[index]))
        raise type(error)(f"index {index}: {error}")

    def lost(self, seat: int, epoch: int) -> SessionError:
        cause = UNKNOWN
        if seat < len(self.names):
            if self.names[seat] and self.epochs[seat] == epoch:
                cause = FENCED  # alive, and another connection's
            elif self.lost_causes[seat] and self.lost_epochs[seat] == epoch:
                cause = int(self.lost_causes[seat])
        cls, sentence = _LOST[cause]
        return cls(sentence.format(handle=self.handle(seat), epoch=epoch))

    def idle(self, before_s: float, round_now: int, at_most: int) -> list[int]:
        """Slots in use, but not since `before_s`, with nothing scheduled."""
        idle = (self.residence != ENDED) & (self.active_s < before_s) & (self.rounds < round_now)
        return [int(seat) for seat in np.flatnonzero(idle)[:at_most]]

    def grow(self, seats: int) -> None:
        """Have so many seats."""
        have = len(self.names)
        extra = seats - have
        self.names.extend([""] * extra)
        self.peers.extend([None] * extra)
        self._free.extend(range(seats - 1, have - 1, -1))
        for name, dtype in self._ARRAYS.items():
            setattr(self, name, np.append(getattr(self, name), np.zeros(extra, dtype)))
        self.rounds[have:] = -1
        self.row_active_s, self.row_rounds = self.active_s.data, self.rounds.data
        self.row_epochs, self.row_seqs = self.epochs.data, self.seqs.data
        self.row_dirty = self.dirty.data

    def check(self) -> None:
        """What holds between two messages. Raises AssertionError."""
        owned = 0
        for name, seat in self.by_name.items():
            peer = self.peers[seat]
            owned += peer is not None
            assert self.names[seat] == name
            assert self.residence[seat] != FRESH, f"the state of {name!r} never came"
            number = 0 if peer is None else peer.number
            assert self.owners[seat] == number, "an owner's number is another peer's"
        assert np.count_nonzero(self.owners) == owned, "an owner's number is another peer's"
        sitting = sorted(self.by_name.values())
        assert np.flatnonzero(self.residence).tolist() == sitting, "a seat has no session"
        assert len(self._free) + len(sitting) == self.seats, "a seat is lost"
