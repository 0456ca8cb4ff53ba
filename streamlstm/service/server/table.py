"""Who owns which session of a model: its slot, epoch and seq, as arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
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

Array = npt.NDArray[Any]

HANDLE_BITS: Final = 32
"""A wire handle is ``model index << 32 | slot``; clients must not look inside."""


@dataclass(slots=True, eq=False)
class Peer:
    """One connection: its ZeroMQ routing id, and how much it has here."""

    address: bytes
    number: int  # never used again; 0 stands for nobody
    sessions: int = 0
    pending: int = 0
    pending_bytes: int = 0
    bulks: dict[bytes, Any] = field(default_factory=dict)  # by their handles, as they came


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
    """Sessions by slot: a slot is a session's from its opening to its end, wherever its state is.

    One array for each fact, so that a bulk is checked in one pass.
    """

    _ARRAYS: Final = {
        "used": np.bool_,  # a session's
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
    used: Array
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
        self.names: list[str] = []  # "" for a free slot
        self.peers: list[Peer | None] = []
        self._free: list[int] = []
        # The arrays' memory for one slot at a time: four times as fast as an array's index.
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
    def slots(self) -> int:
        """How many there are, free ones included."""
        return len(self.names)

    def handle(self, slot: int) -> int:
        """What clients call a slot."""
        return self.index << HANDLE_BITS | slot

    @property
    def full(self) -> bool:
        """Whether `add` needs a `grow` first."""
        return not self._free

    def add(
        self, name: str, session_id: int, *, epoch: int, token: int, seq: int, now: float
    ) -> int:
        """A slot for a session that nobody owns yet; epoch 0 stands for any new one."""
        slot = self._free.pop()
        self.version += 1
        self.by_name[name] = slot
        self.names[slot] = name
        self.used[slot] = True
        self.ids[slot] = session_id
        self.epochs[slot] = epoch or self._next_epoch(slot)
        self.tokens[slot] = token
        self.seqs[slot] = seq
        self.dirty[slot] = False
        self.active_s[slot] = now
        return slot

    def _next_epoch(self, slot: int) -> int:
        # The first of a slot is random: a handle of an earlier server must not fit by chance.
        last = int(self.lost_epochs[slot]) or int.from_bytes(os.urandom(4))
        return (last + 1) % (1 << 32) or 1

    def remove(self, slot: int, cause: int) -> None:
        """The session ends, or is forgotten here."""
        self.disown(slot, cause)
        self.lost_epochs[slot] = self.epochs[slot]
        self.lost_causes[slot] = cause
        del self.by_name[self.names[slot]]
        self.names[slot] = ""
        self.used[slot] = False
        self.dirty[slot] = False
        self._free.append(slot)

    def own(self, slot: int, peer: Peer, now: float) -> None:
        """Give a session that nobody owns to a peer."""
        self.version += 1
        self.peers[slot] = peer
        self.owners[slot] = peer.number
        self.active_s[slot] = now
        peer.sessions += 1

    def disown(self, slot: int, cause: int) -> Peer | None:
        """Take a session from its owner, if it has one, and remember why."""
        self.version += 1
        peer, self.peers[slot] = self.peers[slot], None
        self.owners[slot] = 0
        self.lost_epochs[slot] = self.epochs[slot]
        self.lost_causes[slot] = cause
        if peer is not None:
            peer.sessions -= 1
        return peer

    def begin_epoch(self, slot: int, token: int) -> None:
        """A new ownership; what was sent under the last one fits no more."""
        self.version += 1
        self.lost_epochs[slot] = self.epochs[slot]
        self.lost_causes[slot] = FENCED
        # A store that power loss took back must not give the same epoch to another: not just + 1.
        stride = 1 + int.from_bytes(os.urandom(2)) if self.ids[slot] else 1
        self.epochs[slot] = (int(self.epochs[slot]) + stride) % (1 << 32) or 1
        self.tokens[slot] = token

    def check_owner(self, slot: int, epoch: int, peer: Peer) -> None:
        """Raise the SessionError that fits unless `peer` owns the slot at that epoch."""
        if not (
            slot < len(self.peers) and self.peers[slot] is peer and self.row_epochs[slot] == epoch
        ):
            raise self.lost(slot, epoch)

    def check_owners(self, slots: Array, epochs: Array, peer: Peer) -> None:
        """`check_owner` for many slots [n] in one pass; the error names the first index."""
        if len(slots) and int(slots.max()) >= len(self.owners):
            index = int(np.argmax(slots >= len(self.owners)))
        else:
            # A peer that has nothing has number 0, as slots that nobody has.
            good = (self.owners[slots] == peer.number) & (self.epochs[slots] == epochs)
            good &= peer.number > 0
            if good.all():
                return
            index = int(np.argmin(good))
        error = self.lost(int(slots[index]), int(epochs[index]))
        raise type(error)(f"index {index}: {error}")

    def lost(self, slot: int, epoch: int) -> SessionError:
        cause = UNKNOWN
        if slot < len(self.names):
            if self.names[slot] and self.epochs[slot] == epoch:
                cause = FENCED  # alive, and another connection's
            elif self.lost_causes[slot] and self.lost_epochs[slot] == epoch:
                cause = int(self.lost_causes[slot])
        cls, sentence = _LOST[cause]
        return cls(sentence.format(handle=self.handle(slot), epoch=epoch))

    def idle(self, before_s: float, round_now: int, at_most: int) -> list[int]:
        """Slots in use, but not since `before_s`, with nothing scheduled."""
        idle = self.used & (self.active_s < before_s) & (self.rounds < round_now)
        return [int(slot) for slot in np.flatnonzero(idle)[:at_most]]

    def grow(self, slots: int) -> None:
        """Have so many slots."""
        have = len(self.names)
        extra = slots - have
        self.names.extend([""] * extra)
        self.peers.extend([None] * extra)
        self._free.extend(range(slots - 1, have - 1, -1))
        for name, dtype in self._ARRAYS.items():
            setattr(self, name, np.append(getattr(self, name), np.zeros(extra, dtype)))
        self.rounds[have:] = -1
        self.row_active_s, self.row_rounds = self.active_s.data, self.rounds.data
        self.row_epochs, self.row_seqs = self.epochs.data, self.seqs.data
        self.row_dirty = self.dirty.data
