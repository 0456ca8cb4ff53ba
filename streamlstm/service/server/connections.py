"""Who is connected: what each peer has here, and who left too much unread.

A reply that finds no room is lost. From then on the peer is cut: nothing is done for it and
nothing is sent to it, until it reads again and was told so (`mend`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from streamlstm.service.server.meters import ServerMeters


class Sent(enum.Enum):
    """What became of a frame that was to be sent."""

    SENT = "sent"
    FULL = "full"  # the peer is there, and does not read
    GONE = "gone"


_SENT: Final = Sent.SENT

Frame: TypeAlias = tuple[bytes, bytes]
"""(address of the peer, message)"""
Send: TypeAlias = Callable[[bytes, bytes], Sent]


@dataclass(slots=True, eq=False)
class Peer:
    """One connection: its address, and how much it has here."""

    address: bytes
    number: int = 0  # never used again; 0 until it has something here, and stands for nobody
    sessions: int = 0
    pending: int = 0  # messages
    pending_bytes: int = 0
    bulks: dict[bytes, Any] = field(default_factory=dict)  # by their handles, as they came


class Connections:
    """All peers that have something here, by address."""

    def __init__(self, meters: ServerMeters) -> None:
        self._meters = meters
        self._peers: dict[bytes, Peer] = {}
        self._numbers = 0
        self.cut: set[bytes] = set()  # for whom nothing is to be done

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def find(self, address: bytes) -> Peer:
        """The peer; a new one is kept when it has something to remember."""
        return self._peers.get(address) or Peer(address)

    def keep(self, peer: Peer) -> None:
        if not peer.number:
            self._numbers += 1
            peer.number = self._numbers
            self._peers[peer.address] = peer

    def forget_if_done(self, peer: Peer) -> None:
        if not peer.pending and not peer.sessions:
            self._peers.pop(peer.address, None)

    def owners(self) -> Iterator[Peer]:
        """Those that own sessions."""
        return (peer for peer in self._peers.values() if peer.sessions)

    # --- sending ---

    def deliver(self, frames: Iterable[Frame], send: Send) -> list[bytes]:
        """Send what a turn gave; who was cut by it."""
        newly_cut = []
        for address, message in frames:
            if self.cut and address in self.cut:
                self._meters.undeliverable += 1
                continue
            sent = send(address, message)
            if sent is not _SENT:
                self._meters.undeliverable += 1
                if sent is Sent.FULL:
                    self.cut.add(address)
                    self._meters.overruns += 1
                    newly_cut.append(address)
        return newly_cut

    def mend(self, notice: bytes, send: Send) -> None:
        """Tell peers that were cut, once they read again; forget those that are gone."""
        for address in list(self.cut):
            if send(address, notice) is not Sent.FULL:
                self.cut.discard(address)

    def check(self) -> None:
        """What holds between two turns. Raises AssertionError."""
        for address, peer in self._peers.items():
            assert peer.address == address
            assert peer.number
            assert peer.sessions or peer.pending, f"{address!r} has nothing here, and is kept"
