"""Clients that feed sessions and send things again, against a server that may be killed any time.

The oracle is an engine of its own that nothing ever happens to: every answer must have its bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from service.talk import Talk

NAMES = "abcd"
ACTIONS = st.lists(
    st.one_of(
        *(
            st.tuples(st.just(kind), st.sampled_from(NAMES), st.integers(0, 8))
            for kind in (
                *("step", "again", "pipeline", "run", "reset", "restore", "other", "gap"),
                *("nan", "late", "attach", "restart", "wait", "bulk"),
            )
        )
    ),
    min_size=10,
    max_size=50,
)


@dataclass
class Change:
    """A message that changed sessions, and what each of them must have been answered."""

    op: str
    fields: tuple[Any, ...]  # after the seqs
    firsts: dict[str, int]  # by name, in the message's order
    lasts: dict[str, int]
    answer: bytes


@dataclass
class Feed:
    """One session's client, and its twin in the oracle."""

    name: str
    twin: Any
    at: tuple[int, int] = (0, 0)
    peer: bytes = b"P0"
    after_run: int = 0  # answers of single events are kept from here on
    tokens: int = 0


class Feeds:
    """All feeds of one server. start: a server, again after a kill; oracle: an engine."""

    def __init__(
        self, start: Callable[[float], Talk], oracle: Any, names: str = NAMES, bulk_max: int = 4
    ) -> None:
        self.start, self.bulk_max = start, bulk_max
        self.talk = start(0.0)
        model = oracle.model
        self.dtype, self.inputs = np.dtype(model.event_dtype), len(model.inputs)
        self.window = self.talk.protocol.shard.tables[0].answers.window
        self.feeds = {name: Feed(name, oracle.open(name)) for name in names}
        self.log: dict[str, list[Change]] = {name: [] for name in names}
        self.saved = oracle.open("saved").state().to_bytes()
        self.read_state = self.talk.read_state
        self.peers = 0
        for feed in self.feeds.values():
            feed.at = self.talk.open(feed.name, token=1, peer=feed.peer)

    def act(self, kind: str, name: str, number: int) -> None:
        getattr(self, f"_{kind}")(self.feeds[name], number)

    def finish(self) -> None:
        """All states are the oracle's."""
        for feed in self.feeds.values():
            _, _, seq, blob = self.talk.ask("state", 0, *feed.at, peer=feed.peer)
            state = feed.twin.state()
            assert seq == feed.twin.seq
            np.testing.assert_array_equal(self.read_state(blob).numbers, state.numbers)

    # --- messages ---

    def x(self, number: float, rows: int = 1) -> Any:
        """Events [rows, inputs], each of one number."""
        return np.repeat(number + np.arange(rows), self.inputs).reshape(rows, -1).astype(self.dtype)

    def message(self, change: Change) -> tuple[Any, ...]:
        """As it must be sent now: under the epochs of now."""
        if change.op == "steps":
            ats = [self.feeds[name].at for name in change.firsts]
            handles, epochs = zip(*ats, strict=True)
            return "steps", 0, handles, epochs, tuple(change.firsts.values()), *change.fields
        ((name, first),) = change.firsts.items()
        return change.op, 0, *self.feeds[name].at, first, *change.fields

    def change(self, feed: Feed, op: str, *fields: Any, answer: bytes = b"", rows: int = 1) -> None:
        """Send a change that the oracle has made, which must be answered as there."""
        last = feed.twin.seq
        made = Change(op, fields, {feed.name: last - rows + 1}, {feed.name: last}, answer)
        self.check(made, feed.peer)
        self.log[feed.name].append(made)

    def check(self, change: Change, peer: bytes) -> None:
        status, _, seqs, *Y = self.talk.ask(*self.message(change), peer=peer)
        assert status == "ok", (change, seqs)
        lasts = list(change.lasts.values())
        assert (seqs == lasts[0]) if change.op != "steps" else (
            np.frombuffer(seqs, "<i8").tolist() == lasts
        )  # fmt: skip
        assert b"".join(Y) == change.answer, change

    def refusal(self, feed: Feed, *items: Any) -> str:
        return self.talk.code(items[0], 0, *feed.at, *items[1:], peer=feed.peer)

    # --- what may happen ---

    def _step(self, feed: Feed, number: int) -> None:
        x = self.x(number)
        answer = feed.twin.step(x[0]).tobytes()
        self.change(feed, "step", None, x.tobytes(), answer=answer)

    def _pipeline(self, feed: Feed, number: int) -> None:
        """Several messages on their way at once."""
        for count in range(number):
            x = self.x(count)
            seq = feed.twin.seq + 1
            feed.twin.step(x[0])
            self.talk.send("step", 0, *feed.at, seq, None, x.tobytes(), peer=feed.peer)
        replies = [r for _, r in self.talk.settle()]
        assert [r[0] for r in replies] == ["ok"] * number

    def _run(self, feed: Feed, number: int) -> None:
        X = self.x(number, number + 1)
        answer = feed.twin.run(X).tobytes()
        self.change(feed, "run", None, X.tobytes(), answer=answer, rows=len(X))
        feed.after_run = feed.twin.seq

    def _reset(self, feed: Feed, _: int) -> None:
        feed.twin.reset()
        self.change(feed, "reset")

    def _restore(self, feed: Feed, number: int) -> None:
        if number % 2:  # something else to restore next time
            self.saved = feed.twin.state().to_bytes()
        feed.twin.restore(self.read_state(self.saved))
        self.change(feed, "restore", self.saved)

    def _bulk(self, feed: Feed, number: int) -> None:
        feeds = [f for f in self.feeds.values() if f.peer == feed.peer][: self.bulk_max]
        X = self.x(number, len(feeds))
        firsts = {f.name: f.twin.seq + 1 for f in feeds}
        answer = b"".join(f.twin.step(x).tobytes() for f, x in zip(feeds, X, strict=True))
        change = Change("steps", (None, X.tobytes()), firsts, firsts, answer)
        self.check(change, feed.peer)
        for f in feeds:
            self.log[f.name].append(change)

    def _again(self, feed: Feed, number: int) -> None:
        """One of the last messages once more."""
        if number >= len(self.log[feed.name]):
            return
        change = self.log[feed.name][-1 - number]
        if {self.feeds[name].peer for name in change.firsts} != {feed.peer}:
            return
        if change.op == "run":
            is_kept = change.lasts[feed.name] == feed.twin.seq
        else:
            feeds = {name: self.feeds[name] for name in change.firsts}
            is_kept = all(
                seq > max(feeds[name].twin.seq - self.window, feeds[name].after_run)
                for name, seq in change.firsts.items()
            )
        if is_kept:
            self.check(change, feed.peer)
        elif change.op != "run":  # which may be kept for longer
            assert self.talk.code(*self.message(change), peer=feed.peer) == "ANSWER_GONE"

    def _other(self, feed: Feed, number: int) -> None:
        """The last number with an input that it never had."""
        if feed.twin.seq > feed.after_run:
            x = self.x(100 + number).tobytes()
            assert self.refusal(feed, "step", feed.twin.seq, None, x) == "SEQUENCE"

    def _gap(self, feed: Feed, number: int) -> None:
        seq, x = feed.twin.seq + 2 + number, self.x(number)
        assert self.refusal(feed, "step", seq, None, x.tobytes()) == "SEQUENCE"
        assert self.refusal(feed, "run", seq, None, x.tobytes()) == "SEQUENCE"
        assert self.refusal(feed, "reset", seq) == "SEQUENCE"

    def _nan(self, feed: Feed, number: int) -> None:
        seq, x = feed.twin.seq + 1, self.x(float("nan")).tobytes()
        op = ("step", "run")[number % 2]
        assert self.refusal(feed, op, seq, None, x) == "NON_FINITE"

    def _late(self, feed: Feed, number: int) -> None:
        past, x = self.talk.now - 1, self.x(number).tobytes()
        assert self.refusal(feed, "step", feed.twin.seq + 1, past, x) == "DEADLINE"

    def _attach(self, feed: Feed, number: int) -> None:
        """The connection was lost; a new one, or the same, goes on."""
        self.peers += 1
        feed.tokens += 1
        if number % 2:
            feed.peer = f"P{number // 2}".encode()
        old = feed.at
        token = 1000 * self.peers + feed.tokens
        for _ in range(1 + number // 4):  # the reply was lost, too
            feed.at = self.talk.open(
                feed.name, resume=True, epoch=old[1], token=token, peer=feed.peer
            )
        assert feed.at[1] != old[1]
        x = self.x(number).tobytes()
        late = self.talk.code("step", 0, *old, feed.twin.seq + 1, None, x, peer=feed.peer)
        assert late in ("FENCED", "SESSION_UNKNOWN")

    def _wait(self, _: Feed, number: int) -> None:
        """Time for checkpoints, and some turns without work."""
        self.talk.now += number
        for _ in range(number):
            assert self.talk.step() == []

    def _restart(self, _: Feed, number: int) -> None:
        self.talk = self.start(self.talk.now)
        for each in self.feeds.values():
            self._attach(each, number)
