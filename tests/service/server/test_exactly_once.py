"""Exactly once: numbers, repeats, epochs and tokens, and what an event that ruins a session does.

In memory, message by message; docs/protocol.md, "Exactly once", has the rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.fake_engine import POISON, Engine, Model, State
from service.talk import At, Talk, bulk, event, floats, run

WINDOW = 16


@pytest.fixture
def talk() -> Talk:
    return Talk()


def seq_of(talk: Talk, at: At, peer: bytes = b"A") -> int:
    return int(talk.done("state", 0, *at, peer=peer)[0])


def blob(*numbers: float) -> bytes:
    return State(np.array(numbers, np.float32)).to_bytes()


# --- numbers and repeats --------------------------------------------------------------------------


def test_a_repeat_is_answered_again_and_not_done(talk: Talk) -> None:
    a = talk.open("a")
    first = talk.ask(*event(a, 1, 8))
    talk.done(*event(a, 2, 8))
    assert talk.ask(*event(a, 1, 8)) == first
    assert talk.done("step", 0, *a, 1, None, [8, 8.0]) == [1, [8, 8]]  # as a list, too
    assert talk.engines[0].batches == [1, 1]
    assert talk.done(*event(a, 3, 0)) == [3, [6, 6]]


def test_repeats_in_a_batch_are_answered_beside_new_events(talk: Talk) -> None:
    ats = [talk.open(name) for name in "abc"]
    for at in ats:
        talk.done(*event(at, 1, 4))
    for at, seq in zip(ats, (2, 1, 5), strict=True):
        talk.send(*event(at, seq, 4))
    replies = sorted(r[2:] for _, r in talk.step() if r[0] == "ok")
    assert replies == [[1, floats(4, 4)], [2, floats(6, 6)]]
    assert talk.engines[0].seqs == [2, 1, 1]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda a: event(a, 1, 9), "SEQUENCE"),  # another input
        (lambda a: event(a, 1, 8, 9), "SEQUENCE"),
        (lambda a: ("reset", 0, *a, 1), "SEQUENCE"),  # another operation
        (lambda a: ("restore", 0, *a, 1, blob(8, 8)), "SEQUENCE"),
        (lambda a: bulk([a], [8], [1]), "SEQUENCE"),
        (lambda a: run(a, 1, 8), "ANSWER_GONE"),  # there was no run
        (lambda a: event(a, 0, 8), "SEQUENCE"),
        (lambda a: event(a, 3, 8), "SEQUENCE"),  # a gap
        (lambda a: run(a, 3, 8), "SEQUENCE"),
        (lambda a: ("reset", 0, *a, 3), "SEQUENCE"),
        (lambda a: ("restore", 0, *a, 3, blob(8, 8)), "SEQUENCE"),
        (lambda a: bulk([a], [8], [3]), "SEQUENCE"),
    ],
)
def test_what_is_neither_next_nor_a_repeat(talk: Talk, change: Any, code: str) -> None:
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    got, details = talk.refused(*change(a))
    assert got == code
    if code == "SEQUENCE":
        assert details["expected"] == 2
    assert talk.done(*event(a, 2, 0)) == [2, [4, 4]]


def test_the_ring_has_a_window_of_answers(talk: Talk) -> None:
    (model,) = talk.ask("hello", 1, {})[2]["models"]
    assert model["window"] == WINDOW
    a = talk.open("a")
    answers = [talk.done(*event(a, seq, seq)) for seq in range(1, 2 * WINDOW + 4)]
    last = len(answers)
    for seq in range(1, last + 1):
        if seq > last - WINDOW:
            assert talk.done(*event(a, seq, seq)) == answers[seq - 1]
        else:
            assert talk.refused(*event(a, seq, seq)) == ("ANSWER_GONE", {})
    assert seq_of(talk, a) == last


@pytest.mark.parametrize(("inputs", "window"), [(1, 16), (32, 16), (64, 8), (256, 2), (4096, 2)])
def test_wide_outputs_have_a_shorter_ring(inputs: int, window: int) -> None:
    talk = Talk(Engine(Model(inputs=inputs)))
    assert talk.ask("hello", 1, {})[2]["models"][0]["window"] == window
    a = talk.open("a")
    for seq in range(1, window + 2):
        talk.done("step", 0, *a, seq, None, floats(*[seq] * inputs))
    assert talk.code("step", 0, *a, 1, None, floats(*[1] * inputs)) == "ANSWER_GONE"
    assert talk.ask("step", 0, *a, 2, None, floats(*[2] * inputs))[2] == 2


def test_without_seq_nothing_is_recognised(talk: Talk) -> None:
    a = talk.open("a")
    assert talk.done(*event(a, None, 8)) == [1, [8, 8]]
    assert talk.done(*event(a, None, 8)) == [2, [12, 12]]
    assert talk.done(*event(a, 2, 8)) == [2, [12, 12]]  # it took a number all the same
    assert talk.done("reset", 0, *a, None) == [3]
    assert talk.done("reset", 0, *a, None) == [4]


def test_resets_and_restores_are_numbered_in_the_same_row(talk: Talk) -> None:
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    for _ in range(2):
        assert talk.done("reset", 0, *a, 2) == [2]
    assert talk.done(*event(a, 3, 4)) == [3, [4, 4]]
    for _ in range(2):
        assert talk.done("restore", 0, *a, 4, blob(2, 2)) == [4]
    assert talk.code("restore", 0, *a, 4, blob(2, 3)) == "SEQUENCE"
    assert talk.done(*event(a, 5, 0)) == [5, [1, 1]]
    assert talk.done("reset", 0, *a, 2) == [2]  # still in the ring
    assert talk.done(*event(a, 1, 8)) == [1, [8, 8]]
    assert talk.code("restore", 0, *a, 6, b"?") == "STATE_MISMATCH"
    assert seq_of(talk, a) == 5


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_is_repeated_whole(talk: Talk) -> None:
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    first = talk.ask(*run(a, 2, 1, 2, 3))
    assert first[2] == 4
    assert talk.ask(*run(a, 2, 1, 2, 3)) == first
    assert seq_of(talk, a) == 4
    assert talk.code(*run(a, 2, 1, 2, 4)) == "SEQUENCE"
    assert talk.code(*run(a, 2, 1, 2)) == "SEQUENCE"
    assert talk.code(*run(a, 3, 2, 3)) == "SEQUENCE"
    assert talk.code(*run(a, 1, 8, 1, 2, 3)) == "ANSWER_GONE"
    for seq in (1, 2, 4):  # not one event of it, and not what was before
        assert talk.code(*event(a, seq, 8)) == "ANSWER_GONE"


def test_steps_after_a_run_have_their_answers(talk: Talk) -> None:
    a = talk.open("a")
    talk.done(*run(a, 1, *range(40)))
    answers = [talk.ask(*event(a, seq, seq)) for seq in (41, 42)]
    assert [talk.ask(*event(a, seq, seq)) for seq in (41, 42)] == answers
    assert talk.code(*event(a, 40, 39)) == "ANSWER_GONE"
    talk.done(*run(a, 43, 5))
    assert talk.done(*run(a, 43, 5))[0] == 43
    assert talk.code(*run(a, 1, *range(40))) == "ANSWER_GONE"


def test_an_empty_run_takes_no_number(talk: Talk) -> None:
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    for _ in range(2):
        assert talk.done(*run(a, 2)) == [1, []]
    assert talk.done(*event(a, 2, 8)) == [2, [12, 12]]


def test_answers_of_runs_are_bounded(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlstm.service.server.answers.RUN_BYTES_MAX", 90)
    a, b = talk.open("a"), talk.open("b")
    talk.done(*run(a, 1, *[1] * 10))
    talk.done(*run(b, 1, *[1] * 2))
    assert talk.code(*run(a, 1, *[1] * 10)) == "ANSWER_GONE"  # the oldest went
    assert talk.done(*run(b, 1, 1, 1))[0] == 2
    talk.done(*run(b, 3, *[1] * 20))  # too large by itself
    assert talk.code(*run(b, 3, *[1] * 20)) == "ANSWER_GONE"
    assert seq_of(talk, b) == 22


# --- bulks ----------------------------------------------------------------------------------------


def test_a_bulk_is_repeated_whole(talk: Talk) -> None:
    ats = [talk.open(name) for name in "abc"]
    talk.done(*event(ats[1], 1, 2))
    message = bulk(ats, [1, 2, 3], [1, 2, 1])
    first = talk.ask(*message)
    assert talk.ask(*message) == first
    talk.done(*event(ats[0], 2, 5))  # one of them went on since
    assert talk.ask(*message) == first
    lists = [[at[0] for at in ats], [at[1] for at in ats], [1, 2, 1], None]
    assert talk.ask("steps", 0, *lists, [[n, n] for n in (1, 2, 3)]) == first
    assert talk.engines[0].seqs == [2, 2, 1]


@pytest.mark.parametrize(
    ("X", "seqs", "index", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 0, 2),  # one is a repeat, so all must be
        ([1, 2, 3], [2, 1, 2], 1, 2),
        ([1, 2, 3], [2, 2, 3], 2, 2),
        ([1, 2, 4], [1, 1, 1], 0, 2),  # another message
        ([1, 2, 3], [0, 1, 1], 0, 2),
    ],
)
def test_a_mixed_bulk_is_refused_by_index(
    talk: Talk, X: list[float], seqs: list[int], index: int, expected: int
) -> None:
    ats = [talk.open(name) for name in "abc"]
    talk.done(*bulk(ats, [1, 2, 3], [1, 1, 1]))
    refusal = talk.refused(*bulk(ats, X, seqs))
    assert refusal == ("SEQUENCE", {"expected": expected, "index": index})
    assert talk.engines[0].seqs == [1, 1, 1]
    assert talk.done(*bulk(ats, [0, 0, 0], [2, 2, 2]))[0] == [2, 2, 2]


def test_a_bulk_whose_answers_are_gone(talk: Talk) -> None:
    a, b = talk.open("a"), talk.open("b")
    talk.done(*bulk([a, b], [1, 2], [1, 1]))
    for seq in range(2, WINDOW + 2):
        talk.done(*event(b, seq, 1))
    assert talk.code(*bulk([a, b], [1, 2], [1, 1])) == "ANSWER_GONE"
    assert talk.done(*bulk([a, b], [0, 0], [2, WINDOW + 2]))[0] == [2, WINDOW + 2]


# --- epochs and tokens ----------------------------------------------------------------------------


def test_open_again_with_its_token_is_the_same_answer(talk: Talk) -> None:
    first = talk.ask("open", 1, "a", None, False, None, 77)
    assert talk.ask("open", 1, "a", None, False, None, 77) == first
    talk.done(*event((first[2], first[3]), 1, 8))
    again = talk.ask("open", 1, "a", None, True, None, 77)
    assert again == [*first[:4], 1, *first[5:]]  # but for what was done since
    for other in (78, None):
        assert talk.code("open", 1, "a", None, False, None, other) == "SESSION_EXISTS"


def test_a_token_moves_its_session_to_the_connection_that_repeats_it(talk: Talk) -> None:
    a = talk.open("a", token=5)
    talk.done(*event(a, 1, 8))
    talk.send("open", 0, "a", None, False, None, 5, peer=b"A2")
    told, reply = talk.settle()
    assert told == (b"A", ["notice", None, "fenced", [["a", *a, 1]]])
    assert reply == (b"A2", ["ok", 0, *a, 1, "fold", "fold-2"])
    assert talk.code(*event(a, 2, 8)) == "FENCED"
    assert talk.done(*event(a, 1, 8), peer=b"A2") == [1, [8, 8]]
    assert talk.done(*event(a, 2, 0), peer=b"A2") == [2, [4, 4]]


def test_no_token_is_nobodys(talk: Talk) -> None:
    talk.open("a")
    assert talk.code("open", 0, "a", None, False, None, None) == "SESSION_EXISTS"
    talk.open("a", resume=True)  # by no token either
    assert talk.code("open", 0, "a", None, False, None, None) == "SESSION_EXISTS"


def test_attaching_with_the_last_epoch_begins_the_next(talk: Talk) -> None:
    a = talk.open("a", token=5)
    answers = [talk.done(*event(a, seq, seq)) for seq in (1, 2, 3)]
    back = talk.open("a", resume=True, epoch=a[1], token=6, peer=b"A2")
    assert back == (a[0], a[1] + 1)
    for peer in (b"A", b"A2"):
        assert talk.code(*event(a, 4, 4), peer=peer) == "FENCED"  # sent under the epoch before
    assert [talk.done(*event(back, seq, seq), peer=b"A2") for seq in (1, 2, 3)] == answers
    assert talk.done(*event(back, 4, 4), peer=b"A2")[0] == 4


def test_an_attach_sent_again_is_the_same_answer(talk: Talk) -> None:
    a = talk.open("a", token=5)
    back = talk.open("a", resume=True, epoch=a[1], token=6, peer=b"A2")
    assert talk.open("a", resume=True, epoch=a[1], token=6, peer=b"A2") == back
    assert talk.open("a", resume=True, epoch=a[1], token=6, peer=b"A3") == back
    assert talk.code("open", 0, "a", None, True, a[1], 7, peer=b"A2") == "FENCED"
    assert talk.code("open", 0, "a", None, True, a[1], None, peer=b"A2") == "FENCED"
    assert talk.code("open", 0, "a", None, True, a[1], 5, peer=b"A2") == "FENCED"


def test_who_was_overtaken_cannot_attach(talk: Talk) -> None:
    a = talk.open("a", token=5)
    taken = talk.open("a", resume=True, token=9, peer=b"B")
    assert taken[1] == a[1] + 1
    assert talk.code("open", 0, "a", None, True, a[1], 6, peer=b"A2") == "FENCED"
    assert talk.code("open", 0, "a", None, True, a[1] + 7, 6, peer=b"A2") == "FENCED"
    assert talk.done(*event(taken, 1, 8), peer=b"B")[0] == 1  # and disturbs nobody
    back = talk.open("a", resume=True, token=6, peer=b"A2")  # but it may take it back
    assert back[1] == a[1] + 2


def test_an_attach_never_opens_afresh(talk: Talk) -> None:
    a = talk.open("a")
    talk.done("close", 0, *a)
    for epoch in (a[1], 1):
        refusal = talk.refused("open", 0, "a", None, True, epoch, 6)
        assert refusal == ("SESSION_UNKNOWN", {"seq": 0})
    assert talk.protocol.stats(0)["models"]["fold"]["sessions"] == 0
    talk.open("a", resume=True)


def test_what_waits_under_the_old_epoch_is_not_stepped(talk: Talk) -> None:
    a = talk.open("a")
    talk.send(*event(a, 1, 8))
    talk.send("open", 9, "a", None, True, a[1], 6, peer=b"A2")
    talk.send(*event(a, 2, 8))  # came before the new epoch began
    talk.send(*bulk([a], [8], [2]))
    codes = [r[2] for _, r in talk.settle() if r[0] == "error"]
    assert codes == ["FENCED", "FENCED"]
    assert talk.engines[0].seqs == [1]


def test_repeats_across_a_take_over(talk: Talk) -> None:
    """The ring is the session's, not the owner's."""
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    talk.done(*run(a, 2, 1, 2))
    taken = talk.open("a", resume=True, peer=b"B")
    assert talk.done(*run(taken, 2, 1, 2), peer=b"B")[0] == 3
    talk.done(*event(taken, 4, 4), peer=b"B")
    back = talk.open("a", resume=True)
    assert talk.done(*event(back, 4, 4))[0] == 4


# --- forks ----------------------------------------------------------------------------------------


def test_a_fork_goes_its_own_way(talk: Talk) -> None:
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    status, _, *values = talk.ask("fork", 0, *a, 1, "b", 5)
    assert (status, values[2:]) == ("ok", [0, "fold", "fold-2"])
    b = (values[0], values[1])
    assert talk.done(*event(b, 1, 0)) == [1, [4, 4]]
    assert talk.done(*event(a, 2, 8)) == [2, [12, 12]]
    assert talk.code(*event(b, 0, 8)) == "SEQUENCE"
    talk.done("close", 0, *a)
    assert talk.done(*event(b, 2, 0)) == [2, [2, 2]]


def test_a_fork_sent_again_is_the_same_answer(talk: Talk) -> None:
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    first = talk.ask("fork", 0, *a, 1, "b", 5)
    assert talk.ask("fork", 0, *a, 1, "b", 5) == first
    talk.done(*event((first[2], first[3]), 1, 1))
    talk.done(*event(a, 2, 8))
    again = talk.ask("fork", 0, *a, 1, "b", 5)  # both went on since
    assert again[2:5] == [first[2], first[3], 1]
    assert talk.code("fork", 0, *a, 2, "b", 6) == "SESSION_EXISTS"
    assert talk.code("fork", 0, *a, 2, "b", None) == "SESSION_EXISTS"
    assert talk.code("fork", 0, *a, 2, "a", 6) == "SESSION_EXISTS"


def test_a_fork_is_of_the_state_its_sender_knows(talk: Talk) -> None:
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    for seq in (0, 2):
        assert talk.code("fork", 0, *a, seq, "b", 5) == "SEQUENCE"
    assert talk.code("fork", 0, *a, 1, "b", 5, peer=b"B") == "FENCED"
    talk.ask("fork", 0, *a, None, "b", None)
    assert talk.protocol.stats(0)["models"]["fold"]["sessions"] == 2


# --- deadlines ------------------------------------------------------------------------------------


def test_past_its_deadline_nothing_is_stepped(talk: Talk) -> None:
    a, b = talk.open("a"), talk.open("b")
    talk.now = 10.0
    for message in (
        event(a, 1, 8, deadline=9.9),
        run(a, 1, 8, deadline=9.9),
        bulk([a, b], [8, 8], [1, 1], deadline=9.9),
        event(a, None, 8, deadline=-1.0),
    ):
        assert talk.refused(*message) == ("DEADLINE", {})
    assert talk.engines[0].seqs == [0, 0]
    assert talk.done(*event(a, 1, 8, deadline=10.0)) == [1, [8, 8]]
    assert talk.done(*run(a, 2, 8, deadline=10.5))[0] == 2
    assert talk.done(*bulk([a, b], [8, 8], [3, 1], deadline=11))[0] == [3, 1]


def test_the_deadline_counts_when_its_turn_comes(talk: Talk) -> None:
    a, b = talk.open("a"), talk.open("b")
    talk.send(*event(a, 1, 8, deadline=1.0))
    talk.send(*event(b, 1, 8))
    talk.now = 2.0
    codes = {r[2] for _, r in talk.settle()}
    assert codes == {"DEADLINE", 1}
    assert talk.engines[0].seqs == [0, 1]


def test_a_repeat_past_its_deadline_is_answered(talk: Talk) -> None:
    a = talk.open("a")
    messages = (
        event(a, 1, 8, deadline=1.0),
        bulk([a], [8], [2], deadline=1.0),
        run(a, 3, 8, deadline=1.0),
    )
    for message in messages[:2]:
        first = talk.ask(*message)
        talk.now = 5.0
        assert talk.ask(*message) == first
        talk.now = 0.0
    first = talk.ask(*messages[2])
    talk.now = 5.0
    assert talk.ask(*messages[2]) == first


# --- quarantine -----------------------------------------------------------------------------------


def ruined(talk: Talk, name: str = "q") -> At:
    """A session at seq 2, quarantined by its event 2."""
    at = talk.open(name)
    talk.done(*event(at, 1, 8))
    assert talk.code(*event(at, 2, POISON)) == "QUARANTINED"
    return at


def test_a_ruined_session_refuses_all_events(talk: Talk) -> None:
    at, other = ruined(talk), talk.open("other")
    for _ in range(2):
        assert talk.refused(*event(at, 2, POISON)) == (
            "QUARANTINED",
            {"seq": 2},
        )  # it has taken its seq
        assert talk.code(*event(at, 3, 1)) == "QUARANTINED"
        assert talk.code(*event(at, None, 1)) == "QUARANTINED"
        assert talk.code(*run(at, 3, 1, 1)) == "QUARANTINED"
        assert talk.code(*bulk([other, at], [1, 1], [1, 3])) == "QUARANTINED"
        assert talk.code("fork", 0, *at, 2, "copy", 5) == "QUARANTINED"
    assert talk.done(*event(at, 1, 8)) == [1, [8, 8]]  # repeats are repeats
    assert talk.refused(*event(at, 4, 1)) == ("SEQUENCE", {"expected": 3})
    assert talk.done(*event(other, 1, 1)) == [1, [1, 1]]
    assert talk.protocol.stats(0)["models"]["fold"]["quarantined"] == 1


def test_in_a_batch_it_is_refused_alone(talk: Talk) -> None:
    ats = [ruined(talk), *(talk.open(name) for name in "abc")]
    for at, seq, x in zip(ats, (3, 1, 1, 1), (1, 1, POISON, 3), strict=True):
        talk.send(*event(at, seq, x))
    replies = talk.settle()
    assert sorted(str(r[2]) for _, r in replies) == ["1", "1", "QUARANTINED", "QUARANTINED"]
    assert talk.done(*event(ats[1], 2, 0)) == [2, [0.5, 0.5]]
    assert talk.code(*event(ats[2], 2, 0)) == "QUARANTINED"
    assert talk.done(*event(ats[3], 2, 0)) == [2, [1.5, 1.5]]


def test_a_bulk_tells_by_nan_and_notice(talk: Talk) -> None:
    a, b, c = (talk.open(name) for name in "abc")
    message = bulk([a, b, c], [[1, 1], [POISON, 5], [3, 3]], [1, 1, 1])
    talk.send(*message)
    told, (to, reply) = talk.settle()
    assert told == (b"A", ["notice", None, "quarantined", [["b", *b, 1]]])
    assert (to, reply[0]) == (b"A", "ok")
    Y = np.frombuffer(reply[3], "<f4").reshape(3, 2)
    np.testing.assert_array_equal(Y, [[1, 1], [np.nan, np.nan], [3, 3]])
    assert talk.ask(*message) == reply  # bit for bit
    assert talk.code(*bulk([a, b, c], [1, 1, 1], [2, 2, 2])) == "QUARANTINED"
    assert talk.done(*bulk([a, c], [1, 1], [2, 2])) == [[2, 2], [1.5, 1.5, 2.5, 2.5]]


def test_a_run_that_ruins_takes_all_its_numbers(talk: Talk) -> None:
    a = talk.open("a")
    message = run(a, 1, 1, POISON, 1)
    for _ in range(2):
        assert talk.code(*message) == "QUARANTINED"
    assert talk.done("reset", 0, *a, 4) == [4]
    assert talk.code(*message) == "QUARANTINED"  # what it was answered
    assert talk.done(*event(a, 5, 1)) == [5, [1, 1]]


@pytest.mark.parametrize("by_seq", [True, False])
def test_reset_and_restore_bring_it_back(talk: Talk, by_seq: bool) -> None:
    at, other = ruined(talk), ruined(talk, "other")
    assert talk.code("restore", 0, *at, 3, b"fold" + floats(1)) == "STATE_MISMATCH"
    assert talk.code(*event(at, 3, 1)) == "QUARANTINED"
    for _ in range(1 + by_seq):
        assert talk.done("reset", 0, *at, 3 if by_seq else None) == [3]
        assert talk.done("restore", 0, *other, 3 if by_seq else None, blob(6, 6)) == [3]
    assert talk.done(*event(at, 4, 1)) == [4, [1, 1]]
    assert talk.done(*event(other, 4, 1)) == [4, [4, 4]]
    assert talk.code(*event(at, 2, POISON)) == "QUARANTINED"  # the answer it had
    stats = talk.protocol.stats(0)["models"]["fold"]
    assert (stats["quarantined"], stats["resident"]) == (0, 2)


def test_it_is_opened_and_closed_as_any_other(talk: Talk) -> None:
    at = ruined(talk)
    taken = talk.open("q", resume=True, peer=b"B")
    assert talk.code(*event(taken, 3, 1), peer=b"B") == "QUARANTINED"
    assert talk.done("close", 0, *taken, peer=b"B") == [2]
    fresh = talk.open("q")
    assert fresh != at
    assert talk.done(*event(fresh, 1, 1)) == [1, [1, 1]]
    stats = talk.protocol.stats(0)["models"]["fold"]
    assert (stats["quarantined"], stats["sessions"], stats["resident"]) == (0, 1, 1)


def test_in_memory_no_last_good_state_is_kept(talk: Talk) -> None:
    at = ruined(talk)
    assert talk.code("state", 0, *at) == "QUARANTINED"
    talk.done("reset", 0, *at, 3)
    assert talk.done("state", 0, *at) == [3, blob(0, 0)]
