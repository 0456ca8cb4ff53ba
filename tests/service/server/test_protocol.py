"""The server's state machine: order, batches, ownership, overload, ends."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from service.fake_engine import Engine, Model, State
from service.talk import Talk, bulk, floats, pack
from streamlstm.errors import ModelError
from streamlstm.service.server.connections import Sent
from streamlstm.service.server.protocol import ServerProtocol, ServerState
from streamlstm.service.server.rounds import QueueLimits


def events(replies: list[tuple[bytes, list[Any]]]) -> list[Any]:
    """ids of the "ok" replies, codes of the errors"""
    return [r[1] if r[0] == "ok" else r[2] for _, r in replies]


def test_a_session_from_open_to_close() -> None:
    talk = Talk()
    a = talk.open("pump")
    assert talk.ask("step", 1, *a, 1, None, floats(4, 8)) == ["ok", 1, 1, floats(4, 8)]
    assert talk.ask("step", 2, *a, None, None, [1, 1.0]) == ["ok", 2, 2, floats(3, 5)]
    status, _, seq, blob = talk.ask("state", 3, *a)
    assert (status, seq) == ("ok", 2)
    status, _, seq, Y = talk.ask("run", 4, *a, 3, None, [[2, 2], [0, 0]])
    assert (status, seq, Y) == ("ok", 4, floats(3.5, 4.5, 1.75, 2.25))
    assert talk.ask("restore", 5, *a, 5, blob) == ["ok", 5, 5]
    assert talk.ask("step", 6, *a, 6, None, [0, 0])[3] == floats(1.5, 2.5)
    assert talk.ask("reset", 7, *a, None) == ["ok", 7, 7]
    assert talk.ask("step", 8, *a, 8, None, [1, 2])[3] == floats(1, 2)
    assert talk.ask("close", 9, *a) == ["ok", 9, 8]
    assert talk.code("step", 10, *a, 9, None, [1, 2]) == "SESSION_CLOSED"
    assert len(talk.engines[0]) == 0


def test_what_arrived_together_is_one_batch() -> None:
    talk = Talk()
    sessions = [talk.open(f"s{i}", peer=bytes([i])) for i in range(5)]
    for i, (handle, epoch) in enumerate(sessions):
        talk.send("step", i, handle, epoch, 1, None, [i, i], peer=bytes([i]))
    assert [(to, r[3]) for to, r in talk.step()] == [(bytes([i]), floats(i, i)) for i in range(5)]
    assert talk.engines[0].batches == [5]


def test_one_event_of_a_session_in_a_batch() -> None:
    talk = Talk()
    a, b = talk.open("a"), talk.open("b")
    for i in range(3):
        talk.send("step", f"a{i}", *a, i + 1, None, [1, 1])
    talk.send("step", "b0", *b, 1, None, [1, 1])
    assert events(talk.step()) == ["a0", "b0"]
    talk.send("step", "b1", *b, 2, None, [1, 1])  # joins what waits
    assert events(talk.step()) == ["a1", "b1"]
    assert events(talk.step()) == ["a2"]
    assert talk.protocol.pending == 0


def test_other_operations_keep_their_place() -> None:
    talk = Talk()
    a = talk.open("a")
    talk.send("step", 1, *a, 1, None, [8, 8])
    talk.send("reset", 2, *a, None)
    talk.send("step", 3, *a, 3, None, [1, 1])
    talk.send("state", 4, *a)
    talk.send("run", 5, *a, 4, None, [[1, 1]])
    talk.send("close", 6, *a)
    talk.send("step", 7, *a, 5, None, [1, 1])
    talk.send("open", 8, "a", None, False, None, None)
    replies = talk.settle()
    assert [(r[1], r[0]) for _, r in replies] == [
        (1, "ok"),
        (2, "ok"),
        (3, "ok"),
        (4, "ok"),
        (5, "ok"),
        (6, "ok"),
        (7, "error"),
        (8, "ok"),
    ]
    assert replies[2][1][3] == floats(1, 1)
    assert replies[3][1][3] == State(np.array([1, 1], np.float32)).to_bytes()
    assert replies[4][1][3] == floats(1.5, 1.5)


def test_bulk_waits_for_its_sessions_only() -> None:
    talk = Talk()
    a, b, c = (talk.open(name) for name in "abc")
    talk.send("step", "a1", *a, 1, None, [4, 4])
    talk.send("step", "a2", *a, 2, None, [4, 4])
    talk.send(*bulk([a, b], [1, 2], [3, 1]))
    talk.send("step", "b2", *b, 2, None, [0, 0])
    talk.send("step", "c1", *c, 1, None, [0, 0])
    rounds = [events(talk.step()) for _ in range(4)]
    assert rounds == [["a1", "c1"], ["a2"], [0], ["b2"]]


def test_bulk_replies_with_seqs_and_outputs() -> None:
    talk = Talk()
    a, b = talk.open("a"), talk.open("b")
    talk.ask("step", 1, *a, 1, None, [4, 4])
    status, _, seqs, Y = talk.ask(*bulk([b, a], [[1, 2], [3, 4]], [1, 2]))
    assert status == "ok"
    assert np.frombuffer(seqs, "<i8").tolist() == [1, 2]
    assert floats(1, 2, 5, 6) == Y
    status, *_ = talk.ask("steps", 1, [a[0]], [a[1]], [3], None, [[1, 1]])  # plain lists
    assert status == "ok"


def test_bulk_is_all_or_nothing() -> None:
    talk = Talk(Engine(), Engine(Model("other")))
    a, b = talk.open("a", model="fold"), talk.open("b", model="fold")
    other = talk.open("a", model="other")
    both, X = [a, b], [1, 1]
    assert talk.code(*bulk(both, X, [1, 2])) == "SEQUENCE"
    assert talk.code(*bulk(both, [[1, 1], [1, np.nan]])) == "NON_FINITE"
    assert talk.code(*bulk([a, (b[0], b[1] + 1)], X)) == "SESSION_UNKNOWN"
    assert talk.code(*bulk([a, (77, b[1])], X)) == "SESSION_UNKNOWN"
    assert talk.code(*bulk([a, a], X)) == "REPEATED_SESSION"
    assert talk.code(*bulk([a, other], X)) == "INPUT"
    assert talk.code(*bulk(both, [1])) == "SHAPE"
    assert talk.code(*bulk(both, X, [1])) == "SHAPE"
    assert talk.code("steps", 0, *bulk(both, X)[2:3], *bulk([a], X)[3:]) == "SHAPE"
    assert talk.code(*bulk([], [])) == "SHAPE"
    assert talk.code(*bulk([(1 << 40, 1)] * 2, X)) == "PROTOCOL"
    assert talk.code(*bulk(both, X), peer=b"B") == "FENCED"
    assert talk.engines[0].seqs == [0, 0]
    assert talk.ask(*bulk(both, X, [1, 1]))[0] == "ok"


def test_a_wrong_seq_names_the_right_one() -> None:
    talk = Talk()
    a = talk.open("a")
    for seq in (0, 2, 99):
        reply = talk.ask("step", 1, *a, seq, None, [1, 1])
        assert (reply[2], reply[4]) == ("SEQUENCE", {"expected": 1})
        assert str(seq) in reply[3]
    reply = talk.ask(*bulk([a], [1], [5]))
    assert reply[4] == {"expected": 1, "index": 0}
    assert talk.code("run", 1, *a, 2, None, [[1, 1]]) == "SEQUENCE"
    assert talk.engines[0].seqs == [0]


def test_only_the_sender_of_nan_is_refused() -> None:
    talk = Talk()
    sessions = [talk.open(f"s{i}") for i in range(4)]
    bad = [floats(1, 1), floats(1, float("nan")), floats(1), [1, float("inf")]]
    for i, (handle, epoch) in enumerate(sessions):
        talk.send("step", i, handle, epoch, 1, None, bad[i])
    by_id = {r[1]: r for _, r in talk.settle()}
    assert by_id[0] == ["ok", 0, 1, floats(1, 1)]
    assert [by_id[i][2] for i in (1, 2, 3)] == ["NON_FINITE", "SHAPE", "NON_FINITE"]
    assert talk.engines[0].seqs == [1, 0, 0, 0]


def test_a_failing_engine_is_answered_and_reported() -> None:
    faults: list[tuple[str, Exception]] = []
    talk = Talk(report=lambda doing, error: faults.append((doing, error)))
    a, b = talk.open("a"), talk.open("b")
    talk.engines[0].fails = MemoryError("secret")
    talk.send("step", 1, *a, 1, None, [1, 1])
    talk.send("step", 2, *b, 1, None, [1, 1])
    replies = talk.settle()
    assert events(replies) == ["INTERNAL", "INTERNAL"]
    assert "secret" not in str(replies)
    assert talk.code("step", 3, *a, 1, None, [1, 1]) == "INTERNAL"
    assert talk.code(*bulk([a], [1])) == "INTERNAL"
    assert [doing for doing, _ in faults] == ["step", "step", "step", "steps"]
    talk.engines[0].fails = None
    assert talk.ask("step", 4, *a, 1, None, [1, 1])[0] == "ok"


def test_taking_over() -> None:
    talk = Talk()
    a = talk.open("a")
    talk.ask("step", 1, *a, 1, None, [8, 8])
    assert talk.code("open", 2, "a", None, False, None, None, peer=b"B") == "SESSION_EXISTS"
    talk.send("step", 3, *a, 2, None, [8, 8])
    talk.send("open", 4, "a", None, True, None, None, peer=b"B")  # after the step that waits
    talk.send("step", 5, *a, 3, None, [8, 8])
    replies = talk.settle()
    assert [(to, r[0]) for to, r in replies] == [
        (b"A", "ok"),
        (b"A", "notice"),
        (b"B", "ok"),
        (b"A", "error"),
    ]
    handle, epoch, seq, *model = replies[2][1][2:]
    assert (handle, epoch, seq, model) == (a[0], a[1] + 1, 2, ["fold", "fold-2"])
    assert replies[1][1] == ["notice", None, "fenced", [["a", a[0], a[1], 2]]]
    assert replies[3][1][2] == "FENCED"
    assert talk.code("step", 6, *a, 3, None, [8, 8]) == "FENCED"
    assert talk.code("step", 6, handle, epoch, 3, None, [8, 8]) == "FENCED"  # B's, sent by A
    assert talk.ask("step", 7, handle, epoch, 3, None, [0, 0], peer=b"B")[3] == floats(6, 6)
    talk.send("open", 8, "a", None, True, None, None)  # and back
    told, taken = talk.settle()
    assert (told[0], told[1][2], taken[0]) == (b"B", "fenced", b"A")
    assert taken[1][2:5] == [a[0], a[1] + 2, 3]
    assert talk.protocol.stats(0)["clients"] == 1


def test_resume_opens_what_is_not_there() -> None:
    talk = Talk()
    assert talk.ask("open", 1, "a", None, True, None, None)[4] == 0


def test_nobody_steps_a_foreign_session() -> None:
    talk = Talk()
    handle, epoch = talk.open("a")
    for op in (["step", 1, handle, epoch, None, None, [1, 1]], ["close", 1, handle, epoch]):
        assert talk.code(*op, peer=b"B") == "FENCED"
    for row, at in ((handle, epoch + 1), (handle, 0), (5, 1), (2**32 - 1, 1)):
        assert talk.code("step", 1, row, at, None, None, [1, 1]) == "SESSION_UNKNOWN"
    assert talk.code("step", 1, 1 << 32, 1, None, None, [1, 1]) == "PROTOCOL"


def test_models_are_found_by_name() -> None:
    talk = Talk(Engine(), Engine(Model("other", inputs=3)))
    assert talk.code("open", 1, "a", None, False, None, None) == "MODEL"
    assert talk.code("open", 1, "a", "nope", False, None, None) == "MODEL"
    a, b = talk.open("a", model="fold"), talk.open("a", model="other")
    talk.send("step", 1, *a, 1, None, [1, 1])
    talk.send("step", 2, *b, 1, None, [1, 1, 1])
    assert events(talk.step()) == [1, 2]
    with pytest.raises(ModelError, match="different names"):
        ServerProtocol([Engine(), Engine()], State.from_bytes)
    with pytest.raises(ModelError, match="none"):
        ServerProtocol([], State.from_bytes)


def test_capacity() -> None:
    talk = Talk(Engine(max_sessions=1))
    talk.open("a")
    assert talk.code("open", 1, "b", None, False, None, None) == "CAPACITY"


def test_restore_refuses_what_is_no_state() -> None:
    talk = Talk()
    a = talk.open("a")
    for blob in (b"", b"fol", b"fold" + bytes(4), b"fold" + bytes(100_000)):
        assert talk.code("restore", 1, *a, None, blob) == "STATE_MISMATCH"


def test_eviction() -> None:
    talk = Talk(ttl_s=10)
    a, b = talk.open("a"), talk.open("b")
    talk.serve_until(6.0)
    talk.ask("step", 1, *b, 1, None, [1, 1])
    talk.serve_until(11.0)
    talk.protocol.tick()
    assert talk.step() == [(b"A", ["notice", None, "evicted", [["a", a[0], a[1], 0]]])]
    assert talk.code("step", 2, *a, 1, None, [1, 1]) == "EVICTED"
    assert talk.code(*bulk([b, a], [1, 1])) == "EVICTED"
    assert "a" not in talk.engines[0].live
    assert talk.protocol.shard.evicted == talk.protocol.stats(0)["models"]["fold"]["evicted"] == 1
    new = talk.open("a")
    assert new != a
    assert talk.ask("step", 3, *new, 1, None, [1, 1])[0] == "ok"


def test_what_waits_is_not_evicted() -> None:
    talk = Talk(ttl_s=10)
    a = talk.open("a")
    talk.serve_until(100.0)
    talk.send("step", 1, *a, 1, None, [1, 1])
    talk.protocol.tick()
    assert events(talk.settle()) == [1]
    talk.serve_until(200.0)
    talk.protocol.tick()
    assert [r[0] for _, r in talk.settle()] == ["notice"]
    assert talk.protocol.stats(0)["clients"] == 0


@pytest.mark.parametrize("jump_s", [8.0, 1e6, -1e6])
def test_standing_still_makes_nobody_idle(jump_s: float) -> None:
    """A paused server, or a clock that jumps: whoever was heard within ttl before it stays."""
    talk = Talk(ttl_s=5)
    a = talk.open("a")
    talk.open("b")
    talk.serve_until(4.6)
    talk.ask("step", 1, *a, 1, None, [1, 1])
    talk.now += jump_s
    talk.step()
    talk.protocol.tick()
    # Half a second of the jump counts, which is too much for b: it was last heard at 0.
    assert [r[3][0][0] for _, r in talk.step()] == (["b"] if jump_s > 0 else [])
    assert talk.ask("step", 2, *a, 2, None, [1, 1])[0] == "ok"
    talk.serve_until(talk.now + 5.1)
    talk.protocol.tick()
    assert "a" in [r[3][k][0] for _, r in talk.step() for k in range(len(r[3]))]


def test_busy() -> None:
    talk = Talk(queue=QueueLimits(peer_messages=3))
    a, b = talk.open("a"), talk.open("b", peer=b"B")
    for i in range(5):
        talk.send("step", i, *a, i + 1, None, [1, 1])
    talk.send("step", 0, *b, 1, None, [1, 1], peer=b"B")
    assert talk.protocol.pending == 4
    got = talk.settle()
    assert [events([r])[0] for r in got if r[0] == b"A"] == ["BUSY", "BUSY", 0, 1, 2]
    assert [events([r])[0] for r in got if r[0] == b"B"] == [0]
    assert talk.engines[0].seqs == [3, 1]
    assert talk.ask("step", 9, *a, 4, None, [1, 1])[0] == "ok"


def cut(talk: Talk, peer: bytes) -> None:
    """A reply finds no room."""
    assert talk.protocol.deliver([(peer, b"reply")], lambda *_: Sent.FULL)


def test_a_peer_whose_reply_was_lost_is_done_nothing_more() -> None:
    talk = Talk()
    a, b = talk.open("a"), talk.open("b", peer=b"B")
    for i in range(3):
        talk.send("step", i, *a, i + 1, None, [1, 1])
    talk.send("step", "b", *b, 1, None, [1, 1], peer=b"B")
    assert events(talk.step()) == [0, "b"]
    cut(talk, b"A")
    talk.send("step", 3, *a, 2, None, [1, 1])
    talk.protocol.receive(b"A", [b"hostile"])
    assert talk.protocol.pending == 0
    assert talk.settle() == []
    stats = talk.protocol.stats(0)
    assert (stats["overruns"], stats["dropped"], stats["clients"]) == (1, 4, 2)
    assert stats["undeliverable"] == 1
    assert talk.engines[0].seqs == [1, 1]
    talk.protocol.mend(lambda *_: Sent.SENT)
    assert talk.ask("step", 4, *a, 2, None, [1, 1])[2] == 2  # the sessions stayed
    cut(talk, b"A")
    talk.send("open", 5, "a", None, True, None, None, peer=b"B")
    assert talk.settle()[-1] == (b"B", ["ok", 5, a[0], a[1] + 1, 2, "fold", "fold-2"])


def test_a_run_is_bounded() -> None:
    talk = Talk(Engine(Model(parameters=100_000_000)))
    assert talk.ask("hello", 1, {})[2]["models"][0]["run_rows"] == 2
    a = talk.open("a")
    reply = talk.ask("run", 1, *a, 1, None, [[1, 1]] * 3)
    assert reply[2] == "SHAPE"
    assert "takes 2 in one message (run_rows)" in reply[3]
    assert talk.ask("run", 2, *a, 1, None, [[1, 1]] * 2)[2] == 2


def test_hello_tells_the_largest_event() -> None:
    engine = Engine()
    assert Talk(engine).ask("hello", 1, {})[2]["models"][0]["largest"] is None
    engine.largest_event = np.array([1.5, 2], np.float32)
    assert Talk(engine).ask("hello", 1, {})[2]["models"][0]["largest"] == [1.5, 2.0]


def test_who_lost_everything_is_told_why() -> None:
    talk = Talk(ttl_s=10)
    a, b = talk.open("a"), talk.open("b")
    talk.serve_until(100.0)
    talk.protocol.tick()
    talk.settle()
    assert talk.code("step", 1, *a, 1, None, [1, 1]) == "EVICTED"
    assert talk.code(*bulk([a, b], [1, 1])) == "EVICTED"


def test_a_fault_while_receiving_is_answered() -> None:
    faults: list[str] = []
    talk = Talk(report=lambda doing, _: faults.append(doing))
    a = talk.open("a")
    talk.protocol.shard.tables[0].table.check_owner = None  # type: ignore[assignment, method-assign]
    assert talk.code("step", 1, *a, 1, None, [1, 1]) == "INTERNAL"
    assert faults == ["receive"]


def test_bytes_of_a_peer_are_bounded() -> None:
    talk = Talk(queue=QueueLimits(peer_bytes=1000))
    a = talk.open("a")
    for i in range(3):
        talk.send("run", i, *a, None, None, floats(*[0] * 100))
    assert events(talk.settle()) == ["BUSY", 0, 1]


def test_draining_finishes_what_waits_and_refuses_the_rest() -> None:
    talk = Talk()
    a = talk.open("a")
    talk.send("step", 1, *a, 1, None, [1, 1])
    talk.protocol.drain()
    talk.send("step", 2, *a, 2, None, [1, 1])
    talk.send("open", 3, "b", None, False, None, None)
    talk.send("stats", 4)
    replies = talk.settle()
    assert replies[0] == (b"A", ["notice", None, "stopping", []])
    assert events(replies[1:]) == ["STOPPING", "STOPPING", 4, 1]
    assert replies[3][1][2]["state"] == "draining"
    talk.protocol.stop()
    assert talk.protocol.state is ServerState.STOPPED


def test_hello_tells_what_a_client_needs() -> None:
    _, _, info = Talk(ttl_s=60).ask("hello", 1, {})
    assert info["versions"] == [1]
    assert (info["durability"], info["clock"]) == ("memory", 0.0)
    assert 0 <= info["boot"] < 1 << 63
    assert info["boot"] != Talk().ask("hello", 1, {})[2]["boot"]
    (model,) = info["models"]
    assert model["dtype"] == "float32"
    assert model["window"] == 16
    assert model["inputs"] == [["x0", "m"], ["x1", "m"]]
    assert info["limits"]["ttl_s"] == 60


def test_stats_count() -> None:
    talk = Talk()
    a = talk.open("a")
    talk.ask("step", 1, *a, 1, None, [1, 1])
    talk.ask(*bulk([a], [1]))
    talk.ask("dance", 1)
    talk.now = 2.5
    status, _, stats = talk.ask("stats", 2)
    assert status == "ok"
    assert (stats["uptime_s"], stats["state"], stats["clients"]) == (2.5, "running", 1)
    assert stats["errors"] == {"PROTOCOL": 1}
    assert (stats["messages"], stats["replies"]) == (5, 4)
    assert stats["models"]["fold"] | {"fingerprint": ""} == {
        "sessions": 1,
        "resident": 1,
        "spilled": 0,
        "quarantined": 0,
        "stepped_alone": False,
        "max_sessions": 1000,
        "state_bytes": 0,
        "events": 2,
        "readings": {},
        "micro_batches": 2,
        "evicted": 0,
        "fingerprint": "",
        "arithmetic": "fold-1",
    }


def test_clients_without_sessions_leave_no_trace() -> None:
    talk = Talk()
    for i in range(100):
        talk.ask("stats", 1, peer=str(i).encode())
        talk.code("step", 1, 5, 1, None, None, [1, 1], peer=str(i).encode())
    handle, epoch = talk.open("a", peer=b"gone")
    talk.ask("close", 1, handle, epoch, peer=b"gone")
    assert len(talk.protocol.connections) == 0


@pytest.mark.parametrize(
    "frames",
    [[], [b""], [b"", b""], [b"\xc1"], [b"\x90"], [pack(1, "stats", None)], [pack(9, "stats", 1)]],
)
def test_what_is_no_message_gets_an_error_reply(frames: list[bytes]) -> None:
    talk = Talk()
    talk.protocol.receive(b"A", frames)
    ((to, reply),) = talk.settle()
    assert (to, reply[0], reply[2]) == (b"A", "error", "PROTOCOL")
    assert reply[1] == (1 if frames == [pack(9, "stats", 1)] else None)


def test_rows_grow_and_are_reused() -> None:
    talk = Talk()
    sessions = [talk.open(f"s{i}") for i in range(200)]
    for handle, epoch in sessions[::2]:
        talk.ask("close", 1, handle, epoch)
    fresh = [talk.open(f"t{i}") for i in range(100)]
    assert {h for h, _ in fresh} == {h for h, _ in sessions[::2]}
    for old in sessions[::2]:
        assert talk.code("step", 1, *old, 1, None, [1, 1]) == "SESSION_CLOSED"
    assert msgpack.unpackb(pack(1)) == [1]
