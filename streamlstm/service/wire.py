"""The codec: bytes to checked fields and back (docs/protocol.md); nothing else knows msgpack.

Limits belong to this decoder. A frame's size and the number of frames are
looked at before anything is decoded; depth, item count and lengths while it
is decoded; the type of every field right after. What leaves here is safe to
look at, but says nothing yet about sessions or shapes.

msgpack allocates an array as soon as it reads its header, so that 5 kB of
nested headers can claim gigabytes. Messages with packed payloads hold one
array and no map, and are decoded at once under exactly that rule; all
others are first walked header by header (`_walk`), which builds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt

from streamlstm import errors
from streamlstm.errors import (
    InputError,
    ProtocolError,
    ServerInternalError,
    ServiceError,
    ShapeError,
    StreamLSTMError,
)

VERSION: Final = 1

Ident: TypeAlias = int | str | bytes | None
"""A correlation id: chosen by the client, echoed in the reply; None where a request had none."""

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder takes; all are maxima of one message."""

    frames: int = 1
    frame_bytes: int = 8 << 20
    items: int = 1 << 16  # numbers, strings, arrays ... where plain lists are used
    depth: int = 4  # the message, a matrix, a row: 3; one to spare
    str_bytes: int = 1024
    id_bytes: int = 64
    name_bytes: int = 256


# --- errors on the wire ---------------------------------------------------------------------------

ERRORS: Final[dict[str, type[StreamLSTMError]]] = {
    cls.__dict__["code"]: cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, StreamLSTMError)
    and cls is not StreamLSTMError
    and "code" in cls.__dict__
}
"""Every error that can cross the wire, by its code."""


class BadMessageError(ProtocolError):
    """A message that could not be decoded; `ident` is its id as far as it could be read."""

    def __init__(self, sentence: str, ident: Ident = None) -> None:
        super().__init__(sentence)
        self.ident = ident


def error_from_wire(code: object, sentence: object) -> StreamLSTMError:
    """The exception that an error reply stands for; an unknown code gives a ServiceError."""
    cls = ERRORS.get(code) if isinstance(code, str) else None
    if cls is None:
        return ServiceError(f"{code}: {sentence}")
    return cls(str(sentence))


# --- field checks ---------------------------------------------------------------------------------


def _is_handle(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _is_epoch(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _is_seq(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 63)


def _is_deadline(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]


def _is_payload(value: object) -> bool:
    return type(value) is bytes or type(value) is tuple


def _is_vector(value: object) -> bool:
    return type(value) is bytes or (type(value) is tuple and set(map(type, value)) <= {int})


_Check: TypeAlias = tuple[str, Callable[[Any], bool], str]

_NAME: Final[_Check] = (
    "name",
    lambda value: type(value) is str and value != "",
    "a string that is not empty",
)
_MODEL: Final[_Check] = ("model", lambda value: value is None or type(value) is str, "a name, nil")
_RESUME: Final[_Check] = ("resume", lambda value: type(value) is bool, "true or false")
_HANDLE: Final[_Check] = ("handle", _is_handle, "an unsigned 64-bit integer")
_EPOCH: Final[_Check] = ("epoch", _is_epoch, "an unsigned 32-bit integer")
_SEQ: Final[_Check] = ("seq", _is_seq, "an integer of 0 or more, or nil")
_DEADLINE: Final[_Check] = (
    "deadline",
    _is_deadline,
    "finite seconds of the server's clock, or nil",
)
_OLD_EPOCH: Final[_Check] = (
    "epoch",
    lambda value: value is None or _is_epoch(value),
    "an unsigned 32-bit integer, or nil",
)
_TOKEN: Final[_Check] = (
    "token",
    lambda value: _is_seq(value) and value != 0,
    "an integer of 1 to 2**63 - 1, or nil",
)
_PAYLOAD: Final[_Check] = ("payload", _is_payload, "bin or a list of numbers")
_VECTORS: Final[tuple[_Check, ...]] = (
    ("handles", _is_vector, "bin of little-endian uint64, or a list of integers"),
    ("epochs", _is_vector, "bin of little-endian uint32, or a list of integers"),
    (
        "seqs",
        lambda value: value is None or _is_vector(value),
        "bin of little-endian int64, a list of integers, or nil",
    ),
)
_BLOB: Final[_Check] = ("state", lambda value: type(value) is bytes, "bin")
_STEPS: Final[_Check] = ("steps", _is_handle, "an integer of 0 or more")
_INFO: Final[_Check] = ("client", lambda value: type(value) is dict, "a map")

REQUESTS: Final[dict[str, tuple[_Check, ...]]] = {
    "hello": (_INFO,),
    "open": (_NAME, _MODEL, _RESUME, _OLD_EPOCH, _TOKEN),
    "fork": (_HANDLE, _EPOCH, _SEQ, _NAME, _TOKEN),
    "step": (_HANDLE, _EPOCH, _SEQ, _DEADLINE, _PAYLOAD),
    "steps": (*_VECTORS, _DEADLINE, _PAYLOAD),
    "run": (_HANDLE, _EPOCH, _SEQ, _DEADLINE, _PAYLOAD),
    "reset": (_HANDLE, _EPOCH, _SEQ),
    "state": (_HANDLE, _EPOCH),
    "forecast": (_HANDLE, _EPOCH, _STEPS),
    "counters": (_HANDLE, _EPOCH),
    "restore": (_HANDLE, _EPOCH, _SEQ, _BLOB),
    "close": (_HANDLE, _EPOCH),
    "stats": (),
}
"""Every operation with the fields that follow the id."""

REPLY_VALUES: Final = {
    "hello": 1,
    "open": 5,
    "fork": 5,
    "step": 2,
    "steps": 2,
    "run": 2,
    "reset": 1,
    "state": 2,
    "forecast": 2,
    "counters": 2,
    "restore": 1,
    "close": 1,
    "stats": 1,
}
"""How many values follow the id in an operation's "ok" reply."""


def _is_plain_step(fields: tuple[Any, ...]) -> bool:
    """Whether fields are good for step, said at once for its usual form."""
    if len(fields) != 5:
        return False
    handle, epoch, seq, deadline, x = fields
    return (
        type(handle) is type(epoch) is type(seq) is int
        and 0 <= handle < 1 << 64
        and 0 <= epoch < 1 << 32
        and 0 <= seq < 1 << 63
        and deadline is None
        and type(x) is bytes
    )


# --- decoding -------------------------------------------------------------------------------------


def _heads() -> tuple[tuple[int, int, int], ...]:
    """For each first byte of an item: (bytes of it, bytes of its length field, kind).

    Kinds: 0 a scalar or text whose bytes are all in the first number, 1 bytes
    or text with a length field, 2 array, 3 map, 9 not allowed. For the fixed
    forms of array and map the first number is how many items follow.
    Source: github.com/msgpack/msgpack/blob/master/spec.md
    """
    heads = [(1, 0, 0)] * 256
    for low in range(16):
        heads[0x80 + low] = (low, 0, 3)
        heads[0x90 + low] = (low, 0, 2)
    for low in range(32):
        heads[0xA0 + low] = (1 + low, 0, 0)
    for first, width in ((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4)):
        heads[first] = (1 + width, width, 1)
    for first, size in ((0xCA, 5), (0xCB, 9), (0xCC, 2), (0xCD, 3), (0xCE, 5), (0xCF, 9)):
        heads[first] = (size, 0, 0)
    for first, size in ((0xD0, 2), (0xD1, 3), (0xD2, 5), (0xD3, 9)):
        heads[first] = (size, 0, 0)
    for first, width, kind in ((0xDC, 2, 2), (0xDD, 4, 2), (0xDE, 2, 3), (0xDF, 4, 3)):
        heads[first] = (1 + width, width, kind)
    for first in (0xC1, *range(0xC7, 0xCA), *range(0xD4, 0xD9)):
        heads[first] = (1, 0, 9)
    return tuple(heads)


_HEADS: Final = _heads()


def _walk(frame: bytes, limits: Limits) -> None:
    """Check depth, item count and completeness of a frame without building its items."""
    position = items = 0
    left = [1]  # items still to come, outermost first
    size = len(frame)
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        items += 1
        if position >= size:
            raise BadMessageError("the message ends in the middle of an item")
        head = position
        length, width, kind = _HEADS[frame[head]]
        if kind == 9:
            raise BadMessageError(f"byte {head}: msgpack type 0x{frame[head]:02x} is not used here")
        if width:
            extra = int.from_bytes(frame[head + 1 : head + 1 + width], "big")
            position += 1 + width
        else:
            extra = length if kind >= 2 else length - 1
            position += 1
        if kind < 2:
            position += extra
            continue
        items += extra * (kind - 1)
        if items > limits.items:
            raise BadMessageError(
                f"more than {limits.items} items in one message: send payloads as bin"
            )
        left.append(extra * (kind - 1))
        if len(left) > limits.depth + 1:
            raise BadMessageError(f"nested deeper than {limits.depth} levels")
        items -= extra * (kind - 1)  # counted again as they come
    if position > size:
        raise BadMessageError("the message ends in the middle of an item")
    if position < size:
        raise BadMessageError(f"{size - position} bytes follow the message")


class _NestedError(ValueError):
    """Not exactly one array: not for the direct decoder."""


class Decoder:
    """Bytes to checked fields, under `limits`. Not thread-safe: one for each owner of a socket."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._arrays = 0
        self._fresh()

    def _fresh(self) -> None:
        # One Unpacker for all messages: making it costs more than a message.
        limits = self.limits
        self._unpacker = msgpack.Unpacker(
            use_list=False,
            list_hook=self._count_array,
            max_buffer_size=limits.frame_bytes,
            max_array_len=8,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=limits.str_bytes,
            max_bin_len=limits.frame_bytes,
        )
        self._fed = 0

    def request(self, frames: Sequence[bytes]) -> tuple[str, Ident, tuple[Any, ...]]:
        """Decode a request to (op, id, fields), each field of the type `REQUESTS` names.

        Raises BadMessageError, which carries the id if it could be read.
        """
        limits = self.limits
        if len(frames) != limits.frames:
            raise BadMessageError(f"a message is {limits.frames} frame, this one has {len(frames)}")
        message = self._message(frames[0])
        if len(message) < 3:
            raise BadMessageError(f"a request is [version, op, id, ...], got {len(message)} items")
        version, op, ident = message[:3]
        if type(ident) is not int:
            ident = self._ident(ident)
        if version != VERSION or type(version) is not int:
            raise BadMessageError(f"only protocol version {VERSION} is spoken here", ident)
        fields = message[3:]
        if op == "step" and _is_plain_step(fields):
            return op, ident, fields
        checks = REQUESTS.get(op) if type(op) is str else None
        if checks is None:
            raise BadMessageError(f"unknown operation; known are {', '.join(REQUESTS)}", ident)
        if len(fields) != len(checks):
            raise BadMessageError(
                f"{op} has {len(checks)} fields after the id "
                f"({', '.join(name for name, _, _ in checks) or 'none'}), got {len(fields)}",
                ident,
            )
        for value, (name, check, wanted) in zip(fields, checks, strict=True):
            if not check(value):
                raise BadMessageError(f"{op}: {name} must be {wanted}", ident)
        named = {"open": 0, "fork": 3}.get(op)
        if named is not None and len(fields[named].encode()) > limits.name_bytes:
            raise BadMessageError(f"{op}: name is longer than {limits.name_bytes} bytes", ident)
        return op, ident, fields

    def reply(self, frame: bytes) -> tuple[Any, ...]:
        """Decode a reply or notice to its items: (version, status, id, ...), nothing checked after.

        Raises BadMessageError.
        """
        message = self._message(frame)
        if len(message) < 3 or message[0] != VERSION or type(message[1]) is not str:
            raise BadMessageError(f"the server's reply is not one of protocol version {VERSION}")
        return message

    def _message(self, frame: bytes) -> tuple[Any, ...]:
        limits = self.limits
        if len(frame) > limits.frame_bytes:
            raise BadMessageError(
                f"a message may have {limits.frame_bytes} bytes, this one has {len(frame)}"
            )
        self._arrays = 0
        self._fed += len(frame)
        unpacker = self._unpacker
        try:
            unpacker.feed(frame)
            message = unpacker.unpack()
            if unpacker.tell() != self._fed:
                raise _NestedError
        except (ValueError, msgpack.OutOfData):
            self._fresh()
            message = self._nested_message(frame)
        if type(message) is not tuple:
            raise BadMessageError("a message is a msgpack array")
        return message

    def _count_array(self, array: tuple[Any, ...]) -> tuple[Any, ...]:
        self._arrays += 1
        if self._arrays > 1:
            raise _NestedError
        return array

    def _nested_message(self, frame: bytes) -> Any:
        limits = self.limits
        _walk(frame, limits)
        try:
            return msgpack.unpackb(
                frame,
                use_list=False,
                max_array_len=limits.items,
                max_map_len=limits.items,
                max_ext_len=0,
                max_str_len=limits.str_bytes,
                max_bin_len=limits.frame_bytes,
            )
        except ValueError as error:  # text that is not UTF-8, odd map keys, over-long strings
            raise BadMessageError(f"the message can't be decoded: {error}") from None

    def _ident(self, value: object) -> str | bytes:
        if type(value) in (str, bytes):
            size = len(value.encode() if isinstance(value, str) else value)  # type: ignore[arg-type]
            if size <= self.limits.id_bytes:
                return value  # type: ignore[return-value]
        raise BadMessageError(
            f"id must be an integer, or a string or bin of at most {self.limits.id_bytes} bytes"
        )


# --- encoding -------------------------------------------------------------------------------------


class Encoder:
    """Messages to bytes with one reused buffer. Not thread-safe: one for each owner of a socket."""

    def __init__(self) -> None:
        self._pack: Callable[[object], bytes] = msgpack.Packer().pack

    def request(self, op: str, ident: Ident, fields: tuple[Any, ...]) -> bytes:
        return self._pack((VERSION, op, ident, *fields))

    def ok(self, ident: Ident, *values: object) -> bytes:
        return self._pack((VERSION, "ok", ident, *values))

    def error(self, ident: Ident, error: StreamLSTMError, **details: object) -> bytes:
        code = type(error).code
        if code not in ERRORS:
            code = ServerInternalError.code
        return self._pack((VERSION, "error", ident, code, str(error), details))

    def notice(self, kind: str, *values: object) -> bytes:
        return self._pack((VERSION, "notice", None, kind, *values))


# --- payloads -------------------------------------------------------------------------------------


def event_bytes(payload: bytes | tuple[Any, ...], dtype: np.dtype[Any], inputs: int) -> bytes:
    """One event as raw numbers: bin of `inputs` numbers of `dtype`, or a list of them."""
    if isinstance(payload, bytes):
        if len(payload) != inputs * dtype.itemsize:
            raise ShapeError(
                f"an event is {inputs} {dtype.name} numbers ({inputs * dtype.itemsize} bytes), "
                f"got {len(payload)} bytes"
            )
        return payload
    if len(payload) != inputs:
        raise ShapeError(f"an event is {inputs} numbers, got a list of {len(payload)}")
    return _numbers(payload, dtype).tobytes()


def matrix(payload: bytes | tuple[Any, ...], dtype: np.dtype[Any], inputs: int) -> Array:
    """Rows of events as an array [rows, inputs] of `dtype`; read-only when it came as bin."""
    if isinstance(payload, bytes):
        if len(payload) % (inputs * dtype.itemsize):
            raise ShapeError(
                f"rows of {inputs} {dtype.name} numbers are {inputs * dtype.itemsize} bytes each, "
                f"{len(payload)} bytes are not whole rows"
            )
        return np.frombuffer(payload, dtype).reshape(-1, inputs)
    for index, row in enumerate(payload):
        if type(row) is not tuple or len(row) != inputs:
            raise ShapeError(f"row {index} must be a list of {inputs} numbers")
    return _numbers(tuple(chain.from_iterable(payload)), dtype).reshape(-1, inputs)


def _numbers(values: tuple[Any, ...], dtype: np.dtype[Any]) -> Array:
    if not set(map(type, values)) <= {int, float}:
        raise InputError("a list payload may hold numbers only")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which the engine refuses
        return np.array(values, np.float64).astype(dtype)


def integers(value: bytes | tuple[int, ...], dtype: str, name: str) -> Array:
    """A vector of handles ('<u8'), epochs ('<u4') or seqs ('<i8') from bin or a list."""
    if isinstance(value, bytes):
        if len(value) % np.dtype(dtype).itemsize:
            raise ProtocolError(f"{name}: {len(value)} bytes are not whole {dtype} numbers")
        return np.frombuffer(value, dtype)
    try:
        return np.array(value, dtype)
    except OverflowError:
        raise ProtocolError(f"{name}: a number does not fit {dtype}") from None
