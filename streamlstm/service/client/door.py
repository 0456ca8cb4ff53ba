"""What the clients for threads and for asyncio share: one source for both.

Each operation is a method of `ClientProtocol`. A door's `_do` asks it and gives what comes of it:
`Client` waits and gives the value, `AsyncClient` an awaitable of it. So an operation is written
once here, and `Given` types say what it gives at which door.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, Final, Generic, NoReturn, TypeVar

import numpy.typing as npt
import zmq

from streamlstm.errors import ForkedProcessError, ServiceError, SessionError
from streamlstm.head import checked_ahead
from streamlstm.log import log
from streamlstm.service import operations
from streamlstm.service.client.models import RemoteModel
from streamlstm.service.client.protocol import ClientProtocol
from streamlstm.service.client.sessions import ClientGroup, ClientSession
from streamlstm.service.operations import Operation

Array = npt.NDArray[Any]

# What an operation gives at a door: a value, or an awaitable of one.
GivenArray = TypeVar("GivenArray")
GivenBytes = TypeVar("GivenBytes")
GivenCounts = TypeVar("GivenCounts")
GivenNothing = TypeVar("GivenNothing")
Self = TypeVar("Self", bound="SessionDoor[Any, Any, Any, Any]")

HEARTBEAT_S: Final = 5.0
"""A peer that vanished without a word is noticed after two of these, and connected to anew."""

# Plain integers: operations on the enums of pyzmq cost microseconds.
DONTWAIT: Final = int(zmq.DONTWAIT)


class SessionDoor(Generic[GivenArray, GivenBytes, GivenCounts, GivenNothing]):
    """A session on the server; looks like an embedded one.

    deadline_s, wherever it can be given: seconds from now after which the event is refused
    unstepped instead (DeadlineError).
    """

    def __init__(self, client: Any, core: ClientSession) -> None:
        self._client = client
        self._core = core

    def step(self, x: Any, *, deadline_s: float | None = None) -> GivenArray:
        """Apply one event: x [inputs] or {input name: number} -> [outputs]."""
        given: GivenArray = self._client._do(self._client._protocol.step, self._core, x, deadline_s)
        return given

    def run(self, X: Any, *, deadline_s: float | None = None) -> GivenArray:
        """Apply a sequence of events: X [time, inputs] -> [time, outputs].

        A long one goes in pieces of `run_rows`: where the model refuses late readings, those in
        the pieces before such a one are applied, as seq tells.
        """
        given: GivenArray = self._client._do(self._client._protocol.run, self._core, X, deadline_s)
        return given

    def reset(self) -> GivenNothing:
        """Back to the state of a fresh session; takes a number."""
        given: GivenNothing = self._control(operations.RESET)
        return given

    def state(self) -> GivenBytes:
        """The state as bytes, to be kept and given to `restore`; State.from_bytes reads it."""
        given: GivenBytes = self._control(operations.STATE)
        return given

    def forecast(self, steps: int) -> GivenArray:
        """Quantiles of the target in the next `steps` steps: [steps, quantiles] float64, in its
        unit; the session is left as it is. As Session.forecast.

        Raises InputError, EngineError for a model without a head, ShapeError for more steps than
        the server computes at a time (`forecast_steps` of its `hello`).
        """
        given: GivenArray = self._control(operations.FORECAST, checked_ahead(steps))
        return given

    def counters(self) -> GivenCounts:
        """What happened to the session's readings (see head.COUNTERS); {} without a head."""
        given: GivenCounts = self._control(operations.COUNTERS)
        return given

    def restore(self, state: Any) -> GivenNothing:
        """Put back a state: bytes from `state`, or an embedded session's State; takes a number."""
        blob = state if isinstance(state, bytes) else bytes(state.to_bytes())
        given: GivenNothing = self._control(operations.RESTORE, blob)
        return given

    def close(self) -> GivenNothing:
        """End the session on the server and forget its state."""
        given: GivenNothing = self._control(operations.CLOSE)
        return given

    def _control(self, op: Operation, *args: Any) -> Any:
        return self._client._do(self._client._protocol.control, self._core, op, *args)

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


class GroupDoor(Generic[GivenArray]):
    """Sessions stepped together, one event each, in one message."""

    def __init__(self, client: Any, sessions: Sequence[SessionDoor[Any, Any, Any, Any]]) -> None:
        self.sessions = tuple(sessions)
        self._client = client
        self._core: ClientGroup = client._protocol.group([s._core for s in self.sessions])

    def step(self, X: Any, *, deadline_s: float | None = None) -> GivenArray:
        """X [n, inputs] -> [n, outputs]; all are stepped or none.

        A row of NaN: that event made its session's state non-finite, which is quarantined now.
        """
        given: GivenArray = self._client._do(
            self._client._protocol.steps, self._core, X, deadline_s
        )
        return given

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


class ClientDoor:
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
                sock.send(frame, DONTWAIT)
            except zmq.Again:
                pass  # the server does not read: as good as lost, and sent again


def connected(address: str) -> zmq.Socket[bytes]:
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
