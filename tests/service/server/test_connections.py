"""Peers: remembered while they have something here, and cut when they leave too much unread."""

from __future__ import annotations

import pytest

from streamlstm.service.server.connections import Connections, Peer, Sent
from streamlstm.service.server.meters import ServerMeters


class Wire:
    """A port that does with each frame what it is told."""

    def __init__(self) -> None:
        self.fates: dict[bytes, Sent] = {}
        self.sent: list[tuple[bytes, bytes]] = []

    def send(self, peer: bytes, frame: bytes) -> Sent:
        fate = self.fates.get(peer, Sent.SENT)
        if fate is Sent.SENT:
            self.sent.append((peer, frame))
        return fate


def test_who_does_not_read_is_cut_until_he_reads_again() -> None:
    meters, wire = ServerMeters(), Wire()
    connections = Connections(meters)
    wire.fates = {b"A": Sent.FULL, b"C": Sent.GONE}
    frames = [(peer, b"%d" % n) for n in range(2) for peer in (b"A", b"B", b"C")]
    assert connections.deliver(frames, wire.send) == [b"A"]
    assert wire.sent == [(b"B", b"0"), (b"B", b"1")]
    assert connections.cut == {b"A"}
    assert (meters.undeliverable, meters.overruns) == (4, 1)
    wire.fates = {b"A": Sent.FULL}
    connections.mend(b"overrun", wire.send)
    assert connections.cut == {b"A"}  # still not
    wire.fates, wire.sent = {}, []
    assert connections.deliver([(b"A", b"2")], wire.send) == []
    assert wire.sent == []  # not before he was told
    connections.mend(b"overrun", wire.send)
    assert connections.deliver([(b"A", b"3")], wire.send) == []
    assert wire.sent == [(b"A", b"overrun"), (b"A", b"3")]
    connections.check()


def test_one_who_is_gone_is_cut_no_more() -> None:
    connections, wire = Connections(ServerMeters()), Wire()
    for fate in (Sent.FULL, Sent.GONE):
        wire.fates = {b"A": fate}
        connections.deliver([(b"A", b"1")], wire.send)
        connections.mend(b"overrun", wire.send)
    assert connections.cut == set()


def test_peers_are_kept_while_they_have_something() -> None:
    connections = Connections(ServerMeters())
    peer = connections.find(b"A")
    assert connections.find(b"A") is not peer  # nothing yet
    connections.keep(peer)
    peer.sessions = 1
    assert connections.find(b"A") is peer
    assert list(connections.owners()) == [peer]
    connections.forget_if_done(peer)
    assert len(connections) == 1
    peer.sessions = 0
    with pytest.raises(AssertionError, match="nothing here"):
        connections.check()
    connections.forget_if_done(peer)
    assert list(connections) == []
    other = Peer(b"B")
    connections.keep(other)
    assert other.number == 2  # never the same again
