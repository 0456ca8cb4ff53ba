"""`Client`, for threads: what is said to the server, and what its answers mean, is
`ClientProtocol`'s; this moves its frames and waits. No engine is imported here.

Steps are exactly-once: an event has a number, is kept until it is answered, and is sent again
after a lost answer or a restart of the server, which knows by the number what it did. A server
that is away for less than `patience_s` is a pause and not an error. After that nobody knows
whether the last events were stepped; the session then refuses to go on until it was opened
again with ``resume=True``, whose seq tells.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Self

import numpy.typing as npt
import zmq

from streamlstm.errors import ServiceError, StreamLSTMError
from streamlstm.service import operations
from streamlstm.service.client.door import (
    DONTWAIT,
    ClientDoor,
    GroupDoor,
    SessionDoor,
    connected,
)
from streamlstm.service.client.sessions import Call

Array = npt.NDArray[Any]

WAIT_S: Final = 0.01
"""Nothing is due earlier in most waits: the socket's own time-out is cheaper than a poll."""

_CLOSED: Final = "this client is closed: make a new one"


class RemoteSession(SessionDoor[Array, bytes, dict[str, int], None]):
    __doc__ = SessionDoor.__doc__

    def stream(self, events: Iterable[Any]) -> Iterator[Array]:
        """Apply events as they come, and yield their outputs in order.

        Up to a window of them (the model's in `hello`) is on its way while the next is
        awaited from `events`, so that an output may be yielded after later events were
        taken. When the stream ends, or is closed, every event taken was applied or has raised.
        """
        client, core = self._client, self._core
        calls: deque[Call] = deque()
        try:
            for x in core.model.rows(events):
                calls.append(client._start(client._protocol.step, core, x))
                while calls and (calls[0].done or len(calls) >= core.window):
                    client._wait(calls[0])
                    yield calls.popleft().value()
            while calls:
                client._wait(calls[0])
                yield calls.popleft().value()
        finally:
            for call in calls:
                with suppress(StreamLSTMError):
                    client._wait(call)

    def fork(self, name: str) -> RemoteSession:
        """A new session that begins, with seq 0, in this one's state.

        Raises SessionExistsError, CapacityError.
        """
        return RemoteSession(self._client, self._control(operations.FORK, name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteGroup(GroupDoor[Array]):
    __doc__ = GroupDoor.__doc__


class Client(ClientDoor):
    """A connection to a server, for any thread, one request at a time.

    address: as `streamlstm serve` logs it, like "tcp://127.0.0.1:5555".
    patience_s: how long a request may take, with all that is sent again; the first one, which
        asks whether a server is there, 5 s at most.
    Raises ServerTimeoutError if no server answers there.
    """

    def __init__(self, address: str, patience_s: float = 30.0) -> None:
        super().__init__(address, patience_s)
        self._lock = threading.Lock()
        self._socket = connected(address)
        self._socket.set(zmq.RCVTIMEO, round(WAIT_S * 1000))
        self._recv: Callable[..., bytes] = self._socket.recv
        try:
            self._do(self._protocol.say_hello)
        except BaseException:
            self.close()
            raise

    def open(self, name: str, model: str | None = None, resume: bool = False) -> RemoteSession:
        """Open a session; `model` may be left out where the server has one.

        resume: take over a live or stored session of that name with its state (its former
        owner is fenced), or open it if there is none. seq tells what was applied so far.
        Raises SessionExistsError, CapacityError, ModelError.
        """
        return RemoteSession(self, self._do(self._protocol.open, name, model, resume))

    def group(self, sessions: Sequence[RemoteSession]) -> RemoteGroup:
        """Sessions of one model to be stepped together."""
        return RemoteGroup(self, sessions)

    def step(
        self, sessions: Sequence[RemoteSession], X: Any, *, deadline_s: float | None = None
    ) -> Array:
        """One event each for many sessions: X [n, inputs] -> [n, outputs]."""
        return self.group(sessions).step(X, deadline_s=deadline_s)

    def stats(self) -> dict[str, Any]:
        """The server's counters."""
        stats: dict[str, Any] = self._do(self._protocol.stats)
        return stats

    def close(self) -> None:
        """Close the connection; open sessions stay on the server."""
        if os.getpid() == self._pid:  # in a child it is the parent's to close
            with self._lock:
                self._protocol.end(ServiceError(_CLOSED), monotonic())
                self._socket.close(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Each operation is the protocol's method; `now` is the one argument it lacks.

    def _do(self, method: Callable[..., Call], *args: Any) -> Any:
        """Ask for something and wait for what becomes of it."""
        self._check_process()
        with self._lock:
            call = method(*args, now=monotonic())
            self._move(call)
        if call.error is not None:
            raise call.error
        return call.result

    def _start(self, method: Callable[..., Call], *args: Any) -> Call:
        """Ask, take what is here, and don't wait."""
        self._check_process()
        with self._lock:
            call = method(*args, now=monotonic())
            self._send(self._socket)
            self._take_all()
            self._send(self._socket)
        return call

    def _wait(self, call: Call) -> None:
        if not call.done:
            self._check_process()
            with self._lock:
                self._move(call)

    def _move(self, call: Call) -> None:
        """Move frames until a call is done."""
        protocol, recv = self._protocol, self._recv
        try:
            while True:
                self._send(self._socket)
                if call.done:
                    return
                due = protocol.due_s
                try:
                    frame = recv() if due - monotonic() > WAIT_S else recv(DONTWAIT)
                except zmq.Again:
                    now = monotonic()
                    if now + WAIT_S >= due:
                        protocol.tick(now)
                        if 0 < protocol.due_s - now <= WAIT_S:
                            self._socket.poll(1 + int(1000 * (protocol.due_s - now)))
                else:
                    protocol.receive(frame, monotonic())
        except BaseException:
            protocol.abandon(call, monotonic())
            raise

    def _take_all(self) -> None:
        with suppress(zmq.Again):
            while True:
                self._protocol.receive(self._recv(DONTWAIT), monotonic())
