"""How things look in a shell: one line each, public names only, and no copies that can't work."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import streamlstm as sl
from networks import dense, gru, lstm, stacked
from streamlstm.errors import EngineError, ServiceError, SessionError

RNG = np.random.default_rng(0)


@pytest.fixture
def engine():
    with sl.Engine(stacked(2, 4, outputs=1)) as opened:
        yield opened


def test_what_is_shown_is_one_line(engine):
    a, b = engine.open("a"), engine.open("b")
    plain = lstm(RNG, 2, 4)
    peephole = sl.LSTM(plain.w_x[:12], plain.w_h[:12], plain.b[:12], peep=plain.b[:8], coupled="f")
    shown = [
        (engine, "<Engine 'model': 2 sessions>"),
        (a, "<Session 'a': seq 0>"),
        (engine.group([a, b]), "<Group of 2 sessions of <Engine 'model': 2 sessions>>"),
        (engine.group([a]), "<Group of 1 session of <Engine 'model': 2 sessions>>"),
        (engine.model, "<Model 'model': 2 inputs, lstm 4, dense 1; float32>"),
        (lstm(RNG, 2, 4), "<LSTM 2 -> 4>"),
        (peephole, "<LSTM 2 -> 4, peep, coupled='f'>"),
        (gru(RNG, 2, 4, reset_after=False), "<GRU 2 -> 4, h0, reset_after=False>"),
        (dense(RNG, 4, 1), "<Dense 4 -> 1, activation='linear'>"),
        (sl.Activation("relu", 3), "<Activation 3 -> 3, function='relu', size=3>"),
        (sl.Embedding(np.zeros((9, 2))), "<Embedding 1 -> 2>"),
    ]
    assert [repr(thing) for thing, _ in shown] == [line for _, line in shown]
    assert len(repr(sl.Feature("flow", "l/s"))) < 80
    engine.close()
    assert repr(engine) == "<Engine 'model': closed>"


def test_dir_shows_public_names_that_are_there(engine):
    a = engine.open("a")
    for thing in (engine, a, engine.group([a])):
        names = dir(thing)
        assert names
        for name in names:
            assert not name.startswith("_")
            getattr(thing, name)
    assert "step" in dir(a)
    assert "adopt" not in dir(engine)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_live_things_are_not_copied(engine, make):
    a = engine.open("a")
    for thing, error, way_out in (
        (a, SessionError, r"fork\(name\)"),
        (engine.group([a]), SessionError, r"engine\.group"),
        (engine, EngineError, r"engine\.save\(directory\)"),
    ):
        with pytest.raises(error, match=way_out):
            make(thing)
    assert a.step([1, 2]).shape == (1,)


def test_a_model_is(engine):
    for other in (copy.deepcopy(engine.model), pickle.loads(pickle.dumps(engine.model))):
        with pytest.raises(ValueError, match="read-only"):
            other.layers[0].w_x[0] = 1
        assert other.fingerprint == engine.model.fingerprint
        with sl.Engine(other) as engine2:
            y = engine2.open("a").step([1, 2])
        assert (
            y.tobytes()
            == engine.open(
                "a",
            )
            .step([1, 2])
            .tobytes()
        )
        engine["a"].close()


def test_nor_are_clients():
    client = object.__new__(sl.Client)
    with pytest.raises(ServiceError, match="connect another one"):
        copy.copy(client)


@pytest.mark.blas
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_into_an_array(dtype):
    with sl.Engine(stacked(2, 4, outputs=1, dtype=dtype)) as engine:
        X = RNG.standard_normal((6, 2)).astype(dtype)
        out = np.zeros((6, 1), dtype)
        a, b = engine.open("a"), engine.open("b")
        assert a.run(X, out=out) is out
        np.testing.assert_array_equal(out, b.run(X))
        many = np.zeros((2, 6, 1), dtype)
        fleet = engine.group([a, b])
        assert fleet.run(np.stack([X, X]), out=many) is many
        # BLAS may sum the rows of one product in different orders.
        np.testing.assert_allclose(many[0], many[1], rtol=0, atol=0 if engine.same_bits else 1e-12)
        for wrong, error in (
            (np.zeros((5, 1), dtype), sl.errors.ShapeError),
            (np.zeros((6, 1), "int32"), sl.errors.DtypeError),
            (np.zeros((6, 2), dtype)[:, :1], sl.errors.DtypeError),
            (X[:, 1:], sl.errors.InputError),
            ([0] * 6, sl.errors.DtypeError),
        ):
            with pytest.raises(error):
                a.run(X, out=wrong)
        both = np.zeros((6, 3), dtype)
        with pytest.raises(sl.InputError):
            a.run(np.ascontiguousarray(both[:, :2]), out=both[:, 2:])
        assert a.seq == b.seq == 12
