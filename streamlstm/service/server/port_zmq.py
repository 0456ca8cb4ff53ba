"""A port of ZeroMQ: one ROUTER socket, from which messages come and to which frames go.

A port has `receive(budget, wait)` and `send(peer, frame)`, and nothing else of it is known above.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import zmq

from streamlstm.errors import ServiceError
from streamlstm.service.server.connections import Sent

UNREAD_HERE_MAX: Final = 64
"""Messages of a peer that libzmq holds, some 8 KiB each; more wait in the peer's connection."""

UNREAD_MAX: Final = 4
"""Replies and notices that may lie unread, times the messages that may wait of a peer.

libzmq hears of what was read in steps of half its limit, so that half of this is sure.
"""

QUEUED_S: Final = 50e-6
"""A message received faster than this was there already; waking up takes longer."""

WAIT_MS: Final = 200
"""Longest wait of an idle port, and so the longest reaction to a signal."""

LINGER_MS: Final = 1000

# Plain integers: operations on the enums of pyzmq cost microseconds, and a turn has few.
_DONTWAIT: Final = int(zmq.DONTWAIT)
_SNDMORE: Final = int(zmq.SNDMORE) | _DONTWAIT
_RCVMORE: Final = zmq.RCVMORE
_SENT: Final = Sent.SENT


class Port:
    """Binds; a context manager that closes the socket.

    `endpoint` is the actual address, with the port that ``tcp://127.0.0.1:0`` got.
    peer_messages: that may wait of a peer. Raises ServiceError when the address can't be bound.
    """

    def __init__(
        self,
        bind: str,
        *,
        peer_messages: int,
        frame_bytes_max: int,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._ipc_path = ""
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        # What is a little too large still gets a reply; what is far too large, a closed connection.
        self._socket.set(zmq.MAXMSGSIZE, 2 * frame_bytes_max)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.RCVHWM, UNREAD_HERE_MAX)
        self._socket.set(zmq.SNDHWM, UNREAD_MAX * peer_messages)
        self._socket.set(zmq.RCVTIMEO, WAIT_MS)
        self._socket.set(zmq.LINGER, LINGER_MS)
        try:
            _refuse_taken_ipc(bind)
            self._socket.bind(bind)
        except (zmq.ZMQError, ServiceError) as error:
            self.close()
            raise ServiceError(f"can't listen on {bind}: {error}") from None
        self.endpoint = str(self._socket.get_string(zmq.LAST_ENDPOINT))
        self._ipc_path = _ipc_path(self.endpoint)

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; frames already sent get up to a second to leave."""
        if self._ipc_path and not self._socket.closed:
            # libzmq leaves the file. Before the close: afterwards it could be another server's.
            with suppress(FileNotFoundError):
                os.unlink(self._ipc_path)
        self._socket.close()
        self._context.term()

    def receive(self, budget: int, *, wait: bool) -> Iterator[tuple[bytes, list[bytes]]]:
        """Peer and frames of what has arrived, `budget` messages at most.

        wait: for a first one, up to `patience`. What had to be waited for is most likely alone,
        and comes alone.
        """
        recv = self._socket.recv
        try:
            if wait:
                started_s = self._clock()
                peer = recv()
                waited_s = self._clock() - started_s
                yield peer, self._frames()
                if waited_s > QUEUED_S:
                    return
                budget -= 1
            while budget > 0:
                yield recv(_DONTWAIT), self._frames()
                budget -= 1
        except zmq.Again:
            pass

    def _frames(self) -> list[bytes]:
        """The rest of a message; of too many frames only as many are kept as show that."""
        sock = self._socket
        frames = [sock.recv()]  # a ROUTER's message has its peer and at least one frame
        while sock.get(_RCVMORE):
            frames[1:] = [sock.recv()]
        return frames

    def patience(self, milliseconds: int) -> None:
        """How long `receive` waits from now on."""
        self._socket.set(zmq.RCVTIMEO, milliseconds)

    @property
    def is_empty(self) -> bool:
        """Whether all that has arrived was received."""
        return not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN

    def send(self, peer: bytes, frame: bytes) -> Sent:
        """Hand a frame to the connection; never waits."""
        send = self._socket.send
        try:
            send(peer, _SNDMORE)
            send(frame, _DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                return Sent.FULL
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        return _SENT


def _refuse_taken_ipc(bind: str) -> None:
    """libzmq silently takes an ipc path from a living server, and any file away; look first."""
    path = _ipc_path(bind)
    if not path or not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ServiceError("a file that is no socket is there; give another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return  # left over from a server that was killed
    raise ServiceError("another server listens there")


def _ipc_path(address: str) -> str:
    """The socket file of an ipc address; "" for others, and where libzmq picks the name."""
    path = address.removeprefix("ipc://")
    return "" if path == address or path.startswith(("@", "*")) else path
