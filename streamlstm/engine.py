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

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm import blas_threads
from streamlstm.compiled import EngineCore, Group, SessionCore, made_ready
from streamlstm.errors import (
    CapacityError,
    EngineClosedError,
    EngineError,
    InputError,
    ModelError,
    SessionClosedError,
    SessionError,
    SessionExistsError,
    SessionFencedError,
    SessionUnknownError,
    StateMismatchError,
    StreamLSTMError,
)
from streamlstm.events import as_events, unacceptable
from streamlstm.head import checked_ahead, refusal
from streamlstm.log import log
from streamlstm.model import Model
from streamlstm.state import State

Array = NDArray[Any]

# Rows are numbered by 32 bits.
MAX_SESSIONS = 2**31
MAX_THREADS = 1024


class Engine(EngineCore):
    """Live sessions of one model, `max_sessions` at most.

    threads: how many share a large batch, the caller's included; bits do not depend on it,
    except by BLAS. state: a directory that save() or `streamlstm serve --state` wrote; its sessions
    are open. arithmetic: the class of the bits (see kernels).
    A context manager (close() on exit); len(engine), name in engine, engine[name].
    """

    def __new__(
        cls,
        model: Model,
        *,
        max_sessions: int = 1_000_000,
        threads: int = 1,
        state: str | os.PathLike[str] | None = None,  # noqa: ARG004  (__init__ takes it)
    ) -> Self:
        if not isinstance(model, Model):
            raise ModelError(f"an Engine takes a Model, got {type(model).__name__}; see sl.load")
        if not 1 <= max_sessions <= MAX_SESSIONS:
            told = f"is {max_sessions}; give 1 to {MAX_SESSIONS}"
            raise CapacityError(f"max_sessions {told}", command_line=f"--max-sessions {told}")
        if not 1 <= threads <= MAX_THREADS:
            told = f"is {threads}; give 1 to {MAX_THREADS}"
            raise EngineError(f"threads {told}", command_line=f"--threads {told}")
        network, largest, head = made_ready(model)
        return super().__new__(cls, network, max_sessions, threads, largest, model.vocabulary, head)

    def __init__(
        self,
        model: Model,
        *,
        max_sessions: int = 1_000_000,
        threads: int = 1,  # noqa: ARG002  (__new__ takes it)
        state: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model = model
        self.max_sessions = max_sessions
        self.arithmetic = self.network.row.arithmetic
        self._sessions: dict[str, Session] = {}
        # Re-entrant: creating a Session may run the garbage collector, and it a finalizer
        # that closes another one.
        self._registry = threading.RLock()
        log.debug("engine of model %s: arithmetic class %s", model.name, self.arithmetic)
        if state is not None:
            from streamlstm import saved_sessions  # noqa: PLC0415  (brings in SQLite)

            saved_sessions.load(self, state)

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
        try:
            name.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            raise SessionError(f"{name!r} is no Unicode text, which a session's name is") from None
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

    def group_by_row(self, rows: ArrayLike, epochs: ArrayLike) -> Group:
        """A group from rows and epochs, uint32 [n] each, checked in one pass.

        Raises SessionUnknownError, RepeatedSessionError, ShapeError.
        """
        return Group(self, None, rows, epochs)

    def step(self, sessions: Sequence[Session], X: ArrayLike) -> Array:
        """One event each for many sessions: X [n, inputs] -> fresh [n, outputs].

        All step or none does. Raises InputError, SessionClosedError, SessionFencedError.
        """
        return Group(self, sessions).step(X)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Keep all open sessions, with their states and seqs, in a directory: all or, where this
        fails, none. Engine(model, state=directory) and `streamlstm serve --state` go on from it.

        What it held of this model before is replaced, but for quarantined sessions. Each state is
        as it was between two events. Raises StoreError, EngineClosedError.
        """
        from streamlstm import saved_sessions  # noqa: PLC0415  (brings in SQLite)

        self._ensure_usable()  # before a directory is made for nothing
        saved_sessions.save(self, directory)

    def states(self) -> dict[str, State]:
        """Copies of all sessions' states, by name. Raises EngineClosedError."""
        self._ensure_usable()
        with self._registry:  # nobody opens or closes meanwhile
            self._ensure_usable()  # a closed engine has none that could be kept
            return {session.name: session.state() for session in self}

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
        if self.closed:
            return f"<Engine {self.model.name!r}: closed>"
        return f"<Engine {self.model.name!r}: {len(self)} session{'s' * (len(self) != 1)}>"

    def __dir__(self) -> list[str]:
        return [
            *(
                "arithmetic",
                "close",
                "closed",
                "counters",
                "dtype",
                "group",
                "max_sessions",
                "model",
            ),
            *("names", "open", "same_bits", "save", "state_bytes", "step"),
        ]

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            "an engine can't be copied or pickled: engine.save(directory) keeps its sessions, and "
            "Engine(model, state=directory) goes on from them"
        )

    @property
    def same_bits(self) -> bool:
        """Whether a stream's bits are its own, whatever is stepped with it (see kernels)."""
        return self.network.row.same_bits

    def counters(self) -> dict[str, int]:
        """What happened to readings (see head.COUNTERS), in all sessions since the engine was
        made; {} for a model without a head."""
        return self._totals()

    # -- called by the compiled half ------------------------------------------------------

    def convert(self, x: Any, ndim: int) -> Array:
        """x as a C-ordered array [..., inputs] of `ndim` axes in the engine's dtype."""
        names, head = [f.name for f in self.model.inputs], self.model.head
        return as_events(x, names, ndim, self.dtype, None if head is None else head.time)

    def unacceptable(self, x: Array) -> InputError:
        """Why x [..., inputs] can't be taken."""
        model = self.model
        return unacceptable(x, self.largest_event, model.head, model.vocabulary)

    def check_ahead(self, steps: Any) -> int:
        """The number of steps to forecast. Raises EngineError, InputError."""
        if self.model.head is None:
            raise EngineError(
                f"model {self.model.name!r} has no head to forecast with; train one with "
                "`streamlstm train`"
            )
        return checked_ahead(steps)

    def refusal(self, index: int, reading: list[float]) -> InputError:
        """Why a policy refuses a reading."""
        names = [f.name for f in self.model.inputs]
        assert self.model.head is not None
        return refusal(index, dict(zip(names, reading, strict=True)), self.model.head)

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
        got = self.engine._read_row(self.row, self.epoch)
        if got is None:
            raise self.engine.lost(self)
        numbers, seq = got
        model = self.engine.model
        return State(model.fingerprint, seq, model.state_sizes, numbers, self.engine.arithmetic)

    def restore(
        self, state: State | None = None, *, h: Any = None, c: Any = None, seq: int | None = None
    ) -> None:
        """Go back to a saved state of this model; a change like an event: seq goes on by one.

        h, c: instead of a State, what another runtime kept, as State.of takes them; with `seq`, the
        number of the last event that went into them, the next one is seq + 1.
        Raises StateMismatchError, ShapeError, DtypeError, NonFiniteError, SessionClosedError.
        """
        model = self.engine.model
        if h is not None and state is None:
            state = State.of(model, h=h, c=c, seq=0 if seq is None else seq)
        elif not isinstance(state, State):
            raise StateMismatchError(
                "restore takes a State, or h= and, of LSTM layers, c=; got "
                f"{'no h' if state is None else type(state).__name__}; bytes are read by "
                "State.from_bytes"
            )
        elif not h is c is seq is None:
            raise StateMismatchError(
                "a State has its own h and c, and its seq is the session's own: leave h=, c= and "
                "seq= out"
            )
        state.check(model)
        self._write(np.ascontiguousarray(state.numbers), -1 if seq is None else seq)

    def counters(self) -> dict[str, int]:
        """What happened to the session's readings (see head.COUNTERS); {} without a head.

        Raises SessionClosedError, SessionFencedError.
        """
        head = self.engine.model.head
        return {} if head is None else head.counters(self.state().numbers)

    def reset(self) -> None:
        """Go back to the state a session opens with; seq goes on by one."""
        self._write(None)

    def _write(self, numbers: Array | None, seq: int = -1) -> None:
        if not self.engine._write_row(self.row, self.epoch, numbers, seq):
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
            epoch = engine._next_epoch(self.row, self.epoch)
            if epoch is None:
                raise engine.lost(self)
            session = engine._sessions[self.name] = Session(engine, self.name, self.row, epoch)
            return session

    def close(self) -> None:
        """Free the state. Closing twice is harmless; so is closing a handle that lost it."""
        engine = self.engine
        if engine.forked:
            return
        with engine._registry:
            if not engine.closed and engine._free_row(self.row, self.epoch):
                self._closed = True
                del engine._sessions[self.name]

    def __dir__(self) -> list[str]:
        return [
            *(
                "close",
                "closed",
                "counters",
                "engine",
                "epoch",
                "forecast",
                "fork",
                "name",
                "reset",
            ),
            *("restore", "run", "seq", "state", "step", "step_into", "take_over"),
        ]

    def __reduce__(self) -> NoReturn:
        raise SessionError(
            f"session {self.name} can't be copied or pickled: fork(name) makes a copy in its "
            "engine, state() one to keep or to send, engine.save(directory) keeps all"
        )

    def __repr__(self) -> str:
        return f"<Session {self.name!r}: {'closed' if self.closed else f'seq {self.seq}'}>"
