"""An engine that is a cheap fold, so that protocol tests need no network.

A session's state is its sum s [inputs]; an event makes it ``s = s / 2 + x`` and its output is s.
The order of events matters, and every number is exact in float32 for small integers.

Two ways to ruin a session: an event that holds POISON makes its sums and outputs NaN; sums that
overflow are infinite, but outputs, at most OUTPUT_MAX, do not show it.

With a head events are float64, NaN is missing and adds nothing, but as input 0, the time. The
quantiles of what is k steps ahead are the last sum / 2**k, with -1, 0 and 1 added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamlstm.errors import (
    CapacityError,
    EngineError,
    NonFiniteError,
    RepeatedSessionError,
    SessionClosedError,
    SessionExistsError,
    SessionUnknownError,
    StateMismatchError,
)
from streamlstm.head import Head, checked_ahead

POISON = 666.0
OUTPUT_MAX = 1e6


@dataclass(frozen=True)
class Feature:
    name: str
    unit: str = ""


class Model:
    event_dtype = np.dtype(np.float32)
    head: Head | None = None

    def __init__(self, name: str = "fold", inputs: int = 2, parameters: int = 6) -> None:
        self.name = name
        self.fingerprint = f"{name}-{inputs}"
        self.parameters = parameters
        self.inputs = tuple(Feature(f"x{i}", "m") for i in range(inputs))
        self.outputs = tuple(Feature(f"y{i}") for i in range(inputs))
        self.state_size = inputs
        self.state_sizes = ()
        self.vocabulary = 0


class Headed(Model):
    """With inputs time and level."""

    event_dtype = np.dtype(np.float64)

    def __init__(self, head: Head) -> None:
        super().__init__("tide")
        self.head = head


@dataclass(frozen=True)
class State:
    numbers: Any

    def to_bytes(self) -> bytes:
        return b"fold" + self.numbers.tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> State:
        if not blob.startswith(b"fold") or len(blob) % 4:
            raise StateMismatchError("these bytes are not a saved state")
        return cls(np.frombuffer(blob[4:], np.float32))


class Session:
    def __init__(self, engine: Engine, name: str, row: int, epoch: int) -> None:
        self.engine, self.name, self.row, self.epoch = engine, name, row, epoch

    def _live(self) -> None:
        if self.engine.epochs[self.row] == self.epoch:
            return
        raise SessionClosedError(f"session {self.name} is closed")

    @property
    def seq(self) -> int:
        return self.engine.seqs[self.row]

    def step(self, x: Any) -> Any:
        return self.engine.step([self], np.asarray(x)[None])[0]

    def step_into(self, x: Any, out: Any) -> None:
        out[:] = self.step(x)

    def run(self, X: Any) -> Any:
        self._live()
        _finite(X, self.engine.model.head)
        return np.array([self.step(x) for x in X], X.dtype).reshape(X.shape)

    def state(self) -> State:
        self._live()
        return State(self.engine.sums[self.row].copy())

    def forecast(self, steps: int) -> Any:
        self._live()
        if self.engine.model.head is None:
            raise EngineError("the model has no head to forecast with")
        halves = 0.5 ** np.arange(1, checked_ahead(steps) + 1)
        return self.engine.sums[self.row][-1] * halves[:, None] + [[-1, 0, 1]]

    def counters(self) -> dict[str, int]:
        self._live()
        return {} if self.engine.model.head is None else {"missing": self.engine.missing}

    def restore(self, state: State) -> None:
        self._live()
        if state.numbers.shape != self.engine.sums[self.row].shape:
            raise StateMismatchError("the state is of another size")
        self.engine.sums[self.row] = state.numbers.copy()
        self.engine.seqs[self.row] += 1

    def reset(self) -> None:
        self._live()
        self.engine.sums[self.row] = self.engine.sums[self.row] * 0
        self.engine.seqs[self.row] += 1

    def close(self) -> None:
        if self.engine.epochs[self.row] == self.epoch:
            self.engine.epochs[self.row] += 1
            del self.engine.live[self.name]
            self.engine.free.append(self.row)


class Group:
    def __init__(self, engine: Engine, sessions: list[Session]) -> None:
        self.engine, self.sessions = engine, sessions

    def numbers(self) -> Any:
        sums = [self.engine.sums[session.row] for session in self.sessions]
        return np.array(sums, np.float32).reshape(-1, len(self.engine.model.inputs))

    def step(self, X: Any) -> Any:
        return self.engine.step(self.sessions, X)

    def refusals(self, X: Any) -> dict[int, Any]:  # noqa: ARG002
        return {}


class Engine:
    state_bytes = 0
    arithmetic = "fold-1"
    same_bits = True
    largest_event: Any = None

    def __init__(self, model: Model | None = None, max_sessions: int = 1000) -> None:
        self.model = model or Model()
        self.max_sessions = max_sessions
        self.live: dict[str, Session] = {}
        self.free: list[int] = []
        self.epochs: list[int] = []
        self.seqs: list[int] = []
        self.sums: list[Any] = []
        self.missing = 0  # numbers that were NaN
        self.batches: list[int] = []  # sizes of the steps taken
        self.fails: Exception | None = None  # raised by the next steps

    def open(self, name: str) -> Session:
        if name in self.live:
            raise SessionExistsError(f"session {name} is open already")
        if len(self.live) >= self.max_sessions:
            raise CapacityError(f"all {self.max_sessions} sessions are open")
        if not self.free:
            self.free.append(len(self.epochs))
            self.epochs.append(0)
            self.seqs.append(0)
            self.sums.append(None)
        row = self.free.pop()
        self.epochs[row] += 1
        self.seqs[row] = 0
        self.sums[row] = np.zeros(len(self.model.inputs), self.model.event_dtype)
        self.live[name] = Session(self, name, row, self.epochs[row])
        return self.live[name]

    def adopt(self, name: str, numbers: Any, seq: int) -> Session:
        session = self.open(name)
        if numbers is not None:
            self.sums[session.row] = np.array(numbers, self.model.event_dtype)
        self.seqs[session.row] = seq
        return session

    def step(self, sessions: list[Session], X: Any) -> Any:
        if len({session.row for session in sessions}) != len(sessions):
            raise RepeatedSessionError("a session stands twice in the step")
        for session in sessions:
            session._live()
        if self.fails is not None:
            raise self.fails
        _finite(X, self.model.head)
        self.missing += int(np.isnan(X).sum())
        X = np.where(np.isnan(X), 0, X)
        self.batches.append(len(sessions))
        with np.errstate(over="ignore"):
            for session, x in zip(sessions, X, strict=True):
                added = np.where(x == POISON, x.dtype.type(np.nan), x)
                self.sums[session.row] = self.sums[session.row] / 2 + added
                self.seqs[session.row] += 1
        sums = np.array([self.sums[session.row] for session in sessions], X.dtype)
        return np.clip(sums, -OUTPUT_MAX, OUTPUT_MAX)

    def group_by_row(self, rows: Any, epochs: Any) -> Group:
        by_row = {session.row: session for session in self.live.values()}
        sessions = []
        for i, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
            session = by_row.get(int(row))
            if session is None or session.epoch != epoch:
                raise SessionUnknownError(f"index {i}: no such session")
            sessions.append(session)
        if len(set(rows.tolist())) != len(rows):
            raise RepeatedSessionError("a session stands twice in the step")
        return Group(self, sessions)

    def counters(self) -> dict[str, int]:
        return {} if self.model.head is None else {"missing": self.missing}

    def __len__(self) -> int:
        return len(self.live)


def _finite(X: Any, head: Head | None = None) -> None:
    if not np.isfinite(X if head is None else X[..., 0]).all():
        raise NonFiniteError("an event holds NaN or infinity")
