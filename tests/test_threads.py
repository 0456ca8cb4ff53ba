"""Threads: any number of them on one engine give what one alone would have given."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import streamlstm as sl
from networks import events, stacked
from streamlstm import errors

THREADS = 4
MODEL = stacked(inputs=3, units=24, layers=2, outputs=2)
# One run() of these is work enough to release the GIL, and to enter the BLAS limit.
LONG = events(MODEL, 3000)


@pytest.fixture
def engine():
    with sl.Engine(MODEL) as engine:
        yield engine


def together(*calls: Callable[[], object]) -> list[object]:
    """Run the calls in threads that start at the same moment; raise what they raised."""
    gate = threading.Barrier(len(calls))

    def start(call: Callable[[], object]) -> object:
        gate.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result() for f in [pool.submit(start, call) for call in calls]]


def in_pieces(session: sl.Session, x: np.ndarray, sizes: Iterable[int]) -> np.ndarray:
    """x in runs and steps of changing size."""
    parts, t = [], 0
    for size in sizes:
        part = x[t : t + size]
        parts.append(session.run(part) if size > 1 else session.step(part[0])[None])
        t += size
    return np.concatenate(parts)


def test_each_thread_its_own_session(engine):
    """While others open, fork, take over and close sessions around them."""
    sizes = [1, 1, 500, 1, 7, 1, 1489, 1, 999]
    alone = engine.open("alone").run(LONG)
    going = threading.Event()
    going.set()

    def churn(k: int) -> int:
        rounds = 0
        while going.is_set() or rounds < 20:
            opened = [engine.open(f"churn {k} {j}") for j in range(50)]
            opened.append(opened[0].fork(f"fork {k}"))
            engine.step(opened, LONG[: len(opened)])
            opened[0] = opened[0].take_over()
            for session in opened:
                session.close()
            rounds += 1
        return rounds

    def work() -> list[np.ndarray]:
        try:
            return together(
                *(lambda k=k: in_pieces(engine.open(f"s{k}"), LONG, sizes) for k in range(THREADS))
            )
        finally:
            going.clear()

    answers, *_ = together(work, lambda: churn(0), lambda: churn(1))
    for y in answers:
        np.testing.assert_allclose(y, alone, rtol=0, atol=1e-5)
    assert sorted(engine.names) == ["alone", *(f"s{k}" for k in range(THREADS))]


def test_all_threads_one_session(engine):
    """Every event is applied once, whole, whoever brings it."""
    session, twin = engine.open("shared"), engine.open("twin")
    x = np.ascontiguousarray(np.broadcast_to(LONG[0], (64, 3)))
    each = [1, 64, 1, 2, 33, 1] * 20

    def bring() -> None:
        for size in each:
            session.run(x[:size]) if size > 1 else session.step(x[0])

    together(*[bring] * THREADS)
    count = THREADS * sum(each)
    assert session.seq == count
    twin.run(np.broadcast_to(x[0], (count, 3)))
    np.testing.assert_allclose(session.state().numbers, twin.state().numbers, rtol=0, atol=1e-5)


def test_groups_that_share_sessions(engine):
    sessions = [engine.open(f"s{k}") for k in range(32)]
    x = np.ascontiguousarray(np.broadcast_to(LONG[0], (32, 3)))

    def bring(offset: int) -> None:
        group = engine.group(sessions[offset:] + sessions[:offset])
        for _ in range(50):
            group.step(x)
            engine.step(sessions[:8], x[:8])

    together(*(lambda k=k: bring(7 * k) for k in range(THREADS)))
    assert [s.seq for s in sessions] == [100 * THREADS] * 8 + [50 * THREADS] * 24
    for many in (sessions[:8], sessions[8:]):
        for session in many[1:]:
            np.testing.assert_allclose(
                session.state().numbers, many[0].state().numbers, rtol=0, atol=1e-5
            )


def test_one_opener_wins_a_name(engine):
    def attempt() -> bool:
        try:
            engine.open("wanted")
        except errors.SessionExistsError:
            return False
        return True

    for _ in range(50):
        assert sum(together(*[attempt] * THREADS)) == 1
        engine["wanted"].close()


def test_one_taker_wins_a_session(engine):
    """The others find themselves fenced, and the state goes to one of them alone."""
    for _ in range(50):
        session = engine.open("wanted")

        def attempt(session=session) -> sl.Session | None:
            try:
                return session.take_over()
            except errors.SessionFencedError:
                return None

        winners = [s for s in together(*[attempt] * THREADS) if s is not None]
        assert winners == [engine["wanted"]]
        winners[0].close()


def test_closing_the_engine_under_work():
    """Work under way ends; what comes later is refused; nothing crashes or hangs."""
    for _ in range(20):
        engine = sl.Engine(MODEL)
        sessions = [engine.open(f"s{k}") for k in range(THREADS)]
        working = threading.Barrier(THREADS + 1)

        def work(session: sl.Session, working=working) -> None:
            def endless() -> None:
                while True:
                    session.run(LONG[:200])

            working.wait()
            with pytest.raises(errors.EngineClosedError):
                endless()
            session.close()

        together(
            *(lambda s=s: work(s) for s in sessions),
            lambda engine=engine, working=working: (working.wait(), engine.close()),
        )


@pytest.fixture
def no_forced_switches():
    """Threads give up the GIL only by their own will."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("no_forced_switches")
@pytest.mark.parametrize("way", ["session.run", "group.step", "engine.step"])
def test_long_work_releases_the_gil(way, engine):
    """The other thread can run only where the stepping one lets go of the GIL: in the call."""
    sessions = [engine.open(f"s{k}") for k in range(100)]
    group = engine.group(sessions)
    call = {
        "session.run": lambda: sessions[0].run(LONG[:100]),
        "group.step": lambda: group.step(LONG[:100]),
        "engine.step": lambda: engine.step(sessions, LONG[:100]),
    }[way]
    go, ran = threading.Lock(), []
    go.acquire()

    def other() -> None:
        with go:
            ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    go.release()
    calls = 0
    while not ran and calls < 20_000:
        call()
        calls += 1
    seen = bool(ran)
    thread.join()
    assert seen


def test_code_that_runs_within_open_may_close_sessions(engine):
    """A finalizer or a signal handler may run anywhere, in the thread that holds the locks."""
    others = [engine.open(f"s{k}") for k in range(100)]
    interrupted = []

    def interrupt(frame, event, called) -> None:
        if frame.f_code is sl.Engine._create.__code__ and event == "c_call":
            interrupted.append(called.__name__)
            others.pop().close()

    sys.setprofile(interrupt)
    try:
        session = engine.open("a")
    finally:
        sys.setprofile(None)
    assert "__exit__" in interrupted  # of the lock, still held
    assert [s.name for s in engine] == [*(s.name for s in others), "a"]
    session.step(LONG[0])
