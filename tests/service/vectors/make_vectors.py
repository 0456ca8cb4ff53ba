"""Writes version1.json: requests and the replies they must get, byte for byte.

python tests/service/vectors/make_vectors.py

The bytes are made here by hand and by msgpack alone, not by streamlstm, so that
they are a second witness of docs/protocol.md. The server they talk to has one
model, "fold", float32, two inputs and two outputs: an event x makes the state
s = s / 2 + x (s is 0 0 at first), and the output is s, but NaN where x is 666. Its
first session has handle 0, the first epoch of every handle is 1, a session may have
16 unanswered messages and a client 2.

A second server, "tide", has a model with a head, float64, two inputs, time and level, and two
outputs: as the first one, but a level of NaN is missing and adds nothing, and the quantiles of
the level k steps ahead are the second number of s / 2**k, with -1, 0 and 1 added.

Exchanges are in order, with "fold" unless `server` says so, from client A unless `peer`
says so, when the server's clock says `now`. A `held` one is answered together with the
next. An error is written as [id, code, details], what hello answers as the items that do
not vary.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

CORNER = 2**64 - 1
NAN = float("nan")
FOLD = ("fold", "fold-2")
"""Name and fingerprint of the model."""
TIDE = ("tide", "tide-2")


def f4(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def f8(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)


def refused(ident: Any, code: str, **details: Any) -> dict[str, Any]:
    return {"error": [msgpack.packb(ident).hex(), code, details]}


def notice(peer: str, kind: str, *sessions: Any) -> dict[str, Any]:
    return {"peer": peer, "hex": msgpack.packb([1, "notice", None, kind, sessions]).hex()}


def exchanges() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def add(about: str, request: Any, *replies: Any, peer: str = "A", **how: Any) -> None:
        frame = request if isinstance(request, bytes) else msgpack.packb(request)
        answers = [
            {"peer": reply.pop("peer", peer), **reply}
            if isinstance(reply, dict)
            else {"peer": peer, "hex": msgpack.packb(reply).hex()}
            for reply in replies
        ]
        made.append(
            {"about": about, "peer": peer, **how, "request": frame.hex(), "replies": answers}
        )

    for part in (
        one_session,
        refused_steps_and_a_run,
        repeats,
        bulk,
        state_and_owners,
        tokens_and_attaching,
        late_and_busy,
        quarantine,
        refusals,
        readings,
    ):
        part(add)
    return made


def one_session(add: Callable[..., None]) -> None:
    """A session, its steps, and the kinds of id and payload."""
    add(
        "what the server is",
        [1, "hello", 0, {"client": "vectors"}],
        {"hello": ["00", {"versions": [1], "clock": 2.5, "durability": "memory"}]},
        now=2.5,
    )
    add(
        "open a new session",
        [1, "open", 1, "pump-17", None, False, None, 77],
        [1, "ok", 1, 0, 1, 0, *FOLD],
    )
    add(
        "its name is taken",
        [1, "open", 2, "pump-17", None, False, None, 78],
        refused(2, "SESSION_EXISTS"),
    )
    add("step", [1, "step", 3, 0, 1, 1, None, f4(4, 8)], [1, "ok", 3, 1, f4(4, 8)])
    add(
        "step, the bytes written out",
        bytes.fromhex("98 01 a4 73746570 04 00 01 02 c0 c4 08 0000803f 0000803f"),
        [1, "ok", 4, 2, f4(3, 5)],
    )
    add(
        "step without seq, with a list and a text id",
        [1, "step", "five", 0, 1, None, None, [1, 1.5]],
        [1, "ok", "five", 3, f4(2.5, 4)],
    )
    add(
        "an id of bytes comes back as bytes",
        [1, "step", b"\x00\xff", 0, 1, 4, None, [0, 0]],
        [1, "ok", b"\x00\xff", 4, f4(1.25, 2)],
    )


def refused_steps_and_a_run(add: Callable[..., None]) -> None:
    """Steps that are refused change nothing."""
    add(
        "a seq that leaves a gap",
        [1, "step", 6, 0, 1, 9, None, f4(1, 1)],
        refused(6, "SEQUENCE", expected=5),
    )
    add(
        "not a number",
        [1, "step", 7, 0, 1, 5, None, f4(1, float("nan"))],
        refused(7, "NON_FINITE"),
    )
    add("a number too few", [1, "step", 8, 0, 1, 5, None, f4(1)], refused(8, "SHAPE"))
    add(
        "run: two events",
        [1, "run", 9, 0, 1, 5, None, f4(0, 0, 8, 8)],
        [1, "ok", 9, 6, f4(0.625, 1, 8.3125, 8.5)],
    )


def repeats(add: Callable[..., None]) -> None:
    """The same message again, whatever its id, is answered again and not done."""
    run = [1, "ok", "run", 6, f4(0.625, 1, 8.3125, 8.5)]
    add("the run again", [1, "run", "run", 0, 1, 5, None, f4(0, 0, 8, 8)], run)
    add(
        "an event before the run: its answer is gone",
        [1, "step", 30, 0, 1, 4, None, f4(0, 0)],
        refused(30, "ANSWER_GONE"),
    )
    add(
        "a step",
        [1, "step", 31, 0, 1, 7, None, f4(0, 0)],
        [1, "ok", 31, 7, f4(4.15625, 4.25)],
    )
    add(
        "the same step again",
        [1, "step", 32, 0, 1, 7, None, f4(0, 0)],
        [1, "ok", 32, 7, f4(4.15625, 4.25)],
    )
    add(
        "another input with its number",
        [1, "step", 33, 0, 1, 7, None, f4(0, 1)],
        refused(33, "SEQUENCE", expected=8),
    )


def bulk(add: Callable[..., None]) -> None:
    """One event each for two sessions."""
    add(
        "a second session",
        [1, "open", 10, "pump-18", "fold", True, None, None],
        [1, "ok", 10, 1, 1, 0, *FOLD],
    )
    both = [struct.pack("<2Q", 1, 0), struct.pack("<2I", 1, 1), struct.pack("<2q", 1, 8)]
    Y = f4(1, 1, 2.078125, 2.125)
    for about, ident in (("one event each for both", 11), ("the same again", 34)):
        add(
            f"steps: {about}",
            [1, "steps", ident, *both, None, f4(1, 1, 0, 0)],
            [1, "ok", ident, both[2], Y],
        )
    add(
        "steps with plain lists and no seqs",
        [1, "steps", 12, [0, 1], [1, 1], None, None, [[0, 0], [0, 0]]],
        [1, "ok", 12, struct.pack("<2q", 9, 2), f4(1.0390625, 1.0625, 0.5, 0.5)],
    )
    add(
        "a session twice",
        [1, "steps", 13, [0, 0], [1, 1], None, None, [[0, 0], [0, 0]]],
        refused(13, "REPEATED_SESSION"),
    )
    add(
        "steps: one new and one repeat",
        [1, "steps", 14, [0, 1], [1, 1], [10, 2], None, [[0, 0], [0, 0]]],
        refused(14, "SEQUENCE", expected=3, index=1),
    )


def state_and_owners(add: Callable[..., None]) -> None:
    """State, take-over and close."""
    saved = b"fold" + f4(0.5, 0.5)
    add("state", [1, "state", 15, 1, 1], [1, "ok", 15, 2, saved])
    add("reset", [1, "reset", 16, 1, 1, 3], [1, "ok", 16, 3])
    add("restore", [1, "restore", 17, 1, 1, 4, saved], [1, "ok", 17, 4])
    add("restore again", [1, "restore", 35, 1, 1, 4, saved], [1, "ok", 35, 4])
    add(
        "restore what is no state",
        [1, "restore", 18, 1, 1, 5, b"?"],
        refused(18, "STATE_MISMATCH"),
    )
    add(
        "take a session over: its owner is told",
        [1, "open", 19, "pump-18", None, True, None, 5],
        notice("A", "fenced", ["pump-18", 1, 1, 4]),
        [1, "ok", 19, 1, 2, 4, *FOLD],
        peer="B",
    )
    add(
        "the old owner is fenced",
        [1, "step", 20, 1, 1, 5, None, f4(1, 1)],
        refused(20, "FENCED"),
    )
    add(
        "and can't attach",
        [1, "open", 36, "pump-18", None, True, 1, 6],
        refused(36, "FENCED"),
    )
    add(
        "the new one goes on",
        [1, "step", 21, 1, 2, 5, None, f4(1, 1)],
        [1, "ok", 21, 5, f4(1.25, 1.25)],
        peer="B",
    )
    add("close", [1, "close", 22, 1, 2], [1, "ok", 22, 5], peer="B")
    add(
        "a closed session",
        [1, "step", 23, 1, 2, 6, None, f4(1, 1)],
        refused(23, "SESSION_CLOSED"),
        peer="B",
    )


def tokens_and_attaching(add: Callable[..., None]) -> None:
    """What a client does whose connection was lost: A comes back as C."""
    add(
        "the open of before, sent again: the same answer",
        [1, "open", 37, "pump-17", None, False, None, 77],
        [1, "ok", 37, 0, 1, 9, *FOLD],
    )
    add(
        "attach from another connection",
        [1, "open", 38, "pump-17", None, True, 1, 79],
        notice("A", "fenced", ["pump-17", 0, 1, 9]),
        [1, "ok", 38, 0, 2, 9, *FOLD],
        peer="C",
    )
    add(
        "what was sent under the epoch before is not done",
        [1, "step", 40, 0, 1, 10, None, f4(0, 0)],
        refused(40, "FENCED"),
        peer="C",
    )
    add(
        "and again, had the reply been lost",
        [1, "open", 39, "pump-17", None, True, 1, 79],
        [1, "ok", 39, 0, 2, 9, *FOLD],
        peer="C",
    )
    add(
        "under the new one a repeat is answered",
        [1, "step", 41, 0, 2, 7, None, f4(0, 0)],
        [1, "ok", 41, 7, f4(4.15625, 4.25)],
        peer="C",
    )
    add(
        "attach to what is not there",
        [1, "open", 42, "pump-18", None, True, 2, 80],
        refused(42, "SESSION_UNKNOWN", seq=0),
        peer="C",
    )
    for about, ident in (("fork", 43), ("the same fork again", 44)):
        add(
            about,
            [1, "fork", ident, 0, 2, 9, "twin", 81],
            [1, "ok", ident, 1, 3, 0, *FOLD],
            peer="C",
        )


def late_and_busy(add: Callable[..., None]) -> None:
    """Refused unstepped."""
    add(
        "past its deadline",
        [1, "step", 45, 0, 2, 10, 9.5, f4(0, 0)],
        refused(45, "DEADLINE"),
        peer="C",
        now=10.0,
    )
    for seq, ident in ((10, 46), (11, 47)):
        step = [1, "step", ident, 0, 2, seq, 11.5, f4(0, 0)]
        add("before its deadline", step, peer="C", now=10.0, held=True)
    add(
        "one more than the client may have waiting",
        [1, "step", 48, 0, 2, 12, None, f4(0, 0)],
        refused(48, "BUSY", retry_after_s=0.01),
        [1, "ok", 46, 10, f4(0.51953125, 0.53125)],
        [1, "ok", 47, 11, f4(0.259765625, 0.265625)],
        peer="C",
        now=11.0,
    )


def quarantine(add: Callable[..., None]) -> None:
    """An event that makes the state non-finite."""
    add(
        "a ruinous event",
        [1, "step", 49, 1, 3, 1, None, f4(666, 0)],
        refused(49, "QUARANTINED", seq=1),
        peer="C",
    )
    add(
        "no more events",
        [1, "step", 50, 1, 3, 2, None, f4(0, 0)],
        refused(50, "QUARANTINED", seq=1),
        peer="C",
    )
    add("until a reset", [1, "reset", 51, 1, 3, 2], [1, "ok", 51, 2], peer="C")
    nan = struct.pack("<I", 0x7FC00000)
    add(
        "in steps: a row of NaN and a notice",
        [1, "steps", 52, [1, 0], [3, 2], [3, 12], None, [[666, 0], [8, 8]]],
        notice("C", "quarantined", ["twin", 1, 3, 3]),
        [1, "ok", 52, struct.pack("<2q", 3, 12), nan * 2 + f4(8.1298828125, 8.1328125)],
        peer="C",
    )


def refusals(add: Callable[..., None]) -> None:
    """What no session is asked for."""
    add("a session that never was", [1, "close", 24, 7, 1], refused(24, "SESSION_UNKNOWN"))
    add("no such model", [1, "open", 25, "x", "no such", False, None, 1], refused(25, "MODEL"))
    add("another version", [2, "stats", 26], refused(26, "PROTOCOL"))
    add("no such operation", [1, "dance", 27], refused(27, "PROTOCOL"))
    add("a field too few", [1, "close", CORNER, 0], refused(CORNER, "PROTOCOL"))
    add("a truncated message", msgpack.packb([1, "stats", 28])[:-2], refused(None, "PROTOCOL"))


def readings(add: Callable[..., None]) -> None:
    """A model with a head: values may be missing, forecasts and counters can be had."""

    def ask(about: str, request: Any, *replies: Any) -> None:
        add(about, request, *replies, server="tide")

    ask(
        "a session of a model with a head",
        [1, "open", 60, "harbour", None, False, None, 90],
        [1, "ok", 60, 0, 1, 0, *TIDE],
    )
    ask(
        "a reading",
        [1, "step", 61, 0, 1, 1, None, f8(8, 4)],
        [1, "ok", 61, 1, f8(8, 4)],
    )
    for about, ident in (("a missing value", 62), ("the same again", 63)):
        ask(
            about,
            [1, "step", ident, 0, 1, 2, None, f8(16, NAN)],
            [1, "ok", ident, 2, f8(20, 2)],
        )
    ask(
        "a missing time",
        [1, "step", 64, 0, 1, 3, None, f8(NAN, 4)],
        refused(64, "NON_FINITE"),
    )
    forecast = f8(0, 1, 2, -0.5, 0.5, 1.5)
    ask("forecast", [1, "forecast", 65, 0, 1, 2], [1, "ok", 65, 2, forecast])
    for steps in (0, 10_001):
        ask("of too few or too many", [1, "forecast", 66, 0, 1, steps], refused(66, "INPUT"))
    ask("counters", [1, "counters", 67, 0, 1], [1, "ok", 67, 2, {"missing": 1}])
    add(
        "forecast of a model without a head",
        [1, "forecast", 68, 0, 2, 2],
        refused(68, "ENGINE"),
        peer="C",
    )
    add("and its counters", [1, "counters", 69, 0, 2], [1, "ok", 69, 12, {}], peer="C")


def main() -> None:
    text = json.dumps({"protocol": 1, "exchanges": exchanges()}, indent=1)
    Path(__file__).with_name("version1.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
