"""States brought from other runtimes and taken out again."""

from __future__ import annotations

import numpy as np
import pytest

import streamlstm as sl
from heads import FLOW, headed
from networks import dense, gru, lstm, stacked
from streamlstm import Head
from streamlstm.errors import DtypeError, NonFiniteError, ShapeError, StateMismatchError

RNG = np.random.default_rng(5)


@pytest.fixture
def engine():
    with sl.Engine(stacked(3, 8, layers=2, outputs=1)) as opened:
        yield opened


def moved(engine, steps=5):
    """A session that is not where it began, and the h and c of another runtime for it."""
    session = engine.open("moved")
    session.run(RNG.standard_normal((steps, 3)))
    state = session.state()
    return session, *(np.stack([get(k) for k in (0, 1)]) for get in (state.h, state.c))


@pytest.mark.parametrize(
    "shaped",
    [
        lambda a: a,
        lambda a: a[:, None],  # PyTorch: [layers, batch, H]
        lambda a: a[None],  # batch first
        lambda a: list(a[:, None, None]),  # ONNX: an array [directions, batch, H] a layer
        tuple,
        lambda a: a.tolist(),
    ],
)
def test_h_and_c_of_another_runtime(engine, shaped):
    session, h, c = moved(engine)
    x = RNG.standard_normal((4, 3))
    other = engine.open("other")
    other.restore(h=shaped(h), c=shaped(c), seq=5)
    assert other.seq == session.seq == 5
    assert other.run(x).tobytes() == session.run(x).tobytes()
    assert other.state().numbers.tobytes() == session.state().numbers.tobytes()
    again = engine.open("again")
    again.restore(sl.State.of(engine.model, h=shaped(h), c=shaped(c), seq=5))
    assert again.seq == 1  # a change like an event
    again.run(x)
    assert again.state().numbers.tobytes() == other.state().numbers.tobytes()


@pytest.mark.blas
def test_layers_of_different_kinds_and_sizes():
    layers = [lstm(RNG, 2, 4), gru(RNG, 4, 5), dense(RNG, 5, 4), lstm(RNG, 4, 3)]
    with sl.Engine(sl.Model(layers)) as engine:
        session = engine.open("a")
        session.run(RNG.standard_normal((5, 2)))
        state = session.state()
        h = [state.h(k) for k in range(3)]
        c = [state.c(0), state.c(2)]  # a GRU has none
        other = engine.open("b")
        other.restore(h=h, c=c)
        assert other.state().numbers.tobytes() == state.numbers.tobytes()
        with pytest.raises(ShapeError, match=r"c of one session is vectors of \[4, 3\]"):
            other.restore(h=h, c=[*c, c[0]])


@pytest.mark.parametrize(
    ("h", "c", "sentence"),
    [
        (np.zeros((2, 8)), None, r"c of one session is \[2, 8\], got shape none"),
        (np.zeros((2, 7)), np.zeros((2, 8)), r"h of one session is \[2, 8\], got shape \(2, 7\)"),
        (np.zeros((2, 3, 8)), np.zeros((2, 3, 8)), r"got shape \(2, 3, 8\)"),
        (np.zeros((8, 2)), np.zeros((8, 2)), r"got shape \(8, 2\)"),
        (np.zeros(16), np.zeros(16), r"got shape \(16,\)"),
        ([[0.0] * 8, [None] * 8], np.zeros((2, 8)), "arrays of real ones, got list of object"),
        (np.zeros((2, 8), complex), np.zeros((2, 8)), "got ndarray of complex128"),
        ("state", np.zeros((2, 8)), "arrays of real ones, got str of <U5"),
        ([[[0.0], [0.0, 1.0]]], np.zeros((2, 8)), "a state's list is no array"),
    ],
)
def test_what_does_not_fit_changes_nothing(engine, h, c, sentence):
    session, *_ = moved(engine)
    before = session.state()
    with pytest.raises((ShapeError, DtypeError), match=sentence):
        session.restore(h=h, c=c)
    assert (session.seq, session.state().numbers.tobytes()) == (5, before.numbers.tobytes())


def test_what_others_keep_them_in(engine):
    session, h, c = moved(engine)

    class Tensor(np.ndarray):  # PyTorch's: no array as long as it has its graph
        def detach(self):
            return np.asarray(self)

    kept = session.state().numbers.tobytes()
    for as_kept in (np.ndarray.tolist, lambda a: [*a], lambda a: a[:, None].view(Tensor)):
        session.reset()
        session.restore(h=as_kept(h), c=as_kept(c), seq=np.int64(41))
        assert (session.seq, session.state().numbers.tobytes()) == (41, kept)
    with sl.Engine(stacked(1, 4)) as other:
        one = other.open("a")
        one.restore(h=[0.1, 0.2, 0.3, 0.4], c=(1, 2, 3, 4), seq=2**62)
        np.testing.assert_array_equal(one.state().c(0), [1, 2, 3, 4])
        one.step([1.0])
        assert one.seq == 2**62 + 1


def test_what_is_taken_out_goes_in_again():
    rng = np.random.default_rng(2)
    layers = [lstm(rng, 2, 4), gru(rng, 4, 3), lstm(rng, 3, 5), dense(rng, 5, 1)]
    with sl.Engine(sl.Model(layers)) as engine:
        session, again = engine.open("a"), engine.open("b")
        session.run(RNG.standard_normal((6, 2)))
        state = session.state()
        h, c = ([get(k) for k in range(3)] for get in (state.h, state.c))
        again.restore(h=h, c=c, seq=state.seq)
        assert again.seq == 6
        assert again.step([1, 2]).tobytes() == session.step([1, 2]).tobytes()
        with pytest.raises(ShapeError, match="c of one session"):
            again.restore(h=h, c=[c[0], c[1]])
        with pytest.raises(ShapeError, match="h of one session"):
            again.restore(h=[h[0], [], h[2]], c=c)


def test_other_refusals(engine):
    session, h, c = moved(engine)
    for wrong in (np.nan, np.inf, 1e16):
        with pytest.raises(NonFiniteError):
            session.restore(h=np.where(h == h[0, 0], wrong, h), c=c)
    for arguments in ({}, {"c": c}, {"seq": 3}):
        with pytest.raises(StateMismatchError, match=r"takes a State, or h= .*; got no h"):
            session.restore(**arguments)
    for arguments in ({"h": h}, {"seq": 3}):
        with pytest.raises(StateMismatchError, match="leave h=, c= and seq= out"):
            session.restore(session.state(), **arguments)
    for seq in (-1, 2**62 + 1, 1.0, "1"):
        with pytest.raises(StateMismatchError, match=f"seq is {seq}; expected the number"):
            session.restore(h=h, c=c, seq=seq)
    with (
        sl.Engine(headed(Head(FLOW))) as headed_engine,
        pytest.raises(StateMismatchError, match="remembers more than h and c"),
    ):
        headed_engine.open("a").restore(h=np.zeros((1, 12)), c=np.zeros((1, 12)))
    assert session.seq == 5


def test_it_is_shown_in_a_line(engine):
    state = moved(engine)[0].state()
    assert (
        repr(state)
        == f"<State of model {engine.model.fingerprint[:12]} at seq 5: 8+8, 8+8 numbers>"
    )
