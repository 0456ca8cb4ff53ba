"""Any schedule gives every session the outputs of its events alone, in its own order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.talk import Talk

NAMES = "abcd"
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.sampled_from(NAMES), st.integers(-8, 8)),
        st.tuples(st.just("bad"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("run"), st.sampled_from(NAMES), st.integers(0, 3)),
        st.tuples(st.just("reset"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("reopen"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("steps"), st.sets(st.sampled_from(NAMES), min_size=1), st.integers(1, 9)),
        st.tuples(st.just("round"), st.just(""), st.just(0)),
    ),
    max_size=60,
)


class Oracle:
    """A session alone: every request is done when it is sent."""

    def __init__(self) -> None:
        self.sum = np.zeros(2, np.float32)
        self.seq = 0

    def step(self, x: float) -> list[Any]:
        self.sum = self.sum / 2 + np.float32(x)
        self.seq += 1
        return [self.seq, *self.sum.tolist()]

    def run(self, xs: list[float]) -> list[Any]:
        rows = [self.step(x)[1:] for x in xs]
        return [self.seq, *[number for row in rows for number in row]]

    def reset(self) -> list[Any]:
        self.sum *= 0
        self.seq += 1
        return [self.seq]


class Run:
    """Sends a schedule, and keeps what each session must and did answer."""

    def __init__(self) -> None:
        self.talk = Talk()
        self.opened = {name: self.talk.open(name) for name in NAMES}
        self.oracles = {name: Oracle() for name in NAMES}
        self.wanted: dict[str, list[Any]] = {name: [] for name in NAMES}
        self.got: dict[str, list[Any]] = {name: [] for name in NAMES}

    def act(self, kind: str, name: Any, number: int) -> None:
        if kind == "round":
            self.take(self.talk.step())
            return
        if kind == "reopen":  # its epoch is in the reply
            self.take(self.talk.settle())
            self.opened[name] = self.talk.open(name, resume=True)
            return
        if kind == "steps":
            self.steps(sorted(name), number)
            return
        handle, epoch = self.opened[name]
        oracle, wanted = self.oracles[name], self.wanted[name]
        if kind == "step":
            fields, answer = [oracle.seq + 1, None, [number, number]], oracle.step(number)
        elif kind == "bad":
            fields, answer = [None, None, [number, float("nan")]], ["NON_FINITE"]
        elif kind == "run":
            fields, answer = [None, None, [[1, 1]] * number], oracle.run([1] * number)
        else:
            fields, answer = [None], oracle.reset()
        self.talk.send("step" if kind == "bad" else kind, name, handle, epoch, *fields)
        wanted.append(answer)

    def steps(self, names: list[str], number: int) -> None:
        handles, epochs = zip(*(self.opened[name] for name in names), strict=True)
        X = [[number, number]] * len(names)
        seqs = [self.oracles[name].seq + 1 for name in names]
        self.talk.send("steps", "".join(names), handles, epochs, seqs, None, X)
        for name in names:
            self.wanted[name].append(self.oracles[name].step(number))

    def take(self, replies: list[tuple[bytes, list[Any]]]) -> None:
        for _, (status, ident, *values) in replies:
            if status == "error":
                self.got[ident].append([values[0]])
            elif isinstance(values[0], bytes):  # a bulk
                Y = np.frombuffer(values[1], "<f4").reshape(-1, 2)
                for name, seq, y in zip(ident, np.frombuffer(values[0], "<i8"), Y, strict=True):
                    self.got[name].append([int(seq), *y.tolist()])
            else:
                numbers = [np.frombuffer(v, "<f4").tolist() for v in values[1:]]
                self.got[ident].append([values[0], *[n for row in numbers for n in row]])


@pytest.mark.untraced
@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_schedules(actions: list[tuple[str, Any, int]]) -> None:
    run = Run()
    for action in actions:
        run.act(*action)
    run.take(run.talk.settle())
    assert run.got == run.wanted
    stats = run.talk.protocol.stats(0)
    assert stats["messages"] == stats["replies"]
    assert run.talk.protocol.pending == 0
    peers = run.talk.protocol.connections
    assert [(p.pending, p.pending_bytes, p.sessions) for p in peers] == [(0, 0, 4)]
