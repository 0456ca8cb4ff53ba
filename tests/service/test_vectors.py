"""docs/protocol.md, byte for byte: the conformance vectors and the examples of the document."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from service.fake_engine import Engine, Headed, State
from service.vectors import make_vectors
from streamlstm import Feature, Head
from streamlstm.service import wire
from streamlstm.service.operations import OPERATIONS
from streamlstm.service.server.protocol import ServerProtocol
from streamlstm.service.server.rounds import QueueLimits

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "protocol.md"
EXCHANGES: list[dict[str, Any]] = json.loads((HERE / "vectors" / "version1.json").read_text())[
    "exchanges"
]


def test_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", bytes)  # the first epoch of a handle is 1
    tide = Headed(Head(Feature("level", "m"), time="time"))
    protocols = {
        name: ServerProtocol([engine], State.from_bytes, queue=QueueLimits(peer_messages=2))
        for name, engine in (("fold", Engine()), ("tide", Engine(tide)))
    }
    for exchange in EXCHANGES:
        protocol = protocols[exchange.get("server", "fold")]
        now = exchange.get("now", 0.0)
        protocol.receive(exchange["peer"].encode(), [bytes.fromhex(exchange["request"])])
        replies = []
        while not exchange.get("held"):
            replies += protocol.step(now)
            if not protocol.pending:
                break
        got = [
            _like(want, *reply) for want, reply in zip(exchange["replies"], replies, strict=True)
        ]
        assert got == exchange["replies"], exchange["about"]


def _like(want: dict[str, Any], peer: bytes, reply: bytes) -> dict[str, Any]:
    """A reply as a vector writes it; an error's sentence is free, and most of what hello says."""
    if "hex" in want:
        return {"peer": peer.decode(), "hex": reply.hex()}
    version, status, ident, *values = msgpack.unpackb(reply)
    assert version == 1
    packed = msgpack.packb(ident).hex()
    if "hello" in want:
        assert status == "ok"
        told = {key: values[0][key] for key in want["hello"][1]}
        return {"peer": peer.decode(), "hello": [packed, told]}
    code, sentence, details = values
    assert status == "error"
    assert sentence
    return {"peer": peer.decode(), "error": [packed, code, details]}


def test_vectors_are_those_of_their_script() -> None:
    assert make_vectors.exchanges() == EXCHANGES


def test_examples_of_the_document_are_vectors() -> None:
    vectors = {exchange["request"] for exchange in EXCHANGES}
    vectors |= {reply["hex"] for e in EXCHANGES for reply in e["replies"] if "hex" in reply}
    examples = re.findall(r"^(?:request|reply|notice) +((?:[0-9a-f]{2,} ?)+)$", _text(), re.M)
    assert len(examples) >= 20
    for example in examples:
        assert example.replace(" ", "") in vectors, example


@pytest.mark.parametrize("what", ["codes", "operations", "limits"])
def test_document_names_everything(what: str) -> None:
    limits = wire.Limits()
    names = {
        "codes": [f"`{code}`" for code in wire.ERRORS],
        "operations": [f"### {op}" for op in OPERATIONS],
        "limits": [f"{n:,}" for n in (limits.frame_bytes, limits.items, limits.name_bytes)],
    }[what]
    missing = [name for name in names if name not in _text()]
    assert not missing


def _text() -> str:
    if not DOCUMENT.exists():
        pytest.skip("the document is not here")
    return DOCUMENT.read_text()
