"""`AsyncClient`, for asyncio: as Client, but many requests may be on their way at once."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import numpy.typing as npt
import zmq

from streamlstm.errors import ServiceError
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
_Array: TypeAlias = Coroutine[Any, Any, Array]
_Bytes: TypeAlias = Coroutine[Any, Any, bytes]
_Counts: TypeAlias = Coroutine[Any, Any, dict[str, int]]
_Nothing: TypeAlias = Coroutine[Any, Any, None]

FRAMES_PER_TURN_MAX: Final = 256
"""Other tasks of the loop have their turn after so many."""


class AsyncRemoteSession(SessionDoor[_Array, _Bytes, _Counts, _Nothing]):
    """RemoteSession for asyncio; events are applied in the order of the calls.

    Up to a window of events is on its way at once. If one is refused, those that were called
    behind it are not stepped either (SequenceError). Cancelling a call whose message was sent
    leaves its fate open.
    """

    async def stream(self, events: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Array]:
        """Apply events as they come, and yield their outputs in order, as RemoteSession.stream."""
        client, core = self._client, self._core
        waiting: deque[asyncio.Future[Array]] = deque()
        try:
            async for x in _one_by_one(core.model.rows(events)):
                waiting.append(client._ask(client._protocol.step, core, x)[1])
                while waiting and (waiting[0].done() or len(waiting) >= core.window):
                    y = await asyncio.shield(waiting[0])
                    waiting.popleft()
                    yield y
            while waiting:
                y = await asyncio.shield(waiting[0])
                waiting.popleft()
                yield y
        finally:
            await asyncio.gather(*waiting, return_exceptions=True)

    async def fork(self, name: str) -> AsyncRemoteSession:
        """A new session that begins, with seq 0, in this one's state."""
        core = await self._control(operations.FORK, name)
        return AsyncRemoteSession(self._client, core)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncRemoteGroup(GroupDoor[_Array]):
    """RemoteGroup for asyncio; waits for its members' calls, and they for its."""


class AsyncClient(ClientDoor):
    """Client for asyncio; many requests may be on their way at once.

    Use ``async with AsyncClient(address) as client``, or await `connect` and `close`.
    """

    def __init__(self, address: str, patience_s: float = 30.0) -> None:
        super().__init__(address, patience_s)
        self._socket: zmq.Socket[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    async def connect(self) -> None:
        """Connect and ask the server what it has. Raises ServerTimeoutError."""
        self._loop = asyncio.get_running_loop()
        self._socket = connected(self.address)
        self._loop.add_reader(self._socket.fileno(), self._turn)
        try:
            await self._do(self._protocol.say_hello)
        except BaseException:
            await self.close()
            raise

    async def open(
        self, name: str, model: str | None = None, resume: bool = False
    ) -> AsyncRemoteSession:
        """Open a session, as Client.open does."""
        return AsyncRemoteSession(self, await self._do(self._protocol.open, name, model, resume))

    def group(self, sessions: Sequence[AsyncRemoteSession]) -> AsyncRemoteGroup:
        """Sessions of one model to be stepped together."""
        return AsyncRemoteGroup(self, sessions)

    async def step(
        self, sessions: Sequence[AsyncRemoteSession], X: Any, *, deadline_s: float | None = None
    ) -> Array:
        """One event each for many sessions: X [n, inputs] -> [n, outputs]."""
        return await self.group(sessions).step(X, deadline_s=deadline_s)

    async def stats(self) -> dict[str, Any]:
        """The server's counters."""
        stats: dict[str, Any] = await self._do(self._protocol.stats)
        return stats

    async def close(self) -> None:
        """Close the connection; open sessions stay on the server, waiting calls are told."""
        sock, self._socket = self._socket, None
        if sock is None or os.getpid() != self._pid:
            return
        self._loop.remove_reader(sock.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._protocol.end(
            ServiceError("this client was closed before the answer came"), monotonic()
        )
        sock.close(linger=0)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _do(self, method: Callable[..., Call], *args: Any) -> Any:
        """Ask for something and wait for what becomes of it."""
        call, future = self._ask(method, *args)
        try:
            return await future
        finally:
            if not call.done:  # cancelled
                self._protocol.abandon(call, monotonic())
                self._turn()

    def _ask(self, method: Callable[..., Call], *args: Any) -> tuple[Call, asyncio.Future[Any]]:
        self._check_process()
        if self._socket is None:
            raise ServiceError("this client is not connected: use it in an async with block")
        future: asyncio.Future[Any] = self._loop.create_future()

        def settle(call: Call) -> None:
            if future.done():
                return
            if call.error is None:
                future.set_result(call.result)
            else:
                future.set_exception(call.error)

        call = method(*args, now=monotonic())
        if call.done:
            settle(call)
        else:
            call.on_done = settle
        self._turn()
        return call, future

    def _turn(self) -> None:
        """Send what is to be sent and take what is here.

        The socket's descriptor tells of news once, and any use of the socket may swallow that:
        so it is always read until nothing is left.
        """
        sock, protocol = self._socket, self._protocol
        if sock is None:
            return
        for _ in range(FRAMES_PER_TURN_MAX):
            self._send(sock)
            try:
                frame = sock.recv(DONTWAIT)
            except zmq.Again:
                break
            protocol.receive(frame, monotonic())
        else:
            self._loop.call_soon(self._turn)
        if protocol.due_s < inf and (self._timer is None or protocol.due_s < self._timer_due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = protocol.due_s
            self._timer = self._loop.call_later(self._timer_due - monotonic(), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._turn()  # what is here already need not be sent again
        self._protocol.tick(monotonic())
        self._turn()


async def _one_by_one(events: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(events, AsyncIterable):
        async for x in events:
            yield x
    else:
        for x in events:
            yield x
