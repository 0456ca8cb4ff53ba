"""Clients of the service: `Client` and, for asyncio, `AsyncClient`.

What is said to the server, and what its answers mean, is `ClientProtocol`'s; the two clients
only move its frames and wait. No engine is imported here.

Steps are exactly-once: an event has a number, is kept until it is answered, and is sent again
after a lost answer or a restart of the server, which knows by the number what it did. A server
that is away for less than `patience_s` is a pause and not an error. After that nobody knows
whether the last events were stepped; the session then refuses to go on until it was opened
again with ``resume=True``, whose seq tells.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, Self, TypeVar

import numpy.typing as npt
import zmq

from streamlstm.errors import ForkedProcessError, ServiceError, SessionError, StreamLSTMError
from streamlstm.head import checked_ahead
from streamlstm.log import log
from streamlstm.service.client.client_protocol import ClientProtocol
from streamlstm.service.client.client_sessions import Call, ClientGroup, ClientSession, RemoteModel

Array = npt.NDArray[Any]
S = TypeVar("S", bound="_Session")

WAIT_S: Final = 0.01
"""Nothing is due earlier in most waits: the socket's own time-out is cheaper than a poll."""

HEARTBEAT_S: Final = 5.0
"""A peer that vanished without a word is noticed after two of these, and connected to anew."""

FRAMES_PER_TURN_MAX: Final = 256
"""Other tasks of the loop have their turn after so many."""

# Plain integers: operations on the enums of pyzmq cost microseconds.
_DONTWAIT: Final = int(zmq.DONTWAIT)
_CLOSED: Final = "this client is closed: make a new one"


class _Session:
    """What RemoteSession and AsyncRemoteSession share."""

    def __init__(self, client: Any, core: ClientSession) -> None:
        self._client = client
        self._core = core

    @property
    def name(self) -> str:
        return self._core.name

    @property
    def model(self) -> RemoteModel:
        return self._core.model

    @property
    def epoch(self) -> int:
        """Of this ownership; grows when the session is attached again."""
        return self._core.epoch

    @property
    def seq(self) -> int:
        """Number of the last change that was acknowledged: an event, a reset or a restore."""
        return self._core.seq

    @property
    def closed(self) -> bool:
        """Closed here, evicted, taken over or gone, as far as this client has heard."""
        return self._core.closed

    def __reduce__(self) -> NoReturn:
        raise SessionError(
            f"session {self.name!r} can't be copied or pickled: fork(name) makes a copy on the "
            "server, state() one to keep, open(name, resume=True) takes it over elsewhere"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.model.name!r}, seq {self.seq}>"


class _Group(Generic[S]):
    """What RemoteGroup and AsyncRemoteGroup share."""

    def __init__(self, client: Any, sessions: Sequence[S]) -> None:
        self.sessions = tuple(sessions)
        self._client = client
        self._core: ClientGroup = client._protocol.group([s._core for s in self.sessions])

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def seqs(self) -> Array:
        """Numbers of the last changes acknowledged, int64 [n]."""
        return self._core.seqs

    def __reduce__(self) -> NoReturn:
        raise SessionError(
            "a group can't be copied or pickled; make another one with client.group(sessions)"
        )

    def __repr__(self) -> str:
        many = "s" * (len(self) != 1)
        return f"<{type(self).__name__} of {len(self)} session{many} of {self._core.model.name!r}>"


class _ClientBase:
    """What Client and AsyncClient share."""

    def __init__(self, address: str, patience_s: float) -> None:
        self.address = address
        self.patience_s = patience_s
        self._pid = os.getpid()
        self._protocol = ClientProtocol(address, patience_s, random.Random(), log.log)

    @property
    def hello(self) -> dict[str, Any]:
        """What the server said of itself."""
        return self._protocol.hello

    @property
    def models(self) -> dict[str, RemoteModel]:
        return self._protocol.models

    @property
    def stopping(self) -> bool:
        """Whether the server said that it stops."""
        return self._protocol.stopping

    def __reduce__(self) -> NoReturn:
        raise ServiceError("a client can't be copied or pickled; connect another one")

    def __repr__(self) -> str:
        models = ", ".join(map(repr, self.models)) or "no model known yet"
        return f"<{type(self).__name__} of {self.address}: {models}>"

    def _check_process(self) -> None:
        # The socket's threads don't exist in a child, and its lock may be held for ever.
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                "this client was created before os.fork and can't be used in the child; "
                "create a client in each process"
            )

    def _send(self, sock: zmq.Socket[bytes]) -> None:
        for frame in self._protocol.outgoing():
            try:  # noqa: SIM105 - `suppress` costs as much as the rest
                sock.send(frame, _DONTWAIT)
            except zmq.Again:
                pass  # the server does not read: as good as lost, and sent again


def _blob(state: Any) -> bytes:
    return state if isinstance(state, bytes) else bytes(state.to_bytes())


# --- sync -----------------------------------------------------------------------------------------


class RemoteSession(_Session):
    """A session on the server; looks like an embedded one.

    deadline_s, wherever it can be given: seconds from now after which the event is refused
    unstepped instead (DeadlineError).
    """

    def step(self, x: Any, *, deadline_s: float | None = None) -> Array:
        """Apply one event: x [inputs] or {input name: number} -> [outputs]."""
        y: Array = self._client._do(self._client._protocol.step, self._core, x, deadline_s)
        return y

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

    def run(self, X: Any, *, deadline_s: float | None = None) -> Array:
        """Apply a sequence of events: X [time, inputs] -> [time, outputs].

        A long one goes in pieces of `run_rows`: where the model refuses late readings, those in
        the pieces before such a one are applied, as seq tells.
        """
        Y: Array = self._client._do(self._client._protocol.run, self._core, X, deadline_s)
        return Y

    def reset(self) -> None:
        """Back to the state of a fresh session; takes a number."""
        self._client._control(self._core, "reset")

    def state(self) -> bytes:
        """The state as bytes, to be kept and given to `restore`; State.from_bytes reads it."""
        state: bytes = self._client._control(self._core, "state")
        return state

    def forecast(self, steps: int) -> Array:
        """Quantiles of the target in the next `steps` steps: [steps, quantiles] float64, in its
        unit; the session is left as it is. As Session.forecast.

        Raises InputError, EngineError for a model without a head, ShapeError for more steps than
        the server computes at a time (`forecast_steps` of its `hello`).
        """
        forecast: Array = self._client._control(self._core, "forecast", checked_ahead(steps))
        return forecast

    def counters(self) -> dict[str, int]:
        """What happened to the session's readings (see head.COUNTERS); {} without a head."""
        counters: dict[str, int] = self._client._control(self._core, "counters")
        return counters

    def restore(self, state: Any) -> None:
        """Put back a state: bytes from `state`, or an embedded session's State; takes a number."""
        self._client._control(self._core, "restore", _blob(state))

    def fork(self, name: str) -> RemoteSession:
        """A new session that begins, with seq 0, in this one's state.

        Raises SessionExistsError, CapacityError.
        """
        return RemoteSession(self._client, self._client._control(self._core, "fork", name))

    def close(self) -> None:
        """End the session on the server and forget its state."""
        self._client._control(self._core, "close")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteGroup(_Group[RemoteSession]):
    """Sessions stepped together, one event each, in one message."""

    def step(self, X: Any, *, deadline_s: float | None = None) -> Array:
        """X [n, inputs] -> [n, outputs]; all are stepped or none.

        A row of NaN: that event made its session's state non-finite, which is quarantined now.
        """
        Y: Array = self._client._do(self._client._protocol.steps, self._core, X, deadline_s)
        return Y


class Client(_ClientBase):
    """A connection to a server, for any thread, one request at a time.

    address: as `streamlstm serve` logs it, like "tcp://127.0.0.1:5555".
    patience_s: how long a request may take, with all that is sent again; the first one, which
        asks whether a server is there, 5 s at most.
    Raises ServerTimeoutError if no server answers there.
    """

    def __init__(self, address: str, patience_s: float = 30.0) -> None:
        super().__init__(address, patience_s)
        self._lock = threading.Lock()
        self._socket = _connect(address)
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

    def _control(self, core: ClientSession, op: str, *args: Any) -> Any:
        return self._do(self._protocol.control, core, op, *args)

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
                    frame = recv() if due - monotonic() > WAIT_S else recv(_DONTWAIT)
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
                self._protocol.receive(self._recv(_DONTWAIT), monotonic())


# --- asyncio --------------------------------------------------------------------------------------


class AsyncRemoteSession(_Session):
    """RemoteSession for asyncio; events are applied in the order of the calls.

    Up to a window of events is on its way at once. If one is refused, those that were called
    behind it are not stepped either (SequenceError). Cancelling a call whose message was sent
    leaves its fate open.
    """

    async def step(self, x: Any, *, deadline_s: float | None = None) -> Array:
        """Apply one event: x [inputs] or {input name: number} -> [outputs]."""
        y: Array = await self._client._do(self._client._protocol.step, self._core, x, deadline_s)
        return y

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

    async def run(self, X: Any, *, deadline_s: float | None = None) -> Array:
        """Apply a sequence of events: X [time, inputs] -> [time, outputs]."""
        Y: Array = await self._client._do(self._client._protocol.run, self._core, X, deadline_s)
        return Y

    async def reset(self) -> None:
        """Back to the state of a fresh session; takes a number."""
        await self._client._control(self._core, "reset")

    async def state(self) -> bytes:
        """The state as bytes, to be kept and given to `restore`."""
        state: bytes = await self._client._control(self._core, "state")
        return state

    async def forecast(self, steps: int) -> Array:
        """Quantiles of the next steps [steps, quantiles], as RemoteSession.forecast."""
        forecast: Array = await self._client._control(self._core, "forecast", checked_ahead(steps))
        return forecast

    async def counters(self) -> dict[str, int]:
        """What happened to the session's readings (see head.COUNTERS); {} without a head."""
        counters: dict[str, int] = await self._client._control(self._core, "counters")
        return counters

    async def restore(self, state: Any) -> None:
        """Put back a state: bytes from `state`, or an embedded session's State; takes a number."""
        await self._client._control(self._core, "restore", _blob(state))

    async def fork(self, name: str) -> AsyncRemoteSession:
        """A new session that begins, with seq 0, in this one's state."""
        core = await self._client._control(self._core, "fork", name)
        return AsyncRemoteSession(self._client, core)

    async def close(self) -> None:
        """End the session on the server and forget its state."""
        await self._client._control(self._core, "close")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncRemoteGroup(_Group[AsyncRemoteSession]):
    """RemoteGroup for asyncio; waits for its members' calls, and they for its."""

    async def step(self, X: Any, *, deadline_s: float | None = None) -> Array:
        """X [n, inputs] -> [n, outputs]; all are stepped or none."""
        Y: Array = await self._client._do(self._client._protocol.steps, self._core, X, deadline_s)
        return Y


class AsyncClient(_ClientBase):
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
        self._socket = _connect(self.address)
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

    async def _control(self, core: ClientSession, op: str, *args: Any) -> Any:
        return await self._do(self._protocol.control, core, op, *args)

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
                frame = sock.recv(_DONTWAIT)
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


def _connect(address: str) -> zmq.Socket[bytes]:
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    sock.set(zmq.LINGER, 0)
    sock.set(zmq.HEARTBEAT_IVL, round(HEARTBEAT_S * 1000))
    try:
        sock.connect(address)
    except zmq.ZMQError as error:
        sock.close()
        raise ServiceError(
            f"{address!r} is not an address like tcp://127.0.0.1:5555: {error}"
        ) from None
    return sock
