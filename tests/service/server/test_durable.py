"""Sessions with a store: killed at any point and started again, they go on as if nothing was."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import streamlstm as sl
from service.conftest import make_model
from service.fake_engine import POISON, Engine, Model, State
from service.feeds import ACTIONS, Feeds
from service.talk import At, Talk, bulk, event, floats, run
from streamlstm import kernels
from streamlstm.errors import StoreDamagedError, StoreError, StoreMismatchError
from streamlstm.service.server.checkpoint import CHECKPOINT_S, SLICE_ROWS
from streamlstm.store import Store, open_store


class Disk:
    """What outlives a server: a database in memory."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)

    def start(self, *engines: Any, **options: Any) -> Talk:
        """A server on it; one that ran before is dead, and what it did not commit is lost."""
        self.connection.rollback()
        return Talk(*(engines or (Engine(),)), store=Store(self.connection, "async"), **options)

    def count(self, table: str) -> int:
        return int(self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def damage(self, name: str) -> None:
        """One bit of a session's stored state."""
        self.connection.execute(
            "UPDATE sessions SET state = zeroblob(length(state)) WHERE name=?", (name,)
        )


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.connection.close()


def attach(talk: Talk, name: str, at: At, peer: bytes = b"A") -> At:
    """As its client does after a restart."""
    return talk.open(name, resume=True, epoch=at[1], token=99, peer=peer)


def seq_of(talk: Talk, at: At) -> int:
    return int(talk.done("state", 0, *at)[0])


def model_stats(talk: Talk) -> dict[str, Any]:
    found: dict[str, Any] = talk.protocol.stats(talk.now)["models"]["fold"]
    return found


def checkpoint(talk: Talk) -> None:
    talk.now += CHECKPOINT_S + 1
    talk.step()


# --- any schedule ---------------------------------------------------------------------------------


class Blas(Engine):
    """An engine whose bits depend on who is stepped together."""

    same_bits = False

    def step(self, sessions: list[Any], X: Any) -> Any:
        Y = super().step(sessions, X)
        for session in sessions:
            self.sums[session.row] += np.float32(len(sessions) - 1) / 1024
        return Y


@pytest.mark.untraced
@pytest.mark.parametrize("way", ["plain", "spilling", "alone", "alone, spilling"])
@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS)
def test_any_schedule(way: str, actions: list[tuple[str, str, int]]) -> None:
    disk = Disk()
    engine = Blas if "alone" in way else Engine
    resident = 2 if "spilling" in way else None

    def start(now: float) -> Talk:
        return disk.start(engine(), max_resident=resident, now=now)

    feeds = Feeds(start, Engine(), bulk_max=resident or 4)
    for action in actions:
        feeds.act(*action)
    feeds.act("restart", "a", 1)
    feeds.finish()
    disk.connection.close()


@pytest.mark.blas
@pytest.mark.parametrize(("dtype", "kernel"), [("f4", ""), ("f4", "blas"), ("f8", "")])
@pytest.mark.parametrize("resident", [None, 2])
@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS)
def test_any_schedule_of_a_real_engine(
    dtype: str, kernel: str, resident: int | None, actions: list[tuple[str, str, int]]
) -> None:
    """Also where a stream's bits depend on who is stepped with it: there each is stepped alone."""
    disk, model = Disk(), make_model("pump", inputs=2, dtype=dtype)

    def start(now: float) -> Talk:
        return disk.start(
            sl.Engine(model), read_state=sl.State.from_bytes, max_resident=resident, now=now
        )

    with pytest.MonkeyPatch.context() as patch:
        if kernel:
            patch.setenv(kernels.VARIABLE, kernel)
        with sl.Engine(model) as oracle:
            feeds = Feeds(start, oracle, bulk_max=resident or 4)
            for action in actions:
                feeds.act(*action)
            feeds.act("restart", "a", 1)
            feeds.finish()
            stepped_alone = feeds.talk.protocol.stats(0)["models"]["pump"]["stepped_alone"]
            assert stepped_alone is not oracle.same_bits
    disk.connection.close()


# --- restarts -------------------------------------------------------------------------------------


def test_a_killed_server_goes_on(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a", token=7)
    b = talk.open("b")
    answers = [talk.ask(*event(a, seq, seq)) for seq in (1, 2, 3)]
    talk.done(*run(b, 1, 1, 2))
    whole = talk.ask(*bulk([a, b], [4, 3], [4, 3]))
    talk = disk.start()
    assert talk.protocol.stats(0)["recovered_events"] == 7
    assert disk.count("journal") == 0  # all is in the rows
    assert talk.code(*event(a, 5, 5)) == "FENCED"  # until it is attached
    assert talk.ask("open", 0, "a", None, False, None, 7)[3:5] == [a[1], 4]  # by its token
    again = attach(talk, "a", a)
    assert again[1] != a[1]
    assert [talk.ask(*event(again, seq, seq)) for seq in (1, 2, 3)] == answers
    b = attach(talk, "b", b)
    assert talk.ask(*bulk([again, b], [4, 3], [4, 3])) == whole
    assert talk.done(*event(again, 5, 0)) == [5, [3.0625, 3.0625]]


def test_answers_are_there_after_a_restart(disk: Disk) -> None:
    for rows in (False, True):  # from the journal, from the row
        talk = disk.start()
        name = f"s{rows}"
        at = talk.open(name)
        answers = [talk.ask(*event(at, seq, seq)) for seq in range(1, 20)]
        talk.done("reset", 0, *at, 20)
        if rows:
            talk.protocol.stop()
        talk = disk.start()
        at = attach(talk, name, at)
        assert [talk.ask(*event(at, seq, seq)) for seq in range(5, 20)] == answers[4:]
        assert talk.code(*event(at, 4, 4)) == "ANSWER_GONE"
        assert talk.done("reset", 0, *at, 20) == [20]
        whole = talk.ask(*run(at, 21, 1, 2, 3))
        if rows:
            talk.protocol.stop()
        talk = disk.start()
        at = attach(talk, name, at)
        assert talk.ask(*run(at, 21, 1, 2, 3)) == whole
        assert seq_of(talk, at) == 23


def test_epochs_and_tokens_last(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a", token=1)
    for token in (2, 3):
        a = talk.open("a", resume=True, epoch=a[1], token=token)
    talk = disk.start()
    for epoch in (a[1] - 1, a[1] + 1):
        assert talk.code("open", 0, "a", None, True, epoch, 9) == "FENCED"
    assert talk.code("open", 0, "a", None, False, None, 2) == "SESSION_EXISTS"
    assert talk.open("a", resume=True, epoch=a[1] - 1, token=3) == (0, a[1])  # its reply was lost
    talk = disk.start()
    assert talk.open("a", resume=True, epoch=a[1], token=4)[1] != a[1]


def test_an_epoch_that_was_lost_is_not_given_again(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store falls back to before an attach, as by power loss: who attached then is fenced."""
    monkeypatch.setattr("os.urandom", random.Random(0).randbytes)
    talk = disk.start()
    a = talk.open("a")
    talk.protocol.stop()
    before = disk.connection.serialize()
    talk = disk.start()
    lost = attach(talk, "a", a)
    talk.done(*event(lost, 1, 8))
    disk.connection.rollback()
    disk.connection.deserialize(before)
    talk = disk.start()
    taken = talk.open("a", resume=True, token=5, peer=b"B")
    talk.done(*event(taken, 1, 4), peer=b"B")
    assert talk.code("open", 0, "a", None, True, lost[1], 98) == "FENCED"


def test_every_end_is_replayed(disk: Disk) -> None:
    talk = disk.start(ttl_s=10)
    for name in ("closed", "again", "fresh"):
        talk.done(*event(talk.open(name), 1, 8))
    for name in ("closed", "again"):
        talk.done("close", 0, *talk.open(name, resume=True))
    talk.done(*event(talk.open("again"), 1, 4))
    talk.serve_until(11.0)
    talk.done(*event(talk.open("again", resume=True), 2, 4))
    talk.protocol.tick()
    talk.settle()  # "fresh" is evicted
    talk = disk.start(now=11.0)
    assert model_stats(talk)["sessions"] == 1
    for name in ("closed", "fresh"):
        assert talk.refused("open", 0, name, None, True, 5, 5) == ("SESSION_UNKNOWN", {"seq": 0})
    assert talk.done(*event(talk.open("again", resume=True), 3, 0)) == [3, [3, 3]]


@pytest.mark.parametrize("ends", [False, True])
def test_a_fork_is_replayed(disk: Disk, ends: bool) -> None:
    talk = disk.start()
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    _, _, *b = talk.ask("fork", 0, *a, 1, "b", 5)
    talk.done(*event((b[0], b[1]), 1, 0))
    if ends:
        talk.done("close", 0, *a)
    talk = disk.start()
    again = talk.ask("open", 0, "b", None, False, None, 5)  # as the fork would be
    assert (again[3], again[4]) == (b[1], 1)
    assert talk.done(*event((again[2], again[3]), 2, 0)) == [2, [2, 2]]
    assert model_stats(talk)["sessions"] == 2 - ends


def test_reset_and_restore_are_replayed(disk: Disk) -> None:
    talk = disk.start()
    a, b = talk.open("a"), talk.open("b")
    for at in (a, b):
        talk.done(*event(at, 1, 8))
    talk.done("reset", 0, *a, 2)
    saved = State(np.array([6, 6], np.float32)).to_bytes()
    talk.done("restore", 0, *b, 2, saved)
    talk = disk.start()
    a, b = attach(talk, "a", a), attach(talk, "b", b)
    assert talk.done("restore", 0, *b, 2, saved) == [2]
    assert talk.done(*event(a, 3, 1)) == [3, [1, 1]]
    assert talk.done(*event(b, 3, 1)) == [3, [4, 4]]


def test_what_was_not_committed_was_not_answered(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    talk.send(*event(a, 2, 8))
    talk.engines[0].fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        talk.step()
    talk = disk.start()
    a = attach(talk, "a", a)
    assert seq_of(talk, a) == 1
    assert talk.done(*event(a, 2, 8)) == [2, [12, 12]]


def test_a_store_that_fails_ends_the_server_unanswered(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    disk.connection.execute("PRAGMA query_only=1")
    talk.send(*event(a, 2, 8))
    with pytest.raises(StoreError):
        talk.step()
    with pytest.raises(StoreError):
        talk.step()
    disk.connection.execute("PRAGMA query_only=0")
    talk = disk.start()
    a = attach(talk, "a", a)
    assert talk.done(*event(a, 2, 8)) == [2, [12, 12]]


def test_a_stopped_server_leaves_no_journal(tmp_path: Path) -> None:
    """In a real directory: stopped, then killed; each time it goes on."""
    store = open_store(tmp_path, "async")
    talk = Talk(store=store)
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    talk.protocol.drain()
    talk.protocol.stop()
    assert store.records == 0
    store.close()
    store = open_store(tmp_path, "sync")
    talk = Talk(store=store)
    assert talk.protocol.stats(0)["durability"] == "sync"
    a = attach(talk, "a", a)
    talk.done(*event(a, 2, 8))
    assert store.records > 0
    store.close()  # without a stop
    store = open_store(tmp_path, "async")
    talk = Talk(store=store)
    assert talk.protocol.stats(0)["recovered_events"] == 1
    assert talk.done(*event(attach(talk, "a", a), 3, 0)) == [3, [6, 6]]
    store.close()


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_goes_on_while_sessions_do(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlstm.service.server.checkpoint.SLICE_BUSY", 1)  # one part a turn
    talk = disk.start()
    count = 3 * SLICE_ROWS
    ats = [talk.open(f"s{i}") for i in range(count)]
    talk.done(*bulk(ats, range(count), [1] * count))
    assert (disk.count("sessions"), disk.count("journal")) == (0, count + 1)
    talk.now += CHECKPOINT_S + 1
    for turn in range(1, 4):
        seqs = [turn + 1] * count
        talk.done(*bulk(ats, [1] * count, seqs))
        assert disk.count("sessions") == turn * SLICE_ROWS
    assert disk.count("journal") == 3  # of the turns since
    talk = disk.start()
    assert talk.protocol.stats(0)["recovered_events"] < 3 * count
    ats = [attach(talk, f"s{i}", at) for i, at in enumerate(ats)]
    Y = talk.done(*bulk(ats, [0] * count, [5] * count))[1]
    assert Y[::2] == [((i / 2 + 1) / 2 + 1) / 4 + 0.5 for i in range(count)]


def test_an_idle_server_comes_to_rest(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a")
    for turn in range(3):
        talk.done(*event(a, turn + 1, 8))
        checkpoint(talk)
        assert disk.count("journal") == 0
        before = disk.connection.total_changes
        checkpoint(talk)
        assert disk.connection.total_changes == before


@pytest.mark.parametrize("reopened", [False, True])
def test_a_session_closed_during_a_checkpoint(
    disk: Disk, reopened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlstm.service.server.checkpoint.SLICE_BUSY", 1)  # one part a turn
    talk = disk.start()
    count = SLICE_ROWS + 10
    ats = {f"s{i}": talk.open(f"s{i}") for i in range(count)}
    talk.done(*bulk(list(ats.values()), [1] * count))
    talk.now += CHECKPOINT_S + 1
    talk.done(*event(ats["s0"], 2, 1))  # a slice is written
    assert disk.count("sessions") == SLICE_ROWS
    for name in ("s1", f"s{count - 1}"):  # one of them, and one that is due
        talk.done("close", 0, *ats[name])
        if reopened:
            talk.done(*event(talk.open(name), 1, 5))
    talk.step()
    for talk_again in (talk, disk.start()):
        assert model_stats(talk_again)["sessions"] == count - 2 + 2 * reopened
    assert disk.count("sessions") == count - 2 + 2 * reopened
    if reopened:
        at = talk_again.open("s1", resume=True)
        assert talk_again.done(*event(at, 2, 0)) == [2, [2.5, 2.5]]


# --- more sessions than room ----------------------------------------------------------------------


def test_idle_sessions_are_spilled_and_come_back(disk: Disk) -> None:
    talk = disk.start(max_resident=3)
    ats = []
    for i in range(10):
        talk.now += 1
        ats.append(talk.open(f"s{i}"))
        talk.done(*event(ats[-1], 1, i))
    stats = model_stats(talk)
    assert (stats["sessions"], stats["resident"], stats["spilled"]) == (10, 3, 7)
    spilled = set(talk.engines[0].live)
    assert spilled == {"s7", "s8", "s9"}  # the last ones used
    for i, at in enumerate(ats):
        assert talk.done(*event(at, 1, i)) == [1, [i, i]]  # a repeat brings nothing back
    assert set(talk.engines[0].live) == spilled
    for i, at in enumerate(ats):
        assert talk.done(*event(at, 2, 0)) == [2, [i / 2, i / 2]]
    assert talk.done(*run(ats[0], 3, 0))[0] == 3
    assert talk.done("reset", 0, *ats[1], 3) == [3]
    assert talk.done("close", 0, *ats[2]) == [2]
    status, _, *fork = talk.ask("fork", 0, *ats[3], 2, "f", 1)
    assert status == "ok"
    assert talk.done(*event((fork[0], fork[1]), 1, 0)) == [1, [0.75, 0.75]]
    assert model_stats(talk)["resident"] <= 3
    assert seq_of(talk, ats[4]) == 2


def test_a_batch_beyond_the_room_is_done_all_the_same(disk: Disk) -> None:
    talk = disk.start(max_resident=2)
    ats = [talk.open(f"s{i}") for i in range(6)]
    for i, at in enumerate(ats):
        talk.send(*event(at, 1, i))
    replies = [r[2:] for _, r in talk.settle()]
    assert sorted(replies) == sorted([1, floats(i, i)] for i in range(6))
    assert model_stats(talk)["resident"] <= 2


def test_a_bulk_beyond_the_room_is_refused(disk: Disk) -> None:
    talk = disk.start(max_resident=2)
    ats = [talk.open(f"s{i}") for i in range(3)]
    assert talk.code(*bulk(ats, [1, 2, 3], [1, 1, 1])) == "CAPACITY"
    assert talk.done(*bulk(ats[:2], [1, 2], [1, 1])) == [[1, 1], [1, 1, 2, 2]]
    assert talk.done(*bulk(ats[1:], [4, 4], [2, 1])) == [[2, 1], [5, 5, 4, 4]]


def test_stored_sessions_count(disk: Disk) -> None:
    talk = disk.start(Engine(max_sessions=3), max_resident=2)
    for name in "abc":
        talk.open(name)
    for _ in range(2):
        assert talk.code("open", 0, "d", None, False, None, None) == "CAPACITY"
        talk = disk.start(Engine(max_sessions=3))
    talk.done("close", 0, *talk.open("a", resume=True))
    talk.open("d")


def test_stored_sessions_that_nobody_opens_are_evicted(disk: Disk) -> None:
    talk = disk.start()
    for name in "abc":
        talk.done(*event(talk.open(name), 1, 8))
    talk.protocol.stop()
    talk = disk.start(ttl_s=10, now=100.0)
    for now, sessions in ((109.0, 3), (111.0, 1), (120.0, 0)):
        if now == 109.0:
            talk.serve_until(now)
            talk.open("b", resume=True)
        talk.serve_until(now)
        talk.protocol.tick()
        talk.step()
        assert model_stats(talk)["sessions"] == sessions
    assert model_stats(talk)["evicted"] == 3
    assert disk.count("sessions") == 0


# --- quarantine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at once", "restarted"])
@pytest.mark.parametrize("rows", [False, True])
def test_the_last_good_state_is_kept(disk: Disk, when: str, rows: bool) -> None:
    talk = disk.start()
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    talk.done("reset", 0, *a, 2)
    talk.done(*run(a, 3, 2, 4))
    if rows:
        checkpoint(talk)
    talk.done(*event(a, 5, 1))
    good = talk.done("state", 0, *a)[1]
    assert talk.code(*event(a, 6, POISON)) == "QUARANTINED"
    if when == "restarted":
        talk = disk.start()
        a = attach(talk, "a", a)
    assert model_stats(talk)["quarantined"] == 1
    assert talk.done("state", 0, *a) == [6, good]
    assert talk.code(*event(a, 6, POISON)) == "QUARANTINED"
    assert talk.code(*event(a, 7, 1)) == "QUARANTINED"
    assert talk.done(*event(a, 5, 1)) == [5, [3.5, 3.5]]
    assert talk.done("restore", 0, *a, 7, good) == [7]
    assert talk.done(*event(a, 8, 0)) == [8, [1.75, 1.75]]
    talk = disk.start()
    assert model_stats(talk)["quarantined"] == 0
    assert talk.done(*event(attach(talk, "a", a), 9, 0)) == [9, [0.875, 0.875]]


@pytest.mark.parametrize("how", ["bulk", "run", "batch"])
def test_ruined_by_any_message(disk: Disk, how: str) -> None:
    talk = disk.start()
    a, b = talk.open("a"), talk.open("b")
    talk.done(*bulk([a, b], [8, 8], [1, 1]))
    last = 2
    if how == "bulk":
        status = talk.send(*bulk([a, b], [POISON, 8], [2, 2])), talk.settle()[-1][1][0]
        assert status[1] == "ok"
    elif how == "run":
        last = 4
        assert talk.code(*run(a, 2, 1, POISON, 1)) == "QUARANTINED"
        talk.done(*event(b, 2, 8))
    else:
        talk.send(*event(a, 2, POISON))
        talk.send(*event(b, 2, 8))
        assert {r[2] for _, r in talk.settle()} == {"QUARANTINED", 2}
    for again in (False, True):
        if again:
            talk = disk.start()
            a, b = attach(talk, "a", a), attach(talk, "b", b)
        assert talk.done("state", 0, *a) == [last, State(np.float32([8, 8])).to_bytes()]
        assert talk.done("state", 0, *b) == [2, State(np.float32([12, 12])).to_bytes()]
    assert talk.done("reset", 0, *a, last + 1) == [last + 1]
    assert talk.done(*bulk([a, b], [0, 0], [last + 2, 3]))[0] == [last + 2, 3]


@pytest.mark.parametrize("found", ["checkpoint", "spill", "stop", "restart"])
def test_a_hidden_ruin_is_found_when_the_row_is_written(disk: Disk, found: str) -> None:
    """The state is infinite while its outputs are not."""
    talk = disk.start(max_resident=2)
    a, b = talk.open("a"), talk.open("b")
    talk.done(*event(a, 1, 8))
    for seq in (2, 3, 4):
        assert talk.done(*event(a, seq, 3e38)) == [seq, [1e6, 1e6]]
    if found == "checkpoint":
        checkpoint(talk)
    elif found == "spill":
        talk.now += 1
        talk.done(*event(b, 1, 1))
        talk.open("c")
    elif found == "stop":
        talk.protocol.stop()
    if found in ("restart", "stop"):
        talk = disk.start()
        a = attach(talk, "a", a)
    assert talk.code(*event(a, 5, 1)) == "QUARANTINED"
    assert talk.done("state", 0, *a) == [4, State(np.float32([3e38, 3e38]) + 4).to_bytes()]
    assert talk.done("reset", 0, *a, 5) == [5]
    assert talk.done(*event(a, 6, 1)) == [6, [1, 1]]


def test_quarantined_sessions_need_no_room(disk: Disk) -> None:
    talk = disk.start(max_resident=2)
    for name in "abcd":
        at = talk.open(name)
        assert talk.code(*event(at, 1, POISON)) == "QUARANTINED"
    at = talk.open("good")
    assert talk.done(*event(at, 1, 1)) == [1, [1, 1]]


# --- other models, other arithmetic, damage -------------------------------------------------------


class OtherClass(Engine):
    arithmetic = "fold-2"


def test_a_journal_needs_its_arithmetic_class(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    with pytest.raises(StoreMismatchError, match=r"class fold-1.*fold-2.*SIGTERM"):
        disk.start(OtherClass())
    talk = disk.start()  # the way out
    talk.protocol.stop()
    talk = disk.start(OtherClass())
    a = attach(talk, "a", a)
    assert talk.done(*event(a, 2, 8)) == [2, [12, 12]]
    with pytest.raises(StoreMismatchError):
        disk.start()


def test_a_journal_needs_its_models(disk: Disk) -> None:
    both = disk.start(Engine(), Engine(Model("other")))
    talk = both
    talk.done(*event(talk.open("a", model="fold"), 1, 8))
    at = talk.open("a", model="other")
    talk.done(*event(at, 1, 4))
    with pytest.raises(StoreMismatchError, match="not served now"):
        disk.start()
    disk.start(Engine(), Engine(Model("other"))).protocol.stop()
    talk = disk.start()
    assert talk.done(*event(talk.open("a", resume=True), 2, 0)) == [2, [4, 4]]
    talk.protocol.stop()
    talk = disk.start(Engine(Model("other")))  # rows of other models stay
    assert talk.done(*event(talk.open("a", resume=True), 2, 0)) == [2, [2, 2]]


def test_a_changed_model_of_the_same_name_is_refused_by_name(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    talk.protocol.stop()
    talk = disk.start(Engine(Model(inputs=3)))
    for resume, epoch in ((False, None), (True, None), (True, a[1])):
        reply = talk.ask("open", 0, "a", None, resume, epoch, 5)
        assert reply[2] == "STATE_MISMATCH", reply
        assert "fold-2" in reply[3]
        assert "fold-3" in reply[3]
    talk.open("b")
    talk.protocol.stop()
    talk = disk.start()
    assert talk.done(*event(talk.open("a", resume=True), 2, 8)) == [2, [12, 12]]


def test_a_damaged_row_refuses_its_session_only(disk: Disk) -> None:
    talk = disk.start(max_resident=2)
    ats = {}
    for name in "abcd":
        talk.now += 1
        ats[name] = talk.open(name)
        talk.done(*event(ats[name], 1, 8))
    disk.damage("a")
    for _ in range(2):
        talk.send(*event(ats["a"], 2, 1))
        talk.send(*event(ats["b"], 2, 1))
        replies = [r for _, r in talk.settle()]
        assert sorted(str(r[2]) for r in replies) == ["2", "STORE"]
    assert talk.code(*bulk([ats["c"], ats["a"]], [1, 1], [2, 2])) == "STORE"
    assert talk.done(*event(ats["c"], 2, 1)) == [2, [5, 5]]
    talk.protocol.stop()
    talk = disk.start()
    assert talk.code("open", 0, "a", None, True, None, None) == "STORE"
    assert talk.done(*event(talk.open("b", resume=True), 3, 0))[0] == 3


def test_a_damaged_row_does_not_end_the_server(disk: Disk) -> None:
    talk = disk.start(max_resident=1, ttl_s=1000)
    a = talk.open("a")
    talk.done(*event(a, 1, 8))
    b = talk.open("b")
    disk.damage("a")
    a = talk.open("a", resume=True, epoch=a[1], token=5)  # its slot knows all but the state
    for _ in range(3):
        checkpoint(talk)
    assert talk.code(*event(a, 2, 1)) == "STORE"
    disk.connection.execute("UPDATE sessions SET name_checksum=0 WHERE name='a'")
    assert talk.done(*event(b, 1, 1))[0] == 1
    talk.protocol.stop()
    talk = disk.start(ttl_s=10)
    talk.serve_until(11.0)
    for _ in range(2):
        talk.protocol.tick()
        assert talk.step() == []


def test_a_journal_that_does_not_follow_is_damage(disk: Disk) -> None:
    talk = disk.start()
    a = talk.open("a")
    for seq in (1, 2, 3):
        talk.done(*event(a, seq, 8))
    disk.connection.execute("DELETE FROM journal WHERE id=3")
    with pytest.raises(StoreDamagedError):
        disk.start()


# --- stepped alone --------------------------------------------------------------------------------


def test_stepped_alone_is_all_or_nothing(disk: Disk) -> None:
    talk = disk.start(Blas())
    assert model_stats(talk)["stepped_alone"] is True
    a, b = talk.open("a"), talk.open("b")
    assert talk.code(*bulk([a, b], [[1, 1], [1, np.nan]], [1, 1])) == "NON_FINITE"
    talk.send(*event(a, 1, 8))
    talk.send(*event(b, 1, 8, float("nan")))
    assert {r[2] for _, r in talk.settle()} == {1, "NON_FINITE"}
    assert talk.done(*event(a, 2, 0)) == [2, [4, 4]]
    assert talk.done(*event(b, 1, 2)) == [1, [2, 2]]
    assert max(talk.engines[0].batches) == 1


def test_in_memory_nobody_is_stepped_alone() -> None:
    talk = Talk(Blas())
    ats = [talk.open(name) for name in "ab"]
    talk.done(*bulk(ats, [1, 1]))
    assert talk.engines[0].batches == [2]
