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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

from streamlstm import errors
from streamlstm.errors import (
    ProtocolError,
    ServerInternalError,
    ServiceError,
    StreamLSTMError,
)
from streamlstm.service.operations import OPERATIONS, STEP, Fields, Fork, Open, Operation, Step

VERSION: Final = 1

Ident: TypeAlias = int | str | bytes | None
"""A correlation id: chosen by the client, echoed in the reply; None where a request had none."""


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


_NEW: Final = tuple.__new__  # what _make does, without its checks


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

    def request(self, frames: Sequence[bytes]) -> tuple[Operation, Ident, Fields]:
        """Decode a request to its operation, id and fields, each of the type that the record says.

        Raises BadMessageError, which carries the id if it could be read.
        """
        limits = self.limits
        if len(frames) != limits.frames:
            raise BadMessageError(f"a message is {limits.frames} frame, this one has {len(frames)}")
        message = self._message(frames[0])
        if len(message) < 3:
            raise BadMessageError(f"a request is [version, op, id, ...], got {len(message)} items")
        version, name, ident = message[:3]
        if type(ident) is not int:
            ident = self._ident(ident)
        if version != VERSION or type(version) is not int:
            raise BadMessageError(f"only protocol version {VERSION} is spoken here", ident)
        fields = message[3:]
        if name == STEP.name and _is_plain_step(fields):
            return STEP, ident, _NEW(Step, fields)
        op = OPERATIONS.get(name) if type(name) is str else None
        if op is None:
            raise BadMessageError(f"unknown operation; known are {', '.join(OPERATIONS)}", ident)
        if len(fields) != len(op.checks):
            raise BadMessageError(
                f"{name} has {len(op.checks)} fields after the id "
                f"({', '.join(op.fields._fields) or 'none'}), got {len(fields)}",
                ident,
            )
        for value, (field, check) in zip(fields, op.checks, strict=True):
            if not check.good(value):
                raise BadMessageError(f"{name}: {field} must be {check.wanted}", ident)
        named = op.fields._make(fields)
        if isinstance(named, (Open, Fork)) and len(named.name.encode()) > limits.name_bytes:
            raise BadMessageError(f"{name}: name is longer than {limits.name_bytes} bytes", ident)
        return op, ident, named

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

    def ok(self, ident: Ident, values: tuple[object, ...]) -> bytes:
        return self._pack((VERSION, "ok", ident, *values))

    def error(self, ident: Ident, error: StreamLSTMError, **details: object) -> bytes:
        code = type(error).code
        if code not in ERRORS:
            code = ServerInternalError.code
        return self._pack((VERSION, "error", ident, code, str(error), details))

    def notice(self, kind: str, *values: object) -> bytes:
        return self._pack((VERSION, "notice", None, kind, *values))
