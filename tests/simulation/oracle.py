"""What must have become of every session: one uninterrupted run, compared with ==.

A feed is one client's ownership of a session, from an open to whatever ended it, with all that
was asked of it in order. The server is believed only in which order ownerships began and
sessions ended; what was done in them is what clients were told. From feed to feed the oracle
keeps every state the session may be in: one, unless a client could not know what became of a
request. An answer that fits none of them is a violation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from simulation.engine import POISON, Pair, fold
from streamlstm.service.client.fates import Fate


class Violation(AssertionError):  # noqa: N818
    """A promise of the service was broken."""


class State(NamedTuple):
    seq: int
    pair: Pair
    quarantined: bool = False


NEW = State(0, (0, 0))
GONE = None  # no such session

States = set[State | None]

DONE, NOT_DONE, MAYBE, UNKNOWN, QUARANTINED = (
    "answered", "refused", "maybe done", "unanswered", "quarantined",
)  # fmt: skip
"""Outcomes of a request. After UNKNOWN the feed does not go on, unless it was done."""

_CAUSES = {
    Fate.FENCED: {"begin", "rollback"},
    Fate.LOST: {"end", "wipe", "rollback"},
    Fate.ROLLED_BACK: {"rollback"},
    Fate.EVICTED: {"end"},
}
"""What must have happened to a session before its client says so."""


@dataclass(slots=True)
class Entry:
    """A request to a session. xs: events, of a run in `piece` rows a message."""

    op: str
    xs: tuple[Pair, ...] = ()
    piece: int = 1
    pair: Pair = (0, 0)  # restore
    name: str = ""  # fork
    outcome: str = UNKNOWN  # until it is done
    answer: Any = None
    last: int = 0  # the seq it was answered with
    boot: int = 0  # of the server that answered

    def prefixes(self, state: State) -> list[tuple[State, list[Pair]]]:
        """The states after 0, 1, ... of its messages, with the outputs so far."""
        reached: list[tuple[State, list[Pair]]] = [(state, [])]
        if self.op in ("reset", "restore"):
            reached.append((State(state.seq + 1, self.pair), []))
        elif self.op in ("step", "run"):
            pair, outputs = state.pair, []
            seq = state.seq
            for start in range(0, len(self.xs), self.piece):
                part = self.xs[start : start + self.piece]
                if state.quarantined:
                    break
                seq += len(part)
                if any(x[0] == POISON for x in part):
                    reached.append((State(seq, pair, True), list(outputs)))
                    break
                for x in part:
                    pair = fold(pair, x)
                    outputs.append(pair)
                reached.append((State(seq, pair), list(outputs)))
        return reached

    def after(self, state: State) -> list[State]:
        """The states in which it may leave a session, given its outcome."""
        prefixes = self.prefixes(state)
        last, outputs = prefixes[-1]
        whole = len(prefixes) > (len(self.xs) + self.piece - 1) // self.piece
        if self.outcome == NOT_DONE:
            # Of a run the first messages may have been done.
            return [s for s, _ in prefixes[: -1 if len(prefixes) > 1 else None]]
        if self.outcome == MAYBE:
            return [s for s, _ in prefixes]
        if self.outcome == UNKNOWN:
            return [last]
        if self.outcome == QUARANTINED:
            return [last] if last.quarantined else []
        if self.op == "state":
            return [state] if self.answer == state.pair else []
        if self.op in ("fork", "close"):
            return [state]
        if not whole or last.seq != self.last:
            return []
        if last.quarantined:  # only in a bulk, whose other members have answers
            return [last] if self.answer == [None] else []
        return [last] if self.op in ("reset", "restore") or self.answer == outputs else []


@dataclass(slots=True)
class Feed:
    """A client's ownership of a session."""

    client: str
    name: str
    seq: int  # that the open returned
    boot: int
    epoch: int  # the first one
    entries: list[Entry] = field(default_factory=list)
    session: Any = None
    alive: set[State | None] = field(default_factory=set)  # the oracle's, after `followed` entries
    followed: int = 0


class History:
    """The ownerships of all sessions in the order of the server, and what was told of each."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[Any, ...]]] = {}  # by name
        self.feeds: dict[tuple[str, int, int], Feed] = {}  # by name, epoch, boot
        self._begun: dict[str, set[tuple[int, int]]] = {}
        self._forked: dict[str, States] = {}

    def begin(self, name: str, epoch: int, boot: int, op: str, back: Feed | None) -> None:
        """op: open or fork. back: the feed that has re-attached."""
        if (epoch, boot) not in self._begun.setdefault(name, set()):  # else a repeat
            self._begun[name].add((epoch, boot))
            self.events.setdefault(name, []).append(("begin", epoch, boot, op, back))

    def end(self, name: str, cause: str) -> None:
        self.events.setdefault(name, []).append(("end", cause))

    def lose(self, boot: int, durable: bool) -> None:
        """A server ended, its store went back to an earlier commit, or there was none."""
        for events in self.events.values():
            events.append(("rollback" if durable else "wipe", boot))

    def add(self, feed: Feed) -> None:
        epoch = feed.epoch
        key = feed.name, epoch, feed.boot
        if key in self.feeds:
            raise Violation(f"{feed.name!r}: epoch {epoch} was given to two owners")
        if (epoch, feed.boot) not in self._begun.get(feed.name, ()):
            raise Violation(f"{feed.name!r}: nobody saw epoch {epoch} begin")
        self.feeds[key] = feed

    def check(self) -> None:
        """Raise Violation unless every answer is that of the uninterrupted run."""
        for name in list(self.events):  # a fork's name comes after that of its source
            self._check(name)
        for feed in self.feeds.values():
            self._check_fate(feed)

    def _check(self, name: str) -> None:
        states: States = {GONE}
        past: States = {GONE}
        feed: Feed | None = None
        for index, (kind, *facts) in enumerate(self.events[name]):
            if kind == "begin":
                epoch, boot, op, back = facts
                feed = self.feeds.get((name, epoch, boot), back)
                if GONE in states and back is None:
                    states = states - {GONE} | (self._forked[name] if op == "fork" else {NEW})
                    past |= states
                if feed is not None:
                    if back is None:
                        self._start(feed, states)
                    if feed.followed < len(feed.entries):
                        states = self._follow(feed, self._boots(name, index), past)
                    elif back is None:
                        states = feed.alive
            elif kind == "end":
                states = {GONE}
                past |= states
            elif kind == "wipe":
                self._refuse_late(name, feed, facts[0])
                states = past = {GONE}
            else:
                states = set(past)

    def _boots(self, name: str, index: int) -> float:
        """The last server before the store goes back again."""
        after = self.events[name][index:]
        return min((event[1] for event in after if event[0] == "rollback"), default=inf)

    def _may_reach(self, feed: Feed, past: States) -> States:
        """The states after requests that nobody has answered yet."""
        alive = feed.alive
        reached: States = set()
        for entry in feed.entries[feed.followed :]:
            after: States = set()
            for state in alive:
                prefixes = [s for s, _ in entry.prefixes(state)]
                reached.update(prefixes)
                if entry.outcome != NOT_DONE:
                    after.add(prefixes[-1])
                if entry.outcome in (NOT_DONE, MAYBE):
                    after.add(state)
            alive = after
        past |= reached
        return reached

    def _check_fate(self, feed: Feed) -> None:
        """No client is told that a session is lost to it for no reason."""
        events = self.events[feed.name]
        since = next(k for k, e in enumerate(events) if e[:3] == ("begin", feed.epoch, feed.boot))
        kinds = {e[0] for e in events[since + 1 :] if e[0] != "begin" or e[4] is None}
        for fate, causes in _CAUSES.items():
            if feed.session.fate == fate and not kinds & causes:
                raise Violation(
                    f"{feed.name!r} of {feed.client} ended without cause: {feed.session.error()}"
                )

    def _refuse_late(self, name: str, feed: Feed | None, boot: int) -> None:
        if feed is not None and any(entry.boot > boot for entry in feed.entries):
            raise Violation(
                f"{name!r} of {feed.client} was answered by server {boot + 1}, which lost its state"
            )

    def _start(self, feed: Feed, states: States) -> None:
        feed.alive = {s for s in states if s is not GONE and s.seq == feed.seq}
        if not feed.alive:
            raise Violation(
                f"{feed.name!r} of {feed.client}: open gave seq {feed.seq}, "
                f"expected one of {show(states)}"
            )

    def _follow(self, feed: Feed, boots: float, past: States) -> States:
        """Apply what a feed asked for, and what servers up to that one answered."""
        alive = feed.alive
        ended: States = set()  # where an unanswered request was not done
        for entry in feed.entries[feed.followed :]:
            if entry.boot > boots:  # but an earlier one may have done it, too
                return alive | ended | self._may_reach(feed, past)
            feed.followed += 1
            after: States = set()
            for state in alive:
                assert state is not GONE
                after.update(entry.after(state))
                reached = [s for s, _ in entry.prefixes(state)]
                past.update(reached)
                if entry.outcome == UNKNOWN:
                    ended.update(reached)
            if not after:
                raise Violation(
                    f"{feed.name!r} of {feed.client}: {entry.op} {entry.xs or entry.pair}, was "
                    f"{entry.outcome}: {entry.answer} seq {entry.last}; before it: {show(alive)}"
                )
            if entry.op == "fork":
                forks = self._forked.setdefault(entry.name, set())
                forks.update(State(0, s.pair) for s in after if s is not GONE)
            if entry.outcome == DONE and entry.op != "close":
                ended.clear()
            alive = feed.alive = after
        return alive | ended


def show(states: States) -> str:
    return ", ".join("gone" if s is GONE else f"{s.seq}:{s.pair}" for s in sorted(states, key=str))
