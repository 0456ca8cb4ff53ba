"""The port of ZeroMQ: what has arrived, and what became of a frame that was to be sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from streamlstm.errors import ServiceError
from streamlstm.service.server.connections import Sent
from streamlstm.service.server.port_zmq import Port

PATIENCE_MS = 10_000


def make_port(bind: str) -> Port:
    return Port(bind, peer_messages=1, frame_bytes_max=1 << 20, clock=time.monotonic)


@pytest.fixture
def port() -> Iterator[Port]:
    with make_port("tcp://127.0.0.1:0") as port:
        port.patience(PATIENCE_MS)
        yield port


@pytest.fixture
def dealer(port: Port) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.set(zmq.LINGER, 0)
        sock.set(zmq.RCVTIMEO, PATIENCE_MS)
        sock.connect(port.endpoint)
        yield sock


def first(port: Port) -> tuple[bytes, list[bytes]]:
    return next(iter(port.receive(1, wait=True)))


def test_messages_come_with_their_peer_and_replies_go_back(
    port: Port, dealer: zmq.Socket[bytes]
) -> None:
    dealer.send(b"one")
    peer, frames = first(port)
    assert frames == [b"one"]
    assert port.send(peer, b"reply") is Sent.SENT
    assert dealer.recv() == b"reply"


def test_of_too_many_frames_only_a_few_are_kept(port: Port, dealer: zmq.Socket[bytes]) -> None:
    dealer.send_multipart([b"%d" % n for n in range(100)])
    assert first(port)[1] == [b"0", b"99"]


def test_no_more_than_the_budget(port: Port, dealer: zmq.Socket[bytes]) -> None:
    for n in range(5):
        dealer.send(b"%d" % n)
    got = [first(port)[1]]
    while len(got) < 5:  # the rest is on its way
        some = [frames for _, frames in port.receive(2, wait=False)]
        assert len(some) <= 2
        got += some
    assert got == [[b"%d" % n] for n in range(5)]
    assert list(port.receive(2, wait=False)) == []
    assert port.is_empty


def test_waiting_ends(port: Port) -> None:
    port.patience(1)
    assert list(port.receive(5, wait=True)) == []


def test_who_does_not_read_is_full_and_who_never_was_is_gone(
    port: Port, dealer: zmq.Socket[bytes]
) -> None:
    assert port.send(b"nobody", b"x") is Sent.GONE
    dealer.send(b"here")
    peer, _ = first(port)
    fates = set()
    for _ in range(10_000):  # until the connection and both ends' queues are full
        fates.add(port.send(peer, bytes(1 << 16)))
        if Sent.FULL in fates:
            break
    assert fates == {Sent.SENT, Sent.FULL}


def test_an_address_is_not_taken_from_another(tmp_path: Path) -> None:
    with make_port(f"ipc://{tmp_path}/socket"):
        with pytest.raises(ServiceError, match="another server listens there"):
            make_port(f"ipc://{tmp_path}/socket")
        assert (tmp_path / "socket").exists()
    assert not (tmp_path / "socket").exists()
