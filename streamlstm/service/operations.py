"""Every operation of the wire, one record each: docs/protocol.md in code.

A record has the operation's name, its fields with their types, the values of its reply, whether it
changes a session, and the verb under which the journal keeps that change. Decoder, server and
client are driven by it; an operation's name is a literal in no other file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, get_type_hints

# --- types of fields, each with its check and what to say of a value that fails it ----------------


class Check(NamedTuple):
    """Whether a decoded value is good for a field, and what would be."""

    good: Callable[[Any], bool]
    wanted: str


def _is_handle(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _is_epoch(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _is_seq(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 63)


def _is_deadline(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]


def _is_vector(value: object) -> bool:
    return type(value) is bytes or (type(value) is tuple and set(map(type, value)) <= {int})


Vector: TypeAlias = bytes | tuple[int, ...]
Payload: TypeAlias = bytes | tuple[Any, ...]
"""Numbers as they came: packed, or a list of them or of rows of them."""

_Handle = Annotated[int, Check(_is_handle, "an unsigned 64-bit integer")]
_Epoch = Annotated[int, Check(_is_epoch, "an unsigned 32-bit integer")]
_Seq = Annotated[int | None, Check(_is_seq, "an integer of 0 or more, or nil")]
_Deadline = Annotated[
    float | None, Check(_is_deadline, "finite seconds of the server's clock, or nil")
]
_Payload = Annotated[
    Payload, Check(lambda value: type(value) in (bytes, tuple), "bin or a list of numbers")
]
_Name = Annotated[
    str, Check(lambda value: type(value) is str and value != "", "a string that is not empty")
]
_Model = Annotated[
    str | None, Check(lambda value: value is None or type(value) is str, "a name, nil")
]
_Resume = Annotated[bool, Check(lambda value: type(value) is bool, "true or false")]
_OldEpoch = Annotated[
    int | None,
    Check(lambda value: value is None or _is_epoch(value), "an unsigned 32-bit integer, or nil"),
]
_Token = Annotated[
    int | None,
    Check(lambda value: _is_seq(value) and value != 0, "an integer of 1 to 2**63 - 1, or nil"),
]
_Handles = Annotated[
    Vector, Check(_is_vector, "bin of little-endian uint64, or a list of integers")
]
_Epochs = Annotated[Vector, Check(_is_vector, "bin of little-endian uint32, or a list of integers")]
_Seqs = Annotated[
    Vector | None,
    Check(
        lambda value: value is None or _is_vector(value),
        "bin of little-endian int64, a list of integers, or nil",
    ),
]
_Blob = Annotated[bytes, Check(lambda value: type(value) is bytes, "bin")]
_Steps = Annotated[int, Check(_is_handle, "an integer of 0 or more")]
_Info = Annotated[dict[Any, Any], Check(lambda value: type(value) is dict, "a map")]


# --- the fields of each operation, in the order of the wire ---------------------------------------


class Hello(NamedTuple):
    client: _Info


class Open(NamedTuple):
    name: _Name
    model: _Model
    resume: _Resume
    epoch: _OldEpoch
    token: _Token


class Fork(NamedTuple):
    handle: _Handle
    epoch: _Epoch
    seq: _Seq
    name: _Name
    token: _Token


class Step(NamedTuple):
    handle: _Handle
    epoch: _Epoch
    seq: _Seq
    deadline: _Deadline
    payload: _Payload


class Steps(NamedTuple):
    handles: _Handles
    epochs: _Epochs
    seqs: _Seqs
    deadline: _Deadline
    payload: _Payload


class Run(NamedTuple):
    handle: _Handle
    epoch: _Epoch
    seq: _Seq
    deadline: _Deadline
    payload: _Payload


class Reset(NamedTuple):
    handle: _Handle
    epoch: _Epoch
    seq: _Seq


class State(NamedTuple):
    handle: _Handle
    epoch: _Epoch


class Forecast(NamedTuple):
    handle: _Handle
    epoch: _Epoch
    steps: _Steps


class Counters(NamedTuple):
    handle: _Handle
    epoch: _Epoch


class Restore(NamedTuple):
    handle: _Handle
    epoch: _Epoch
    seq: _Seq
    state: _Blob


class Close(NamedTuple):
    handle: _Handle
    epoch: _Epoch


class Stats(NamedTuple):
    pass


Fields: TypeAlias = (
    Hello
    | Open
    | Fork
    | Step
    | Steps
    | Run
    | Reset
    | State
    | Forecast
    | Counters
    | Restore
    | Close
    | Stats
)


# --- the records ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What is to be known of an operation.

    reply: names of the values that follow the id in its "ok" reply. mark: begins the digests by
    which its repeats are known, where it changes a session and takes a number of its seq; stored,
    so never to be changed. -1: it changes none. verb: of its record in the journal, if it has one.
    """

    name: str
    fields: type[Fields]
    reply: tuple[str, ...]
    mark: int = -1
    verb: str | None = None
    checks: tuple[tuple[str, Check], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        hints = get_type_hints(self.fields, include_extras=True)
        checks = tuple((name, hint.__metadata__[0]) for name, hint in hints.items())
        object.__setattr__(self, "checks", checks)

    @property
    def changes(self) -> bool:
        """Whether it takes a number."""
        return self.mark >= 0

    @property
    def to_session(self) -> bool:
        """Whether it is addressed to one session, by its handle."""
        return self.fields._fields[:1] == ("handle",)


_OPENED: Final = ("handle", "epoch", "seq", "model", "fingerprint")

HELLO: Final = Operation("hello", Hello, ("server",))
OPEN: Final = Operation("open", Open, _OPENED, verb="open")
FORK: Final = Operation("fork", Fork, _OPENED, verb="open")
STEP: Final = Operation("step", Step, ("seq", "y"), mark=0, verb="step")
STEPS: Final = Operation("steps", Steps, ("seqs", "Y"), mark=1, verb="steps")
RUN: Final = Operation("run", Run, ("seq", "Y"), mark=2, verb="run")
RESET: Final = Operation("reset", Reset, ("seq",), mark=3, verb="reset")
STATE: Final = Operation("state", State, ("seq", "state"))
FORECAST: Final = Operation("forecast", Forecast, ("seq", "F"))
COUNTERS: Final = Operation("counters", Counters, ("seq", "counters"))
RESTORE: Final = Operation("restore", Restore, ("seq",), mark=4, verb="restore")
CLOSE: Final = Operation("close", Close, ("seq",), verb="end")
STATS: Final = Operation("stats", Stats, ("stats",))

OPERATIONS: Final[dict[str, Operation]] = {
    operation.name: operation
    for operation in (
        HELLO, OPEN, FORK, STEP, STEPS, RUN, RESET, STATE, FORECAST, COUNTERS, RESTORE, CLOSE, STATS
    )
}  # fmt: skip
"""By name."""
