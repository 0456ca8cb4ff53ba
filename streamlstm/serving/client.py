"""Clients of the service: `Client` and, for asyncio, `AsyncClient`.

Every operation is written once, as a generator that yields the request and
is sent the reply's values (or thrown the error); the two clients only move
the bytes. No engine is imported here.

Steps are at-most-once: an event is sent with the number seq + 1 and is never
sent again. After a time-out nobody knows whether it was stepped; the session
then refuses to go on until it was opened again with ``resume=True``, whose
seq tells.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import zmq
import zmq.asyncio

from streamlstm.errors import (
    ForkedProcessError,
    InputError,
    NonFiniteError,
    RepeatedSessionError,
    SequenceError,
    ServerInternalError,
    ServerTimeoutError,
    ServiceError,
    SessionClosedError,
    SessionError,
    SessionEvictedError,
    SessionFencedError,
    SessionUnknownError,
    ShapeError,
    StreamLSTMError,
)
from streamlstm.events import as_events
from streamlstm.serving import wire

Array = npt.NDArray[Any]
T = TypeVar("T")
S = TypeVar("S", bound="_Session")

Request: TypeAlias = tuple[str, tuple[Any, ...]]
Operation: TypeAlias = Generator[Request, tuple[Any, ...], T]
"""Yields (op, fields), is sent the values of the "ok" reply, returns the result."""

RUN_BYTES_MAX: Final = 1 << 20
"""A longer run goes in pieces, so that it does not hold up the server's other clients."""

_REPLY_LIMITS: Final = wire.Limits(frame_bytes=1 << 30, items=1 << 20, depth=8)

OPEN, CLOSED, EVICTED, FENCED, UNKNOWN_FATE = range(5)
_NOTICES: Final = {"evicted": EVICTED, "fenced": FENCED}
_ENDED: Final[tuple[tuple[type[SessionError], int], ...]] = (
    (SessionEvictedError, EVICTED),
    (SessionFencedError, FENCED),
    (SessionClosedError, CLOSED),
    (SessionUnknownError, CLOSED),
)


class _LostError(ServiceError):
    """The connection ended while a request waited for its reply."""


_NO_ANSWER: Final = (ServerTimeoutError, ServerInternalError, wire.BadMessageError, _LostError)
_WHY: Final[dict[int, tuple[type[SessionError], str]]] = {
    CLOSED: (SessionClosedError, "session {name!r} is closed: open it again"),
    EVICTED: (
        SessionEvictedError,
        "session {name!r} was idle longer than the server's time-to-live and its state is gone: "
        "open it again",
    ),
    FENCED: (
        SessionFencedError,
        "session {name!r} was opened elsewhere: open it with resume=True to take it back",
    ),
    UNKNOWN_FATE: (
        SequenceError,
        "session {name!r}: no answer came for the last request after event {seq}, so it may or "
        "may not have been applied: open it again with resume=True and compare seq",
    ),
}


@dataclass(frozen=True)
class RemoteModel:
    """A model of the server as `hello` tells it; inputs and outputs are (name, unit) pairs."""

    name: str
    fingerprint: str
    dtype: np.dtype[Any]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    run_rows: int | None = None  # events of one run message at most
    largest: tuple[float, ...] | None = None  # what each input of an event may be at most

    @cached_property
    def shape(self) -> tuple[int]:
        """Of one event."""
        return (len(self.inputs),)

    def numbers(self, x: Any, ndim: int) -> Array:
        """Events as an array [..., inputs] of the model's dtype, as an embedded engine takes them.

        Raises MissingInputError, DtypeError, ShapeError.
        """
        return as_events(x, [name for name, _ in self.inputs], ndim, self.dtype)

    def check(self, X: Array) -> None:
        """Raise NonFiniteError as the engine would. X [rows, inputs]."""
        largest = np.finfo(self.dtype).max if self.largest is None else np.array(self.largest)
        good = np.abs(X) <= largest  # NaN is not
        if not good.all():
            row, column = np.unravel_index(int(np.argmin(good)), good.shape)
            raise NonFiniteError(
                f"event {row} holds {X[row, column]:g} as {self.inputs[int(column)][0]}: NaN, "
                "infinite or too large; nothing was stepped"
            )

    def pieces(self, X: Array) -> list[Array]:
        """A run's X [rows, inputs], at least one piece, each good for one message."""
        width = max(len(self.inputs), len(self.outputs)) * X.itemsize
        rows = max(1, RUN_BYTES_MAX // width)
        if self.run_rows is not None:
            rows = min(rows, self.run_rows)
        return [X[start : start + rows] for start in range(0, max(1, len(X)), rows)]


@dataclass(slots=True)
class _Ledger:
    """seq and fate of this client's sessions as arrays, so that a group is checked in one pass.

    Row 0 stands for every session that was closed here.
    """

    seqs: Array = field(default_factory=lambda: np.zeros(64, np.int64))
    fates: Array = field(default_factory=lambda: np.full(64, CLOSED, np.uint8))
    rows: dict[tuple[int, int], int] = field(default_factory=dict)  # by (handle, epoch)
    free: list[int] = field(default_factory=lambda: list(range(63, 0, -1)))
    changes: int = 0  # grows whenever a fate does, so that a group looks at its fates only then
    # The same memory for one row at a time: four times as fast as an array's index.
    row_seqs: Any = field(init=False)  # memoryview
    row_fates: Any = field(init=False)

    def __post_init__(self) -> None:
        self.row_seqs, self.row_fates = self.seqs.data, self.fates.data

    def add(self, handle: int, epoch: int, seq: int) -> int:
        if not self.free:
            size = len(self.seqs)
            self.free.extend(range(2 * size - 1, size - 1, -1))
            self.seqs = np.append(self.seqs, np.zeros(size, np.int64))
            self.fates = np.append(self.fates, np.full(size, CLOSED, np.uint8))
            self.row_seqs, self.row_fates = self.seqs.data, self.fates.data
        row = self.free.pop()
        self.rows[handle, epoch] = row
        self.seqs[row] = seq
        self.fates[row] = OPEN
        return row

    def remove(self, handle: int, epoch: int) -> None:
        row = self.rows.pop((handle, epoch), 0)
        self.changes += 1
        if row:
            self.fates[row] = CLOSED
            self.free.append(row)

    def settle(self, rows: Any, error: BaseException) -> None:
        """Note what a failed request means for the session in `rows`.

        A refusal changed nothing. Whatever else kept the reply away leaves it open whether
        the request was done.
        """
        self.changes += 1
        for cls, fate in _ENDED:
            if isinstance(error, cls):
                self.fates[rows] = fate
                return
        if not isinstance(error, StreamLSTMError) or isinstance(error, _NO_ANSWER):
            self.fates[rows] = UNKNOWN_FATE

    def notice(self, kind: object, entries: object) -> None:
        self.changes += 1
        if not isinstance(kind, str) or kind not in _NOTICES or not isinstance(entries, tuple):
            return
        for entry in entries:
            with suppress(TypeError, ValueError):  # not an entry as we know it
                _name, handle, epoch, *_ = entry
                row = self.rows.get((handle, epoch))
                if row is not None:
                    self.fates[row] = _NOTICES[kind]


# --- operations, written once ---------------------------------------------------------------------


class _Session:
    """What RemoteSession and AsyncRemoteSession share."""

    def __init__(
        self, ledger: _Ledger, model: RemoteModel, name: str, opened: tuple[int, int, int]
    ) -> None:
        handle, epoch, seq = opened
        self._ledger = ledger
        self._handle = handle
        self._row = ledger.add(handle, epoch, seq)
        self._last_seq = seq  # after close
        self.name = name
        self.epoch = epoch
        self.model = model

    @property
    def seq(self) -> int:
        """Number of the last event that was applied."""
        seq: int = self._ledger.row_seqs[self._row] if self._row else self._last_seq
        return seq

    @property
    def closed(self) -> bool:
        """Closed here, evicted or taken over, as far as this client has heard."""
        return self._ledger.row_fates[self._row] in (CLOSED, EVICTED, FENCED)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.model.name!r}, seq {self.seq}>"

    def _check(self) -> None:
        fate = self._ledger.row_fates[self._row]
        if fate:
            cls, sentence = _WHY[fate]
            raise cls(sentence.format(name=self.name, seq=self.seq))

    def _ask(self, op: str, *fields: Any) -> Operation[tuple[Any, ...]]:
        """A request for this session; a reply that does not come leaves its fate open."""
        self._check()
        try:
            values = yield op, (self._handle, self.epoch, *fields)
            self._ledger.row_seqs[self._row] = values[0]
        except BaseException as error:
            self._ledger.settle(self._row, error)
            raise
        return values

    def _event(self, x: Any) -> tuple[Any, ...]:
        """A step's fields."""
        ledger, row, model = self._ledger, self._row, self.model
        if ledger.row_fates[row]:
            self._check()
        if type(x) is not np.ndarray or x.dtype is not model.dtype or x.shape != model.shape:
            x = model.numbers(x, 1)
        return self._handle, self.epoch, ledger.row_seqs[row] + 1, None, x.tobytes()

    def _stepped(self, values: tuple[Any, ...]) -> Array:
        """A step's result."""
        self._ledger.row_seqs[self._row], y = values
        return np.frombuffer(bytearray(y), self.model.dtype)  # the caller's own, and writable

    def _step(self, x: Any) -> Operation[Array]:
        event = self._event(x)
        try:
            return self._stepped((yield "step", event))
        except BaseException as error:
            self._ledger.settle(self._row, error)
            raise

    def _run(self, X: Any) -> Operation[Array]:
        X = self.model.numbers(X, 2)
        self.model.check(X)  # looked at here, because a long run goes in pieces
        parts = []
        for piece in self.model.pieces(X):
            _, part = yield from self._ask("run", self.seq + 1, None, piece.tobytes())
            parts.append(part)
        Y = np.frombuffer(bytearray(b"".join(parts)), self.model.dtype)
        return Y.reshape(len(X), len(self.model.outputs))

    def _reset(self) -> Operation[None]:
        yield from self._ask("reset")

    def _state(self) -> Operation[bytes]:
        _, blob = yield from self._ask("state")
        return bytes(blob)

    def _restore(self, state: Any) -> Operation[None]:
        blob = state if isinstance(state, bytes) else state.to_bytes()
        yield from self._ask("restore", blob)

    def _close(self) -> Operation[None]:
        if self._row and not self.closed:
            with suppress(*(cls for cls, _ in _ENDED)):  # lost already: as good as closed
                yield "close", (self._handle, self.epoch)
        self._last_seq = self.seq
        self._row = 0
        self._ledger.remove(self._handle, self.epoch)


class _Group(Generic[S]):
    """What RemoteGroup and AsyncRemoteGroup share; handles and epochs are packed once."""

    def __init__(self, ledger: _Ledger, sessions: Sequence[S]) -> None:
        self.sessions = tuple(sessions)
        if not self.sessions:
            raise InputError("a group needs at least one session")
        self._model = self.sessions[0].model
        for session in self.sessions:
            session._check()
            if session._ledger is not ledger:
                raise SessionUnknownError(f"session {session.name!r} is another client's")
            if session.model is not self._model:
                raise InputError(
                    f"a group has sessions of one model, got {self._model.name!r} "
                    f"and {session.model.name!r}"
                )
        self._ledger = ledger
        self._changes = ledger.changes
        self._rows = np.array([session._row for session in self.sessions])
        if len(np.unique(self._rows)) != len(self._rows):
            raise RepeatedSessionError("a group can't have a session twice")
        self._shape = (len(self.sessions), len(self._model.inputs))
        handles = [session._handle for session in self.sessions]
        self._handles = np.array(handles, "<u8").tobytes()
        self._epochs = np.array([session.epoch for session in self.sessions], "<u4").tobytes()

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def seqs(self) -> Array:
        """Numbers of the last events applied, int64 [n]."""
        seqs: Array = self._ledger.seqs[self._rows]
        return seqs

    def _step(self, X: Any) -> Operation[Array]:
        model, ledger, rows = self._model, self._ledger, self._rows
        if type(X) is not np.ndarray or X.dtype is not model.dtype or X.shape != self._shape:
            X = model.numbers(X, 2)
            if len(X) != len(rows):
                raise ShapeError(f"a group of {len(rows)} sessions needs as many rows of X")
        if self._changes != ledger.changes:
            for session in self.sessions:
                session._check()
            self._changes = ledger.changes
        seqs = ledger.seqs[rows] + 1
        try:
            _, Y = yield (
                "steps",
                (self._handles, self._epochs, seqs.tobytes(), None, X.tobytes()),
            )
        except SessionError:
            raise  # the reply does not say which session: its own next request will
        except BaseException as error:
            ledger.settle(rows, error)
            raise
        ledger.seqs[rows] = seqs
        return np.frombuffer(bytearray(Y), model.dtype).reshape(len(rows), len(model.outputs))


class _ClientBase(Generic[S]):
    """Requests, replies, ids, notices and sessions; no socket."""

    def _check_process(self) -> None:
        # The socket's threads don't exist in a child, and its lock may be held for ever.
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                "this client was created before os.fork and can't be used in the child; "
                "create a client in each process"
            )

    def __init__(self, address: str, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise ServiceError(f"timeout_s must be more than 0, got {timeout_s}")
        self.address = address
        self.timeout_s = timeout_s
        self.hello: dict[str, Any] = {}
        self.models: dict[str, RemoteModel] = {}
        self.stopping = False  # the server said so
        self._ledger = _Ledger()
        self._pid = os.getpid()
        self._encode = wire.Encoder().request
        self._decode = wire.Decoder(_REPLY_LIMITS).reply
        self._ident = 0

    def _noted(self, message: tuple[Any, ...]) -> StreamLSTMError | None:
        """The error that a message stands for, if it is one; a notice is noted."""
        status = message[1]
        if status == "ok":
            return None
        if status == "error" and len(message) >= 5:
            return wire.error_from_wire(message[3], message[4])
        if status == "notice" and len(message) >= 4 and message[2] is None:
            if message[3] == "stopping":
                self.stopping = True
            self._ledger.notice(message[3], message[4] if len(message) > 4 else None)
            return None
        raise wire.BadMessageError(f"the server sent a {status!r} message that makes no sense here")

    def _timed_out(self, op: str) -> ServerTimeoutError:
        return ServerTimeoutError(
            f"no answer to {op} from {self.address} within {self.timeout_s:g} s: "
            "is the server running there?"
        )

    def _say_hello(self) -> Operation[None]:
        (info,) = yield "hello", ({"client": "streamlstm-python"},)
        self.hello = info
        self.models = {
            model["name"]: RemoteModel(
                model["name"],
                model["fingerprint"],
                np.dtype(model["dtype"]),
                model["inputs"],
                model["outputs"],
                model.get("run_rows"),
                model.get("largest"),
            )
            for model in info["models"]
        }

    def _open(self, kind: type[S], name: str, model: str | None, resume: bool) -> Operation[S]:
        handle, epoch, seq, model_name = yield "open", (name, model, resume)
        return kind(self._ledger, self.models[model_name], name, (handle, epoch, seq))

    def _stats(self) -> Operation[dict[str, Any]]:
        (stats,) = yield "stats", ()
        return dict(stats)


# --- sync -----------------------------------------------------------------------------------------


class RemoteSession(_Session):
    """A session on the server; looks like an embedded one."""

    _client: Client

    def step(self, x: Any) -> Array:
        """Apply one event: x [inputs] or {input name: number} -> [outputs]."""
        # `_step` without its generator: a round trip is made of microseconds.
        client = self._client
        client._check_process()
        with client._lock:
            event = self._event(x)
            try:
                return self._stepped(client._exchange("step", event))
            except BaseException as error:
                self._ledger.settle(self._row, error)
                raise

    def run(self, X: Any) -> Array:
        """Apply a sequence of events: X [time, inputs] -> [time, outputs]."""
        return self._client._drive(self._run(X))

    def reset(self) -> None:
        """Back to the state of a fresh session; seq goes on."""
        self._client._drive(self._reset())

    def state(self) -> bytes:
        """The state as bytes, to be kept and given to `restore`; State.from_bytes reads it."""
        return self._client._drive(self._state())

    def restore(self, state: Any) -> None:
        """Put back a state: bytes from `state`, or an embedded session's State; seq goes on."""
        self._client._drive(self._restore(state))

    def close(self) -> None:
        """End the session on the server and forget its state."""
        self._client._drive(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteGroup(_Group[RemoteSession]):
    """Sessions stepped together, one event each, in one message."""

    _client: Client

    def step(self, X: Any) -> Array:
        """X [n, inputs] -> [n, outputs]; all are stepped or none."""
        return self._client._drive(self._step(X))


class Client(_ClientBase[RemoteSession]):
    """A connection to a server, for any thread, one request at a time.

    address: as `streamlstm serve` logs it, like "tcp://127.0.0.1:5555".
    timeout_s: how long any request waits for its answer.
    Raises ServerTimeoutError if no server answers there.
    """

    def __init__(self, address: str, timeout_s: float = 5.0) -> None:
        super().__init__(address, timeout_s)
        self._lock = threading.Lock()
        self._socket = _connect(zmq.Context.instance(), address, zmq.DEALER)
        self._timeout_ms = max(1, round(timeout_s * 1000))
        self._socket.set(zmq.RCVTIMEO, self._timeout_ms)
        self._socket.set(zmq.SNDTIMEO, self._timeout_ms)
        try:
            self._drive(self._say_hello())
        except BaseException:
            self.close()
            raise

    def open(self, name: str, model: str | None = None, resume: bool = False) -> RemoteSession:
        """Open a session; `model` may be left out where the server has one.

        resume: take over a live session of that name with its state (its former owner
        is fenced), or open it if there is none. seq tells what was applied so far.
        Raises SessionExistsError, CapacityError, ModelError.
        """
        session = self._drive(self._open(RemoteSession, name, model, resume))
        session._client = self
        return session

    def group(self, sessions: Sequence[RemoteSession]) -> RemoteGroup:
        """Sessions of one model to be stepped together."""
        group = RemoteGroup(self._ledger, sessions)
        group._client = self
        return group

    def step(self, sessions: Sequence[RemoteSession], X: Any) -> Array:
        """One event each for many sessions: X [n, inputs] -> [n, outputs]."""
        return self.group(sessions).step(X)

    def stats(self) -> dict[str, Any]:
        """The server's counters."""
        return self._drive(self._stats())

    def close(self) -> None:
        """Close the connection; open sessions stay on the server."""
        if os.getpid() == self._pid:  # in a child it is the parent's to close
            with self._lock:
                self._socket.close(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, operation: Operation[T]) -> T:
        self._check_process()
        with self._lock:
            try:
                request = next(operation)
                while True:
                    try:
                        values = self._exchange(*request)
                    except BaseException as error:
                        request = operation.throw(error)
                    else:
                        request = operation.send(values)
            except StopIteration as stop:
                result: T = stop.value
                return result

    def _exchange(self, op: str, fields: tuple[Any, ...]) -> tuple[Any, ...]:
        """One request, its reply's values; raises what the reply says, or ServerTimeoutError."""
        self._ident = ident = self._ident + 1
        try:
            self._socket.send(self._encode(op, ident, fields))
            reply = self._decode(self._socket.recv())
            if reply[2] != ident or reply[1] != "ok":
                reply = self._awaited(op, reply)
        except zmq.Again:
            raise self._timed_out(op) from None
        except zmq.ZMQError:
            if not self._socket.closed:
                raise
            raise ServiceError("this client is closed: make a new one") from None
        if len(reply) != 3 + wire.REPLY_VALUES[op]:
            raise _wrong_values(op, reply)
        return reply[3:]

    def _awaited(self, op: str, message: tuple[Any, ...]) -> tuple[Any, ...]:
        """The "ok" reply to the last request, past notices and late replies to earlier ones."""
        until_s = time.monotonic() + self.timeout_s
        while True:
            error = self._noted(message)
            if message[2] == self._ident:
                if error is not None:
                    raise error
                return message
            if time.monotonic() > until_s:
                raise self._timed_out(op)
            message = self._decode(self._socket.recv())


# --- asyncio --------------------------------------------------------------------------------------


class AsyncRemoteSession(_Session):
    """RemoteSession for asyncio; concurrent calls on one session are done one after the other."""

    _client: AsyncClient

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._turn = asyncio.Lock()

    async def step(self, x: Any) -> Array:
        """Apply one event: x [inputs] or {input name: number} -> [outputs]."""
        async with self._turn:
            return await self._client._drive(self._step(x))

    async def run(self, X: Any) -> Array:
        """Apply a sequence of events: X [time, inputs] -> [time, outputs]."""
        async with self._turn:
            return await self._client._drive(self._run(X))

    async def reset(self) -> None:
        """Back to the state of a fresh session; seq goes on."""
        async with self._turn:
            await self._client._drive(self._reset())

    async def state(self) -> bytes:
        """The state as bytes, to be kept and given to `restore`."""
        async with self._turn:
            return await self._client._drive(self._state())

    async def restore(self, state: Any) -> None:
        """Put back a state: bytes from `state`, or an embedded session's State; seq goes on."""
        async with self._turn:
            await self._client._drive(self._restore(state))

    async def close(self) -> None:
        """End the session on the server and forget its state."""
        async with self._turn:
            await self._client._drive(self._close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncRemoteGroup(_Group[AsyncRemoteSession]):
    """RemoteGroup for asyncio; waits for its members' calls, and they for its."""

    _client: AsyncClient

    def __init__(self, ledger: _Ledger, sessions: Sequence[AsyncRemoteSession]) -> None:
        super().__init__(ledger, sessions)
        # In the same order in all groups, or two that overlap could wait for each other.
        members = sorted(self.sessions, key=lambda s: (s._handle, s.epoch))
        self._turns = [session._turn for session in members]

    async def step(self, X: Any) -> Array:
        """X [n, inputs] -> [n, outputs]; all are stepped or none."""
        async with _all(self._turns):
            return await self._client._drive(self._step(X))


@asynccontextmanager
async def _all(turns: Sequence[asyncio.Lock]) -> AsyncIterator[None]:
    held = 0
    try:
        for turn in turns:
            await turn.acquire()
            held += 1
        yield
    finally:
        for turn in turns[:held]:
            turn.release()


class AsyncClient(_ClientBase[AsyncRemoteSession]):
    """Client for asyncio; many requests may be on their way at once.

    Use ``async with AsyncClient(address) as client``, or await `connect` and `close`.
    """

    def __init__(self, address: str, timeout_s: float = 5.0) -> None:
        super().__init__(address, timeout_s)
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[wire.Ident, asyncio.Future[tuple[Any, ...]]] = {}
        self._credit = asyncio.Semaphore(1)

    async def connect(self) -> None:
        """Connect and ask the server what it has. Raises ServerTimeoutError."""
        self._socket = _connect(zmq.asyncio.Context.instance(), self.address, zmq.DEALER)
        self._reader = asyncio.create_task(self._read(self._socket))
        try:
            await self._drive(self._say_hello())
        except BaseException:
            await self.close()
            raise
        # Half of what the server lets wait: its other half is for what it has not yet answered.
        self._credit = asyncio.Semaphore(max(1, self.hello["limits"]["pending_messages"] // 2))

    async def open(
        self, name: str, model: str | None = None, resume: bool = False
    ) -> AsyncRemoteSession:
        """Open a session, as Client.open does."""
        session = await self._drive(self._open(AsyncRemoteSession, name, model, resume))
        session._client = self
        return session

    def group(self, sessions: Sequence[AsyncRemoteSession]) -> AsyncRemoteGroup:
        """Sessions of one model to be stepped together."""
        group = AsyncRemoteGroup(self._ledger, sessions)
        group._client = self
        return group

    async def step(self, sessions: Sequence[AsyncRemoteSession], X: Any) -> Array:
        """One event each for many sessions: X [n, inputs] -> [n, outputs]."""
        return await self.group(sessions).step(X)

    async def stats(self) -> dict[str, Any]:
        """The server's counters."""
        return await self._drive(self._stats())

    async def close(self) -> None:
        """Close the connection; open sessions stay on the server."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        self._fail(_LostError("this client was closed before the answer came"))

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

    async def _drive(self, operation: Operation[T]) -> T:
        try:
            request = next(operation)
            while True:
                try:
                    values = await self._exchange(*request)
                except BaseException as error:
                    request = operation.throw(error)
                else:
                    request = operation.send(values)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _exchange(self, op: str, fields: tuple[Any, ...]) -> tuple[Any, ...]:
        async with self._credit:
            if self._socket is None or self._reader is None or self._reader.done():
                raise ServiceError("this client is not connected: use it in an async with block")
            self._ident = ident = self._ident + 1
            message = self._encode(op, ident, fields)
            future = asyncio.get_running_loop().create_future()
            self._waiting[ident] = future
            try:
                async with asyncio.timeout(self.timeout_s):
                    await self._socket.send(message)
                    reply: tuple[Any, ...] = await future
            except TimeoutError:
                raise self._timed_out(op) from None
            finally:
                del self._waiting[ident]
        if len(reply) != 3 + wire.REPLY_VALUES[op]:
            raise _wrong_values(op, reply)
        return reply[3:]

    async def _read(self, sock: zmq.asyncio.Socket) -> None:
        try:
            while True:
                frame = await sock.recv()
                try:
                    self._take(frame)
                except wire.BadMessageError as bad:
                    self._fail(bad)
                except Exception as error:
                    self._fail(wire.BadMessageError(f"a reply can't be read: {error}"))
        finally:
            self._fail(_LostError(f"nothing more comes from {self.address}: connect anew"))

    def _take(self, frame: bytes) -> None:
        message = self._decode(frame)
        error = self._noted(message)
        future = self._waiting.get(message[2])
        if future is None or future.done():
            return
        if error is None:
            future.set_result(message)
        else:
            future.set_exception(error)

    def _fail(self, error: ServiceError) -> None:
        """A reply that can't be read could be anyone's: all that wait are told."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)


def _wrong_values(op: str, reply: tuple[Any, ...]) -> wire.BadMessageError:
    return wire.BadMessageError(f"the reply to {op} has {len(reply) - 3} values")


def _connect(context: Any, address: str, kind: int) -> Any:
    sock = context.socket(kind)
    sock.set(zmq.LINGER, 0)
    try:
        sock.connect(address)
    except zmq.ZMQError as error:
        sock.close()
        raise ServiceError(
            f"{address!r} is not an address like tcp://127.0.0.1:5555: {error}"
        ) from None
    return sock
