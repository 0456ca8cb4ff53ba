"""A protocol to talk to in tests: messages built and read without the codec under test."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from serving.fake_engine import Engine, State
from streamlstm.serving.protocol import ServerProtocol


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def pack(*items: Any) -> bytes:
    return msgpack.packb(items)


class Talk:
    """A ServerProtocol over fake engines, a clock that stands still unless moved."""

    def __init__(self, *engines: Engine, **options: Any) -> None:
        self.engines = engines or (Engine(),)
        self.protocol = ServerProtocol(self.engines, State.from_bytes, server="test", **options)
        self.now = 0.0

    def send(self, *items: Any, peer: bytes = b"A") -> None:
        self.protocol.receive(peer, [pack(1, *items)], self.now)

    def step(self) -> list[tuple[bytes, list[Any]]]:
        """One round's replies as (peer, items without the version)."""
        replies = self.protocol.step(self.now)
        return [(peer, msgpack.unpackb(reply)[1:]) for peer, reply in replies]

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
        self, name: str, *, model: str | None = None, resume: bool = False, peer: bytes = b"A"
    ) -> tuple[int, int]:
        """(handle, epoch)"""
        status, _, *values = self.ask("open", 0, name, model, resume, peer=peer)
        assert status == "ok", values
        return values[0], values[1]

    def code(self, *items: Any, peer: bytes = b"A") -> str:
        """The code of a request that must be refused."""
        status, _, code, *_ = self.ask(*items, peer=peer)
        assert status == "error"
        return str(code)
