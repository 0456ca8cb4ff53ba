"""A protocol to talk to in tests: messages built and read without the codec under test."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import numpy as np

from service.fake_engine import Engine, State
from streamlstm.service.server.protocol import ServerProtocol
from streamlstm.service.server.shard import SERVED_S_MAX

At = tuple[int, int]
"""Handle and epoch of a session."""


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def pack(*items: Any) -> bytes:
    return msgpack.packb(items)


def event(at: At, seq: int | None, *x: float, deadline: float | None = None) -> tuple[Any, ...]:
    """A step; one number stands for both inputs."""
    return "step", 0, *at, seq, deadline, floats(*(x * 2 if len(x) == 1 else x))


def run(at: At, seq: int | None, *xs: float, deadline: float | None = None) -> tuple[Any, ...]:
    """A run of events, each the same number twice."""
    return "run", 0, *at, seq, deadline, floats(*np.repeat(xs, 2))


def bulk(
    ats: list[At], X: Any, seqs: list[int] | None = None, deadline: float | None = None
) -> tuple[Any, ...]:
    """A steps message; X of a single dimension has one number for both inputs."""
    X = np.asarray(X, "<f4")
    X = np.repeat(X[:, None], 2, axis=1) if X.ndim == 1 else X
    handles, epochs = zip(*ats, strict=True) if ats else ((), ())
    packed = None if seqs is None else np.array(seqs, "<i8").tobytes()
    return (
        "steps", 0, np.array(handles, "<u8").tobytes(), np.array(epochs, "<u4").tobytes(), packed,
        deadline, X.tobytes(),
    )  # fmt: skip


class Talk:
    """A ServerProtocol over fake engines, a clock that stands still unless moved."""

    def __init__(self, *engines: Any, read_state: Any = State.from_bytes, **options: Any) -> None:
        self.engines = engines or (Engine(),)
        self.read_state = read_state
        self.now: float = options.get("now", 0.0)
        self.protocol = ServerProtocol(self.engines, read_state, server="test", **options)

    def send(self, *items: Any, peer: bytes = b"A") -> None:
        self.protocol.receive(peer, [pack(1, *items)])

    def step(self) -> list[tuple[bytes, list[Any]]]:
        """One round's replies as (peer, items without the version)."""
        replies = self.protocol.step(self.now)
        self.protocol.check()
        return [(peer, msgpack.unpackb(reply)[1:]) for peer, reply in replies]

    def serve_until(self, now: float) -> None:
        """Be there, and hear nothing: a longer step would count as standing still."""
        while self.now < now:
            self.now = min(now, self.now + SERVED_S_MAX)
            assert self.step() == []

    def settle(self) -> list[tuple[bytes, list[Any]]]:
        """Rounds until nothing is pending."""
        replies = self.step()
        while self.protocol.pending:
            replies += self.step()
        return replies

    def ask(self, *items: Any, peer: bytes = b"A") -> list[Any]:
        """The reply's items after version, of a request that must get exactly one."""
        self.send(*items, peer=peer)
        replies = self.settle()
        assert [to for to, _ in replies] == [peer]
        return replies[0][1]

    def open(
        self,
        name: str,
        *,
        model: str | None = None,
        resume: bool = False,
        epoch: int | None = None,
        token: int | None = None,
        peer: bytes = b"A",
    ) -> At:
        """Who loses the session is told meanwhile."""
        self.send("open", 0, name, model, resume, epoch, token, peer=peer)
        replies = [r for to, r in self.settle() if to == peer and r[0] != "notice"]
        ((status, _, *values),) = replies
        assert status == "ok", values
        return values[0], values[1]

    def done(self, *items: Any, peer: bytes = b"A") -> list[Any]:
        """The values of a request that must be done; payloads as lists of numbers."""
        status, _, *values = self.ask(*items, peer=peer)
        assert status == "ok", values
        if items[0] == "steps":
            values[0] = np.frombuffer(values[0], "<i8").tolist()
        if items[0] in ("step", "steps", "run"):
            values[1] = np.frombuffer(values[1], "<f4").tolist()
        return values

    def refused(self, *items: Any, peer: bytes = b"A") -> tuple[str, dict[str, Any]]:
        """Code and details of a request that must be refused."""
        status, _, *values = self.ask(*items, peer=peer)
        assert status == "error", values
        return values[0], values[2]

    def code(self, *items: Any, peer: bytes = b"A") -> str:
        """The code of a request that must be refused."""
        return self.refused(*items, peer=peer)[0]
