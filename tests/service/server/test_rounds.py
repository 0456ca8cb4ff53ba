"""Overload: turns bounded by their work, BUSY by measured time, and nobody starves."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.fake_engine import Engine, Model
from service.talk import At, Talk, bulk, event, run
from streamlstm.service.server.requests import MESSAGE_WORK
from streamlstm.service.server.rounds import (
    QUEUE_S_MAX,
    RETRY_S_MIN,
    TURN_WORK,
    QueueLimits,
)

EVENT_S = 0.001
PARAMETERS = 1_000_000
TURN = math.ceil(TURN_WORK / (PARAMETERS + MESSAGE_WORK))


class Slow(Engine):
    """An event takes EVENT_S by the clock that goes with it."""

    time_s = 0.0

    def clock(self) -> float:
        return self.time_s

    def step(self, sessions: list[Any], X: Any) -> Any:
        self.time_s += EVENT_S * len(sessions)
        return super().step(sessions, X)


def slow_talk(parameters: int = PARAMETERS, **options: Any) -> Talk:
    engine = Slow(Model(parameters=parameters))
    return Talk(engine, clock=engine.clock, **options)


def measure(talk: Talk) -> None:
    """Have the server know what an event takes."""
    at = talk.open("first", peer=b"first")
    for seq in range(1, 100):
        talk.done(*event(at, seq, 1), peer=b"first")
    talk.send(*event(at, 100, 1), peer=b"first")
    assert talk.protocol.stats(0)["wait_s"] == pytest.approx(EVENT_S, rel=0.01)
    talk.settle()
    talk.engines[0].batches.clear()


def open_many(talk: Talk, count: int, peer: bytes = b"A") -> list[At]:
    return [talk.open(f"{peer!r}{i}", peer=peer) for i in range(count)]


def codes(replies: list[tuple[bytes, list[Any]]], peer: bytes = b"A") -> list[Any]:
    return [r[2] for to, r in replies if to == peer and r[0] == "error"]


# --- BUSY -----------------------------------------------------------------------------------------


def test_a_peer_may_have_so_many_messages_waiting() -> None:
    talk = Talk(queue=QueueLimits(peer_messages=2))
    a = talk.open("a")
    for seq in (1, 2, 3):
        talk.send(*event(a, seq, 1))
    replies = [r for _, r in talk.settle()]
    assert replies[0][2] == "BUSY"
    assert replies[0][4] == {"retry_after_s": RETRY_S_MIN}
    assert "not stepped" in replies[0][3]
    assert [r[2] for r in replies[1:]] == [1, 2]
    assert talk.done(*event(a, 3, 1))[0] == 3


def test_a_session_may_have_a_window_of_messages_waiting() -> None:
    talk = Talk()
    a, b = talk.open("a"), talk.open("b")
    for seq in range(1, 19):
        talk.send(*event(a, seq, 1))
    talk.send(*bulk([a, b], [1, 1], [19, 1]))
    talk.send(*event(b, 1, 1))
    replies = [r[2] for _, r in talk.settle()]
    assert replies.count("BUSY") == 3
    assert [r for r in replies if r != "BUSY"] == [1, 1, *range(2, 17)]
    assert talk.done(*event(a, 17, 1))[0] == 17


def test_busy_by_the_time_that_what_waits_will_take() -> None:
    talk = slow_talk()
    ats = open_many(talk, 600)
    measure(talk)
    fit = round(QUEUE_S_MAX / EVENT_S)
    for at in ats[: fit + 10]:
        talk.send(*event(at, 1, 1))
    assert fit - 5 < talk.protocol.pending <= fit + 5
    refusals = [r for _, r in talk.step() if r[0] == "error"]
    assert {r[2] for r in refusals} == {"BUSY"}
    for refusal in refusals:
        assert refusal[4]["retry_after_s"] == pytest.approx(QUEUE_S_MAX, rel=0.05)
    assert talk.protocol.stats(0)["wait_s"] < QUEUE_S_MAX
    talk.settle()
    assert talk.protocol.stats(0)["wait_s"] == 0
    assert talk.done(*event(ats[-1], 1, 1))[0] == 1


def test_who_has_nothing_waiting_gets_in() -> None:
    talk = slow_talk()
    crowd, b = open_many(talk, 300), talk.open("b", peer=b"B")
    measure(talk)
    for at in crowd:
        talk.send(*event(at, 1, 1))
    talk.send(*event(b, 1, 1), peer=b"B")
    talk.send(*event(b, 2, 1), peer=b"B")  # has one waiting now
    replies = talk.settle()
    assert codes(replies, b"B") == ["BUSY"]
    assert [r[2] for to, r in replies if to == b"B" and r[0] == "ok"] == [1]


def test_there_is_an_end_to_that() -> None:
    """A thousand peers with one event each wait for at most twice the time."""
    talk = slow_talk()
    ats = [(talk.open(f"s{i}", peer=str(i).encode()), str(i).encode()) for i in range(700)]
    measure(talk)
    for at, peer in ats:
        talk.send(*event(at, 1, 1), peer=peer)
    fit = round(2 * QUEUE_S_MAX / EVENT_S)
    assert fit - 10 < talk.protocol.pending < fit + 10
    replies = talk.settle()
    assert len(replies) == len(ats)
    assert sum(r[0] == "ok" for _, r in replies) + codes_of_all(replies) == len(ats)


def codes_of_all(replies: list[tuple[bytes, list[Any]]]) -> int:
    return sum(r[0] == "error" and r[2] == "BUSY" for _, r in replies)


def test_a_run_counts_by_its_events() -> None:
    talk = slow_talk()
    a, b = open_many(talk, 2)
    measure(talk)
    for first in (1, 201):
        talk.send(*run(a, first, *[1] * 200))
    talk.send(*event(b, 1, 1))
    assert codes(talk.step()) == ["BUSY"]
    talk.settle()
    assert talk.done(*event(b, 1, 1))[0] == 1


def test_health_is_told_whatever_waits() -> None:
    talk = slow_talk(queue=QueueLimits(peer_messages=1))
    a = talk.open("a")
    measure(talk)
    talk.send(*run(a, 1, *[1] * 200))
    talk.send("stats", "s")
    talk.send("hello", "h", {})
    talk.send(*event(a, 201, 1))
    replies = {r[1]: r[0] for _, r in talk.settle() if r[1]}
    assert replies == {"s": "ok", "h": "ok"}


def test_nothing_is_busy_unmeasured() -> None:
    talk = Talk()
    at, *others = open_many(talk, 20)
    talk.send(*run(at, 1, *[1] * 50_000))
    for other in others:
        talk.send(*event(other, 1, 1))
    assert codes(talk.settle()) == []


# --- turns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "turn"), [(1, 400), (PARAMETERS, TURN), (TURN_WORK - MESSAGE_WORK, 1)]
)
def test_a_turn_does_so_much_work(parameters: int, turn: int) -> None:
    """Measured or not."""
    talk, count = Talk(Engine(Model(parameters=parameters), 2000)), 3 * turn + 1
    ats = [(talk.open(f"s{i}", peer=str(i).encode()), str(i).encode()) for i in range(count)]
    for at, peer in ats:
        talk.send(*event(at, 1, 1), peer=peer)
    replies = talk.settle()
    assert talk.engines[0].batches == [turn, turn, turn, 1]
    assert [r[0] for _, r in replies] == ["ok"] * count


def test_order_is_kept_when_a_round_is_split() -> None:
    talk = slow_talk()
    ats = open_many(talk, 50)
    for seq in (1, 2, 3):
        for at in ats:
            talk.send("step", seq, *at, seq, None, [seq, 0])
    answered: list[int] = []
    while talk.protocol.pending:
        answered += [r[2] for _, r in talk.step()]
        if len(answered) == TURN:  # between two parts of the first round
            talk.send(*event(ats[0], 4, 4))  # its first event is done
            talk.send("stats", 0)
    assert [n for n in answered if isinstance(n, int)] == [1] * 50 + [2] * 50 + [3] * 50 + [4]


def test_a_round_that_has_begun_takes_no_more() -> None:
    """A flood of messages that wait for nobody does not keep others from their second one."""
    talk = slow_talk()
    crowd, a = open_many(talk, 40, peer=b"C"), talk.open("a")
    for at in crowd:
        talk.send(*event(at, 1, 1), peer=b"C")
    talk.send(*event(a, 1, 1))
    talk.send(*event(a, 2, 1))
    answered: list[int] = []
    for _ in range(8):
        for _ in range(2 * TURN):
            talk.send("stats", 0, peer=b"B")
        answered += [r[2] for to, r in talk.step() if to == b"A"]
    assert answered == [1, 2]


@pytest.mark.untraced
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 3), st.booleans()),
        max_size=60,
    ),
    st.sampled_from([6, PARAMETERS, TURN_WORK]),
)
def test_every_message_gets_one_reply(
    sends: list[tuple[int, int, int, bool]], parameters: int
) -> None:
    """Stepped once and answered, or refused unstepped; and each session's events in order."""
    talk = slow_talk(parameters, queue=QueueLimits(peer_messages=8))
    peers = [b"A", b"B", b"C", b"D"]
    ats = [[talk.open(f"{p!r}{i}", peer=p) for i in range(10)] for p in peers]
    measure_by = talk.open("other", peer=b"other")
    talk.done(*event(measure_by, 1, 1), peer=b"other")
    sent = 0
    replies: list[tuple[bytes, list[Any]]] = []
    for peer, index, count, turn in sends:
        at = ats[peer][index]
        for _ in range(count):
            sent += 1
            talk.send("step", at[0], *at, None, None, [1, 1], peer=peers[peer])
        if turn:
            replies += talk.step()
    replies += talk.settle()
    assert len(replies) == sent
    done: dict[int, list[int]] = {}
    for _, (status, handle, value, *_) in replies:
        assert status == "ok" or value == "BUSY"
        if status == "ok":
            done.setdefault(handle, []).append(value)
    for seqs in done.values():
        assert seqs == list(range(1, len(seqs) + 1))
    stats = talk.protocol.stats(0)
    assert stats["messages"] == stats["replies"]
    assert (stats["pending"], stats["wait_s"]) == (0, 0)
