"""Writes version1.json: requests and the replies they must get, byte for byte.

python tests/serving/vectors/make_vectors.py

The bytes are made here by hand and by msgpack alone, not by streamlstm, so that
they are a second witness of docs/protocol.md. The server they talk to has one
model, "fold", float32, two inputs and two outputs: an event x makes the state
s = s / 2 + x (s is 0 0 at first), and the output is s. Its first session has handle 0
and epoch 1. Exchanges are in order, from client A unless `peer` says so.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

CORNER = 2**64 - 1


def f4(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def refused(ident: Any, code: str, **details: Any) -> dict[str, Any]:
    return {"error": [msgpack.packb(ident).hex(), code, details]}


def exchanges() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def add(about: str, request: Any, *replies: Any, peer: str = "A") -> None:
        frame = request if isinstance(request, bytes) else msgpack.packb(request)
        answers = [
            {"peer": reply.pop("peer", peer), **reply}
            if isinstance(reply, dict)
            else {"peer": peer, "hex": msgpack.packb(reply).hex()}
            for reply in replies
        ]
        made.append({"about": about, "peer": peer, "request": frame.hex(), "replies": answers})

    for part in (one_session, refused_steps_and_a_run, bulk, state_and_owners, refusals):
        part(add)
    return made


def one_session(add: Callable[..., None]) -> None:
    """A session, its steps, and the kinds of id and payload."""
    add("open a new session", [1, "open", 1, "pump-17", None, False], [1, "ok", 1, 0, 1, 0, "fold"])
    add("its name is taken", [1, "open", 2, "pump-17", None, False], refused(2, "SESSION_EXISTS"))
    add("step", [1, "step", 3, 0, 1, 1, None, f4(4, 8)], [1, "ok", 3, 1, f4(4, 8)])
    add(
        "step, the bytes written out",
        bytes.fromhex("98 01 a4 73746570 04 00 01 02 c0 c4 08 0000803f 0000803f"),
        [1, "ok", 4, 2, f4(3, 5)],
    )
    add(
        "step without seq, with an event time, a list and a text id",
        [1, "step", "five", 0, 1, None, 1.7e9, [1, 1.5]],
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
        "a seq that is not the next",
        [1, "step", 6, 0, 1, 9, None, f4(1, 1)],
        refused(6, "SEQUENCE", expected=5),
    )
    add(
        "not a number", [1, "step", 7, 0, 1, 5, None, f4(1, float("nan"))], refused(7, "NON_FINITE")
    )
    add("a number too few", [1, "step", 8, 0, 1, 5, None, f4(1)], refused(8, "SHAPE"))
    add(
        "run: two events",
        [1, "run", 9, 0, 1, 5, None, f4(0, 0, 8, 8)],
        [1, "ok", 9, 6, f4(0.625, 1, 8.3125, 8.5)],
    )


def bulk(add: Callable[..., None]) -> None:
    """One event each for two sessions."""
    add(
        "a second session", [1, "open", 10, "pump-18", "fold", True], [1, "ok", 10, 1, 1, 0, "fold"]
    )
    add(
        "steps: one event each for both",
        [
            1,
            "steps",
            11,
            struct.pack("<2Q", 1, 0),
            struct.pack("<2I", 1, 1),
            struct.pack("<2q", 1, 7),
            None,
            f4(1, 1, 0, 0),
        ],
        [1, "ok", 11, struct.pack("<2q", 1, 7), f4(1, 1, 4.15625, 4.25)],
    )
    add(
        "steps with plain lists and no seqs",
        [1, "steps", 12, [0, 1], [1, 1], None, None, [[0, 0], [0, 0]]],
        [1, "ok", 12, struct.pack("<2q", 8, 2), f4(2.078125, 2.125, 0.5, 0.5)],
    )
    add(
        "a session twice",
        [1, "steps", 13, [0, 0], [1, 1], None, None, [[0, 0], [0, 0]]],
        refused(13, "REPEATED_SESSION"),
    )
    add(
        "steps with a wrong seq",
        [1, "steps", 14, [0, 1], [1, 1], [9, 9], None, [[0, 0], [0, 0]]],
        refused(14, "SEQUENCE", expected=3, index=1),
    )


def state_and_owners(add: Callable[..., None]) -> None:
    """State, take-over and close."""
    add("state", [1, "state", 15, 1, 1], [1, "ok", 15, 2, b"fold" + f4(0.5, 0.5)])
    add("reset", [1, "reset", 16, 1, 1], [1, "ok", 16, 2])
    add("restore", [1, "restore", 17, 1, 1, b"fold" + f4(0.5, 0.5)], [1, "ok", 17, 2])
    add("restore what is no state", [1, "restore", 18, 1, 1, b"?"], refused(18, "STATE_MISMATCH"))
    add(
        "take a session over: its owner is told",
        [1, "open", 19, "pump-18", None, True],
        {
            "peer": "A",
            "hex": msgpack.packb([1, "notice", None, "fenced", [["pump-18", 1, 1, 2]]]).hex(),
        },
        [1, "ok", 19, 1, 2, 2, "fold"],
        peer="B",
    )
    add("the old owner is fenced", [1, "step", 20, 1, 1, 3, None, f4(1, 1)], refused(20, "FENCED"))
    add(
        "the new one goes on",
        [1, "step", 21, 1, 2, 3, None, f4(1, 1)],
        [1, "ok", 21, 3, f4(1.25, 1.25)],
        peer="B",
    )
    add("close", [1, "close", 22, 1, 2], [1, "ok", 22, 3], peer="B")
    add(
        "a closed session",
        [1, "step", 23, 1, 2, 4, None, f4(1, 1)],
        refused(23, "SESSION_CLOSED"),
        peer="B",
    )


def refusals(add: Callable[..., None]) -> None:
    """What no session is asked for."""
    add("a session that never was", [1, "close", 24, 7, 1], refused(24, "SESSION_UNKNOWN"))
    add("no such model", [1, "open", 25, "x", "no such", False], refused(25, "MODEL"))
    add("another version", [2, "stats", 26], refused(26, "PROTOCOL"))
    add("no such operation", [1, "dance", 27], refused(27, "PROTOCOL"))
    add("a field too few", [1, "close", CORNER, 0], refused(CORNER, "PROTOCOL"))
    add("a truncated message", msgpack.packb([1, "stats", 28])[:-2], refused(None, "PROTOCOL"))


def main() -> None:
    text = json.dumps({"protocol": 1, "exchanges": exchanges()}, indent=1)
    Path(__file__).with_name("version1.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
