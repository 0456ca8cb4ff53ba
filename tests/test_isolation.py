"""100,000 sessions: none sees another's numbers, even where those are NaN."""

from __future__ import annotations

import numpy as np
import pytest

import streamlstm as sl
from networks import dense, events, lstm

SESSIONS = 100_000
EVENTS = 4  # of each session
BATCHES = (1, 2, 7, 64, 1000, 5000, 20_000)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    layers = [lstm(rng, 2, 8), dense(rng, 8, 6, "relu"), lstm(rng, 6, 4, learned_start=True)]
    return sl.Model(layers, dtype="float32")


def poison(session: sl.Session) -> None:
    """Write NaN into a session's row, which no public call does."""
    state = session.state()
    assert session.engine._write_row(
        session.row, session.epoch, np.full_like(state.numbers, np.nan)
    )


def random_batches(rng: np.random.Generator, count: int):
    """0 .. count-1 in random order, cut into batches of many sizes."""
    order = rng.permutation(count)
    while len(order):
        size = int(rng.choice(BATCHES))
        yield order[:size]
        order = order[size:]


@pytest.mark.untraced
def test_no_number_reaches_a_neighbour(model):
    """Half of the sessions hold NaN; the others answer as if they were alone."""
    rng = np.random.default_rng(1)
    x = events(model, EVENTS)
    with sl.Engine(model) as engine:
        alone = engine.open("alone").run(x)
        sessions = [engine.open(f"s{k}") for k in range(SESSIONS)]
        held = engine.state_bytes
        ill = rng.random(SESSIONS) < 0.5
        for k in np.flatnonzero(ill):
            poison(sessions[k])
        for t in range(EVENTS):
            for batch in random_batches(rng, SESSIONS):
                y = engine.step([sessions[k] for k in batch], np.tile(x[t], (len(batch), 1)))
                assert np.isnan(y[ill[batch]]).all()
                well = y[~ill[batch]]
                np.testing.assert_allclose(
                    well, np.broadcast_to(alone[t], well.shape), rtol=0, atol=1e-5
                )

        # Their rows go to new owners, who must find nothing of theirs.
        for k in np.flatnonzero(ill):
            sessions[k].close()
        reopened = [engine.open(f"again {k}") for k in range(ill.sum())]
        assert engine.state_bytes <= held
        y = engine.group(reopened).run(np.broadcast_to(x, (len(reopened), *x.shape)))
        np.testing.assert_allclose(y, np.broadcast_to(alone, y.shape), rtol=0, atol=1e-5)

        for k in rng.permutation(len(reopened)):
            reopened[k].close()
        for k in rng.permutation(SESSIONS):
            sessions[k].close()
        assert engine.names == ["alone"]
        assert engine.state_bytes <= 2 << 20 < held  # the slab of the one that is left, and a spare


def test_a_poisoned_session_recovers_by_reset_and_restore(model):
    with sl.Engine(model) as engine:
        session, twin = engine.open("a"), engine.open("b")
        for recover in (session.reset, lambda: session.restore(twin.state())):
            poison(session)
            recover()
            np.testing.assert_array_equal(session.state().numbers, twin.state().numbers)
