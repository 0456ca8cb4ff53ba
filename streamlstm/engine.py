"""The embedded API: an Engine keeps the sessions of one model and steps them.

    engine = Engine(model)
    pump = engine.open("pump-17")
    y = pump.step(x)

An event's way: step() checks the array, takes the engine's lock, checks that the session
is still this handle's, runs the network over the session's state row, advances seq. A
call that raises has changed nothing. Nothing handed out is a view of live state.

Any thread may call; one at a time gets in, the others wait without the GIL. After
os.fork the child must create an engine of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import msgpack
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm import blas_threads

try:
    from streamlstm import kernels
    from streamlstm._engine import EngineCore, Group, SessionCore
    from streamlstm._network import Network
except ImportError as e:
    if not (e.name or "").startswith("streamlstm._"):
        raise
    raise ImportError(
        "streamlstm's compiled modules are missing or out of date beside "
        f"{__file__}; outside its source folder run `pip install` on it, inside it "
        "run `python setup.py build_ext --inplace`"
    ) from e
from streamlstm.errors import (
    CapacityError,
    EngineClosedError,
    EngineError,
    ModelError,
    NonFiniteError,
    SessionClosedError,
    SessionError,
    SessionExistsError,
    SessionFencedError,
    SessionUnknownError,
    StateMismatchError,
    StreamLSTMError,
)
from streamlstm.events import as_events
from streamlstm.model import LSTM, Model

Array = NDArray[Any]

# Rows are numbered by 32 bits.
MAX_SESSIONS = 2**31
MAX_THREADS = 1024
# |h| is at most 1; a learned or restored one is taken up to here.
H_LARGEST = 1e6
# Layers of a saved state that from_bytes takes.
LAYERS_MAX = 1024


class Engine(EngineCore):
    """Live sessions of one model, `max_sessions` at most.

    threads: how many share a large batch, the caller's included; bits do not depend on it,
    except by BLAS. arithmetic: the class of the bits (see kernels).
    A context manager (close() on exit); len(engine), name in engine, engine[name].
    """

    def __new__(cls, model: Model, *, max_sessions: int = 1_000_000, threads: int = 1) -> Self:
        if not isinstance(model, Model):
            raise ModelError(f"an Engine takes a Model, got {type(model).__name__}; see sl.load")
        if not 1 <= max_sessions <= MAX_SESSIONS:
            raise CapacityError(f"max_sessions is {max_sessions}; give 1 to {MAX_SESSIONS}")
        if not 1 <= threads <= MAX_THREADS:
            raise EngineError(f"threads is {threads}; give 1 to {MAX_THREADS}")
        return super().__new__(cls, _network(model), max_sessions, threads, _largest_event(model))

    def __init__(
        self,
        model: Model,
        *,
        max_sessions: int = 1_000_000,
        threads: int = 1,  # noqa: ARG002  (__new__ takes it)
    ) -> None:
        self.model = model
        self.max_sessions = max_sessions
        self.arithmetic = self.network.arithmetic
        self._sessions: dict[str, Session] = {}
        # Re-entrant: creating a Session may run the garbage collector, and it a finalizer
        # that closes another one.
        self._registry = threading.RLock()

    def open(self, name: str) -> Session:
        """A new session in its initial state.

        Raises SessionExistsError, CapacityError, EngineClosedError.
        """
        return self._create(name, None, 0)

    def adopt(self, name: str, numbers: Array | None, seq: int) -> Session:
        """A session that goes on where another one was after change `seq`.

        numbers: its state [state_size] as State.numbers and Group.numbers give it, None for the
        initial one; they are not looked at. Raises as `open` does, and ShapeError, DtypeError.
        """
        return self._create(name, numbers, seq)

    def _create(self, name: str, numbers: Array | None, seq: int) -> Session:
        """A session with its state and seq, before others see it."""
        if not isinstance(name, str) or not name:
            raise SessionError(f"a session's name is a non-empty string; got {name!r}")
        name = str(name)  # not a subclass, such as numpy.str_
        self._ensure_usable()
        with self._registry:
            if name in self._sessions:
                raise SessionExistsError(
                    f"session {name} is open already; use engine[{name!r}] or close it first"
                )
            opened = self._open_row()
            if opened is None:
                raise CapacityError(
                    f"all {self.max_sessions} sessions are open; close some, "
                    "or create the engine with a larger max_sessions"
                )
            session = Session(self, name, *opened)
            if numbers is not None or seq:
                try:
                    self._write_row(*opened, numbers, seq)
                except BaseException:
                    self._free_row(*opened)
                    raise
            self._sessions[name] = session
            return session

    def __getitem__(self, name: str) -> Session:
        try:
            return self._sessions[name]
        except KeyError:
            raise SessionUnknownError(
                f"no session {name!r} is open; open it with engine.open({name!r})"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    @property
    def names(self) -> list[str]:
        """Names of the open sessions."""
        return list(self._sessions)

    def group(self, sessions: Sequence[Session]) -> Group:
        """Sessions to be stepped together again and again; looked up once.

        Raises RepeatedSessionError, SessionClosedError, SessionFencedError.
        """
        return Group(self, sessions)

    def group_by_handle(self, handles: ArrayLike, epochs: ArrayLike) -> Group:
        """A group from handles and epochs, uint32 [n] each, checked in one pass.

        Raises SessionUnknownError, RepeatedSessionError, ShapeError.
        """
        return Group(self, None, handles, epochs)

    def step(self, sessions: Sequence[Session], X: ArrayLike) -> Array:
        """One event each for many sessions: X [n, inputs] -> fresh [n, outputs].

        All step or none does. Raises InputError, SessionClosedError, SessionFencedError.
        """
        return Group(self, sessions).step(X)

    def close(self) -> None:
        """Close all sessions and give their memory back. Closing twice is harmless."""
        if self.forked:  # the parent's to close; and its locks may be held here for ever
            return
        with self._registry:
            self._close_core()
            self._sessions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine {self.model.name!r}: {len(self)} sessions>"

    @property
    def same_bits(self) -> bool:
        """Whether a stream's bits are its own, whatever is stepped with it (see kernels)."""
        return not self.arithmetic.endswith("-blas")

    # -- called by the compiled half ------------------------------------------------------

    def convert(self, x: Any, ndim: int) -> Array:
        """x as a C-ordered array [..., inputs] of `ndim` axes in the engine's dtype."""
        return as_events(x, [f.name for f in self.model.inputs], ndim, self.dtype)

    def long_call(self) -> AbstractContextManager[None]:
        """Entered around BLAS calls of more than about 1 ms."""
        return blas_threads.one_thread()

    def lost(self, session: Session) -> StreamLSTMError:
        """Why `session` no longer owns its row."""
        if self.closed:
            return EngineClosedError("this engine is closed; create a new Engine")
        if session._closed or self._sessions.get(session.name, session) is session:
            return SessionClosedError(f"session {session.name} is closed; open it again")
        return SessionFencedError(
            f"session {session.name} was opened again elsewhere; this handle no longer owns it"
        )


class Session(SessionCore):
    """One stream's live state. Engine.open() makes it; step, step_into and run move it.

    seq: number of the last change; events, resets and restores are numbered in one row.
    """

    __slots__ = ()
    engine: Engine

    def state(self) -> State:
        """A copy of the whole state: h and c of all layers, with seq."""
        got = self.engine._read_row(self.handle, self.epoch)
        if got is None:
            raise self.engine.lost(self)
        numbers, seq = got
        model = self.engine.model
        units = tuple(m.units for m in model.layers if isinstance(m, LSTM))
        return State(model.fingerprint, seq, units, numbers, self.engine.arithmetic)

    def restore(self, state: State) -> None:
        """Go back to a saved state of this model; a change like an event: seq goes on by one.

        Raises StateMismatchError, NonFiniteError, SessionClosedError.
        """
        model = self.engine.model
        if not isinstance(state, State):
            raise StateMismatchError(
                f"restore takes a State, got {type(state).__name__}; bytes are read by "
                "State.from_bytes"
            )
        if state.fingerprint != model.fingerprint:
            raise StateMismatchError(
                f"the state belongs to model {state.fingerprint[:12]}, this session to "
                f"{model.fingerprint[:12]}; restore it under its own model"
            )
        if state.numbers.shape != (model.state_size,) or state.numbers.dtype != model.dtype:
            raise StateMismatchError(
                f"the state holds {state.numbers.dtype} {state.numbers.shape}; "
                f"expected {model.dtype} ({model.state_size},)"
            )
        if not np.isfinite(state.numbers).all():
            raise NonFiniteError("the state holds NaN or infinity; restore an earlier one")
        if any(np.abs(state.h(k)).max() > H_LARGEST for k in range(len(state.units))):
            raise NonFiniteError(
                f"the state holds an h beyond {H_LARGEST:.0e}, which no LSTM reaches"
            )
        self._write(np.ascontiguousarray(state.numbers))

    def reset(self) -> None:
        """Go back to the state a session opens with; seq goes on by one."""
        self._write(None)

    def _write(self, numbers: Array | None) -> None:
        if not self.engine._write_row(self.handle, self.epoch, numbers):
            raise self.engine.lost(self)

    def fork(self, name: str) -> Session:
        """A new session that starts from a copy of this one's state, with seq 0.

        Raises SessionExistsError, CapacityError, SessionClosedError.
        """
        return self.engine._create(name, self.state().numbers, 0)

    def take_over(self) -> Session:
        """A new handle on the same session, epoch + 1; this one is fenced off from now on."""
        engine = self.engine
        engine._ensure_usable()
        with engine._registry:
            epoch = engine._next_epoch(self.handle, self.epoch)
            if epoch is None:
                raise engine.lost(self)
            session = engine._sessions[self.name] = Session(engine, self.name, self.handle, epoch)
            return session

    def close(self) -> None:
        """Free the state. Closing twice is harmless; so is closing a handle that lost it."""
        engine = self.engine
        if engine.forked:
            return
        with engine._registry:
            if not engine.closed and engine._free_row(self.handle, self.epoch):
                self._closed = True
                del engine._sessions[self.name]

    def __repr__(self) -> str:
        return f"<Session {self.name!r}: {'closed' if self.closed else f'seq {self.seq}'}>"


@dataclass(frozen=True, eq=False)
class State:
    """A session's state, copied: all layers' numbers, with what they belong to.

    fingerprint: the model's. seq: the session's when it was taken. units: H of each LSTM
    layer. numbers: h then c of each layer, [state_size], the engine's dtype. arithmetic: the
    class of the engine that computed them (see kernels), "" where unknown; any class may go
    on from them.
    """

    fingerprint: str
    seq: int
    units: tuple[int, ...]
    numbers: Array
    arithmetic: str = ""

    def h(self, layer: int) -> Array:
        """h of an LSTM layer (0 is the lowest), [units]."""
        start = 2 * sum(self.units[:layer])
        return self.numbers[start : start + self.units[layer]].copy()

    def c(self, layer: int) -> Array:
        """c of an LSTM layer (0 is the lowest), [units]."""
        start = 2 * sum(self.units[:layer]) + self.units[layer]
        return self.numbers[start : start + self.units[layer]].copy()

    def to_bytes(self) -> bytes:
        """The state as bytes for a file or the wire; from_bytes reads them."""
        numbers = self.numbers.astype(self.numbers.dtype.newbyteorder("<"))
        data = (numbers.dtype.str, numbers.tobytes())
        packed: bytes = msgpack.packb(
            [1, self.fingerprint, self.seq, self.units, *data, self.arithmetic]
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Read what to_bytes wrote. Raises StateMismatchError when it is anything else."""
        try:
            # A header of a few bytes can claim gigabytes: nothing larger than a layer list.
            version, fingerprint, seq, units, dtype, numbers, arithmetic = msgpack.unpackb(
                data, max_array_len=LAYERS_MAX, max_map_len=0, max_ext_len=0
            )
            if version != 1 or dtype not in ("<f4", "<f8"):
                raise ValueError(f"version {version!r}, dtype {dtype!r}")
            if not isinstance(fingerprint, str) or not isinstance(arithmetic, str):
                raise ValueError("fingerprint and arithmetic class must be text")
            array = np.frombuffer(numbers, dtype).astype(np.dtype(dtype).newbyteorder("="))
            state = cls(fingerprint, int(seq), tuple(int(u) for u in units), array, arithmetic)
            if 2 * sum(state.units) != array.size or min(state.units, default=0) < 1:
                raise ValueError(f"{array.size} numbers for layers of {state.units} units")
            return state
        except Exception as e:  # whatever hostile bytes make msgpack or NumPy raise
            raise StateMismatchError(
                f"these bytes are not a saved state ({e}); give what State.to_bytes wrote"
            ) from e


def _network(model: Model) -> Network:
    layers = [
        ("lstm", m.w_x, m.w_h, m.b, _start(m, m.h0), _start(m, m.c0))
        if isinstance(m, LSTM)
        else ("dense", m.w, m.b, m.activation)
        for m in model.layers
    ]
    x_mean, x_std = np.array([(f.mean, f.std) for f in model.inputs]).T
    y_mean, y_std = np.array([(f.mean, f.std) for f in model.outputs]).T
    kernel = kernels.choose(model.dtype).kernel
    return Network(model.dtype, layers, x_mean, x_std, y_mean, y_std, kernel)


def _largest_event(model: Model) -> Array:
    """The largest magnitude of each input [inputs] that leaves every number finite.

    A sensor's "missing" is often the largest float: it would make an infinite sum, the
    difference of two of them NaN, and a NaN never leaves h and c. Followed through the layers
    is the largest magnitude a sum can reach, gain * (scaled event) + offset; behind an LSTM
    layer it is 1 (|h| = |sigmoid tanh| <= 1).
    """
    largest = float(np.finfo(model.dtype).max)
    top, scaled = largest / 4, np.inf
    gain, offset = 1.0, 0.0
    for k, layer in enumerate(model.layers):
        w, b = (layer.w_x if isinstance(layer, LSTM) else layer.w), layer.b
        rows = float(np.abs(w).sum(axis=1, dtype=float).max())
        gain, offset = gain * rows, offset * rows + float(np.abs(b).max())
        if isinstance(layer, LSTM):
            offset += H_LARGEST * float(np.abs(layer.w_h).sum(axis=1, dtype=float).max())
        if offset >= top:
            raise ModelError(f"layer {k} ({layer.kind}): its weights can overflow {model.dtype}")
        if gain:
            scaled = min(scaled, (top - offset) / gain)
        if isinstance(layer, LSTM) or layer.activation in ("tanh", "sigmoid"):
            gain, offset = 0.0, 1.0
    mean, std = np.array([(f.mean, f.std) for f in model.inputs]).T
    with np.errstate(over="ignore"):
        events: Array = np.minimum(scaled * std - np.abs(mean), largest)
    if not (events > np.abs(mean)).all():
        name = model.inputs[int(np.argmin(events > np.abs(mean)))].name
        raise ModelError(f"input {name!r}: its mean is too many std from 0 for {model.dtype}")
    return events


def _start(layer: LSTM, given: Array | None) -> Array:
    return np.zeros(layer.units, layer.b.dtype) if given is None else given
