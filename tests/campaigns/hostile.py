"""Malformed and hostile messages: valid ones mutated, and what nobody would send by mistake.

The sender owns some sessions, and knows a victim's name, handle and epoch. It never takes the
victim's session over: nothing forbids that to a client that knows the name (no authentication).
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass, field
from typing import Any

import msgpack

Frames = list[bytes]

NAMES = 64
"""Sessions that all senders share; each open takes one over from another sender."""

JUNK: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0,
    "", "x", "x" * 300, "x" * 2000, "\0", "é" * 200, "../../etc/passwd", "'; DROP TABLE sessions",
    b"", b"\xff" * 7, bytes(12), bytes(4096),
    [], [[]], [[[[[]]]]], [None] * 20, [1, 2, 3], [[1, 2, 3]] * 3, {}, {"a": {"b": [1]}}, {1: 2},
    msgpack.ExtType(5, b"x"), msgpack.ExtType(127, bytes(300)), msgpack.Timestamp(1, 2),
)  # fmt: skip

KINDS = (
    "valid", "junk_field", "flipped", "truncated", "giant_length", "deep", "bad_numbers",
    "wrong_version", "foreign", "numbers", "frames", "noise", "bad_state", "large",
)  # fmt: skip
KIND_WEIGHTS = (20, 20, 15, 8, 5, 3, 5, 3, 12, 10, 2, 4, 3, 0.02)

OPS = (
    "step", "steps", "run", "open", "fork", "reset", "state", "restore", "close", "stats", "hello",
    "forecast", "counters",
)  # fmt: skip
OP_WEIGHTS = (30, 10, 10, 10, 5, 5, 5, 5, 3, 2, 2, 3, 2)
STEPS = (0, 1, 2, 24, 10_000, 10_001, 2**31, 2**63, 2**64 - 1)

HEADS = {  # msgpack's 32-bit lengths
    "array": b"\xdd", "map": b"\xdf", "str": b"\xdb", "bin": b"\xc6", "ext": b"\xc9",
}  # fmt: skip
LENGTHS = (2**32 - 1, 2**31, 2**24, 70_000, 4096)


@dataclass
class Hostile:
    """Draws messages, each a list of frames. own, victim: (handle, epoch)."""

    rng: random.Random
    inputs: int
    victim_name: str
    victim: tuple[int, int]
    own: list[tuple[int, int]] = field(default_factory=list)
    blob: bytes = b""
    """A saved state."""
    number: str = "f"
    """The kind of payloads' numbers: f or d."""

    def draw(self) -> Frames:
        made = getattr(self, self.rng.choices(KINDS, KIND_WEIGHTS)[0])()
        return made if isinstance(made, list) else [made]

    # --- valid ones ---

    def message(self) -> list[Any]:
        """A message that would be done, as the items of its array."""
        rng = self.rng
        session = rng.choice(self.own)
        op = rng.choices(OPS, OP_WEIGHTS)[0]
        name = f"hostile-{rng.randrange(NAMES)}"
        token = rng.getrandbits(62) + 1
        fields: tuple[Any, ...]
        match op:
            case "step":
                fields = (*session, None, None, self.payload())
            case "steps":
                fields = (*([n] for n in session), None, None, self.payload())
            case "run":
                fields = (*session, None, None, self.payload(rng.randrange(1, 5)))
            case "open":
                fields = (name, None, True, None, token)
            case "fork":
                fields = (*session, None, name, token)
            case "reset":
                fields = (*session, None)
            case "restore":
                fields = (*session, None, self.blob)
            case "forecast":
                fields = (*session, rng.choice(STEPS))
            case "state" | "close" | "counters":
                fields = session
            case "hello":
                fields = ({"client": "hostile"},)
            case _:
                fields = ()
        return [1, op, self.ident(), *fields]

    def ident(self) -> Any:
        """Often one that was used before."""
        rng = self.rng
        return rng.choice((0, 1, 7, "same", b"same", rng.getrandbits(63)))

    def payload(self, rows: int = 1) -> bytes:
        numbers = [self.rng.uniform(-2, 2) for _ in range(rows * self.inputs)]
        return struct.pack(f"<{len(numbers)}{self.number}", *numbers)

    def valid(self) -> bytes:
        return msgpack.packb(self.message())

    # --- mutated ones ---

    def junk_field(self) -> bytes:
        """One or two items of another type, too many or too few."""
        rng, message = self.rng, self.message()
        for _ in range(rng.randrange(1, 3)):
            message[rng.randrange(len(message))] = rng.choice(JUNK)
        if rng.random() < 0.2:
            message.append(rng.choice(JUNK))
        elif rng.random() < 0.2:
            message.pop()
        return msgpack.packb(message)

    def flipped(self) -> bytes:
        changed = bytearray(self.valid())
        for _ in range(self.rng.randrange(1, 4)):
            changed[self.rng.randrange(len(changed))] = self.rng.randrange(256)
        return bytes(changed)

    def truncated(self) -> bytes:
        frame = self.valid()
        return frame[: self.rng.randrange(len(frame))]

    def giant_length(self) -> bytes:
        """A length that the message does not have, at its beginning or in place of an item."""
        rng = self.rng
        head = rng.choice(list(HEADS.values())) + struct.pack(">I", rng.choice(LENGTHS))
        if rng.random() < 0.3:
            return head * rng.randrange(1, 1000)
        items = [msgpack.packb(item) for item in self.message()]
        items[rng.randrange(len(items))] = head + rng.randbytes(rng.randrange(20))
        return bytes([0x90 + len(items)]) + b"".join(items)

    def deep(self) -> bytes:
        opened = self.rng.choice((b"\x91", b"\x81\xa1a", b"\xdc\x00\x02\xc0", b"\xdd\0\0\xff\xff"))
        return opened * self.rng.randrange(5, 3000)

    def bad_numbers(self) -> bytes:
        """NaN, infinity and the like as events; payloads of a wrong size; lists of them."""
        rng, session = self.rng, self.rng.choice(self.own)
        bad = rng.choice((math.nan, math.inf, -math.inf, 3e38, 1e39, 1e-45))
        numbers = [bad] * rng.choice((self.inputs, self.inputs, 1, 2 * self.inputs, 999))
        x: Any = numbers
        if rng.random() < 0.5:
            x = b"".join(struct.pack("<d", n) for n in numbers)
            if abs(bad) < 3.4e38 or not math.isfinite(bad):
                x = struct.pack(f"<{len(numbers)}f", *numbers)
        op = rng.choice(("step", "run"))
        return msgpack.packb([1, op, self.ident(), *session, None, None, x])

    def wrong_version(self) -> bytes:
        message = self.message()
        message[self.rng.randrange(2)] = self.rng.choice((0, 2, 255, "1", "STEP", "", b"step", 1.0))
        return msgpack.packb(message)

    def foreign(self) -> bytes:
        """The victim's handle, epoch and name, and others that are nobody's."""
        rng = self.rng
        handle, epoch = self.victim
        handle = rng.choice((handle, handle, rng.getrandbits(64), handle + (1 << 32), 2**64 - 1))
        session = handle, rng.choice((epoch, epoch, (epoch + 1) % 2**32, 0, rng.getrandbits(32)))
        old_epoch = (self.victim[1] + rng.randrange(1, 2**32 - 1)) % 2**32
        token = rng.getrandbits(62) + 1
        own = rng.choice(self.own)
        fields = rng.choice(
            (
                ("step", *session, None, None, self.payload()),
                ("run", *session, 1, None, self.payload(3)),
                ("steps", [own[0], session[0]], [own[1], session[1]], None, None,
                 self.payload(2)),
                ("reset", *session, None),
                ("restore", *session, None, self.blob),
                ("state", *session),
                ("forecast", *session, 2),
                ("counters", *session),
                ("close", *session),
                ("fork", *session, None, f"hostile-{rng.randrange(NAMES)}", token),
                ("fork", *own, None, self.victim_name, token),
                ("open", self.victim_name, None, False, None, token),
                ("open", self.victim_name, None, True, old_epoch, token),
            )
        )  # fmt: skip
        return msgpack.packb([1, fields[0], self.ident(), *fields[1:]])

    def numbers(self) -> bytes:
        """Seqs and deadlines that are not of this world."""
        rng, session = self.rng, self.rng.choice(self.own)
        seq = rng.choice((0, 1, 2, 2**31, 2**53, 2**63 - 1, 2**63, -1, 1.5))
        odd = (0, -1e9, 1e-300, 1e300, 2**64 - 1, math.nan, math.inf, -math.inf, "soon")
        deadline = rng.choice((None, None, *odd))
        op = rng.choice(("step", "run", "steps"))
        if op == "steps":
            handles, epochs = rng.choice(((session[:1], session[1:]), (session, session), ([], [])))
            head: tuple[Any, ...] = (handles, epochs, [seq])
        else:
            head = (*session, seq)
        return msgpack.packb([1, op, self.ident(), *head, deadline, self.payload()])

    def frames(self) -> Frames:
        count = self.rng.choice((2, 2, 3, 20, 200))
        return [self.rng.choice((b"", self.valid())) for _ in range(count)]

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(200))

    def bad_state(self) -> bytes:
        changed = bytearray(self.blob)
        for _ in range(self.rng.randrange(1, 4)):
            changed[self.rng.randrange(len(changed))] = self.rng.randrange(256)
        cut = bytes(changed[: self.rng.choice((len(changed), self.rng.randrange(len(changed))))])
        return msgpack.packb([1, "restore", self.ident(), *self.rng.choice(self.own), None, cut])

    def large(self) -> bytes:
        """Rare: at the limit, beyond it, and so large that the connection is cut."""
        return bytes(self.rng.choice((1 << 20, (8 << 20) - 1, (8 << 20) + 1, (16 << 20) + 1)))
