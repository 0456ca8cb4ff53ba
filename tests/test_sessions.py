"""Sessions against a plain-Python model of them, in any order of calls hypothesis finds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import streamlstm as sl
from networks import events, lstm
from streamlstm import errors, kernels, reference

pytestmark = pytest.mark.blas
rng = np.random.default_rng(0)
MODEL = sl.Model([lstm(rng, 2, 3, learned_start=True), lstm(rng, 3, 2)], dtype="float64")
CAPACITY = 6
X = events(MODEL, 64)
NAMES = st.sampled_from([f"s{k}" for k in range(CAPACITY + 2)])
EVENTS = st.integers(0, len(X) - 1)


class Twin:
    """What a session should be: its states and counters, in the reference's numbers."""

    def __init__(self) -> None:
        self.states = reference.initial_states(MODEL)
        self.seq = 0

    def step(self, x):
        y, self.states = reference.step(MODEL, self.states, x)
        self.seq += 1
        return y


class Sessions(RuleBasedStateMachine):
    handles = Bundle("handles")  # whether still good or not
    saved = Bundle("saved")

    def __init__(self) -> None:
        super().__init__()
        self.engine = sl.Engine(MODEL, max_sessions=CAPACITY)
        self.twins: dict[str, Twin] = {}
        self.owner: dict[str, sl.Session] = {}
        self.closed: set[sl.Session] = set()  # by their own handle

    def teardown(self) -> None:
        self.engine.close()

    def owns(self, handle: sl.Session) -> bool:
        return self.owner.get(handle.name) is handle

    def attempt(self, handle: sl.Session, call, *args):
        """The call's result; None, and the right error, where the handle lost its session."""
        if self.owns(handle):
            assert not handle.closed
            return call(*args)
        fenced = handle.name in self.owner and handle not in self.closed
        kind = errors.SessionFencedError if fenced else errors.SessionClosedError
        assert handle.closed
        with pytest.raises(kind):
            call(*args)
        return None

    @rule(target=handles, name=NAMES)
    def open(self, name):
        if name in self.owner:
            with pytest.raises(errors.SessionExistsError):
                self.engine.open(name)
            return self.owner[name]
        if len(self.owner) == CAPACITY:
            with pytest.raises(errors.CapacityError):
                self.engine.open(name)
            return next(iter(self.owner.values()))
        self.owner[name] = self.engine.open(name)
        self.twins[name] = Twin()
        return self.owner[name]

    @rule(handle=handles, event=EVENTS, way=st.sampled_from(["step", "step_into", "mapping"]))
    def step(self, handle, event, way):
        y = np.empty(MODEL.output_size)
        if way == "step_into":
            self.attempt(handle, handle.step_into, X[event], y)
        elif way == "mapping":
            y = self.attempt(handle, handle.step, {"x1": X[event, 1], "x0": X[event, 0]})
        else:
            y = self.attempt(handle, handle.step, X[event].tolist())
        if self.owns(handle):
            np.testing.assert_allclose(y, self.twins[handle.name].step(X[event]), atol=1e-11)

    @rule(handle=handles, start=EVENTS, count=st.integers(0, 9))
    def run(self, handle, start, count):
        x = X[start : start + count]
        y = self.attempt(handle, handle.run, x)
        if self.owns(handle):
            twin = self.twins[handle.name]
            expected = np.array([twin.step(event) for event in x]).reshape(-1, MODEL.output_size)
            np.testing.assert_allclose(y, expected, atol=1e-11)

    @rule(
        names=st.lists(NAMES, unique=True),
        event=EVENTS,
        way=st.sampled_from(["engine", "group", "rows"]),
    )
    def step_many(self, names, event, way):
        sessions = [self.owner[name] for name in names if name in self.owner]
        x = np.stack([X[(event + k) % len(X)] for k in range(len(sessions))] or [X[0]])
        x = x[: len(sessions)]
        if way == "engine":
            y = self.engine.step(sessions, x)
        elif way == "group":
            y = self.engine.group(sessions).step(x)
        else:
            group = self.engine.group_by_row(
                np.array([s.row for s in sessions], np.uint32),
                np.array([s.epoch for s in sessions], np.uint32),
            )
            y = group.step(x)
            assert group.seqs.tolist() == [s.seq for s in sessions]
        expected = [self.twins[s.name].step(e) for s, e in zip(sessions, x, strict=True)]
        np.testing.assert_allclose(y, np.array(expected).reshape(y.shape), atol=1e-11)

    @rule(handle=handles)
    def reset(self, handle):
        self.attempt(handle, handle.reset)
        if self.owns(handle):
            self.twins[handle.name].states = reference.initial_states(MODEL)
            self.twins[handle.name].seq += 1

    @rule(target=saved, handle=handles)
    def save(self, handle):
        state = self.attempt(handle, handle.state)
        if state is None:
            return None, None
        packed = sl.State.from_bytes(state.to_bytes())
        assert packed.seq == handle.seq
        return packed, self.twins[handle.name].states

    @rule(handle=handles, saved=saved)
    def restore(self, handle, saved):
        state, states = saved
        if state is not None:
            self.attempt(handle, handle.restore, state)
            if self.owns(handle):
                self.twins[handle.name].states = states
                self.twins[handle.name].seq += 1

    @rule(target=handles, handle=handles, name=NAMES)
    def fork(self, handle, name):
        if self.owns(handle) and (name in self.owner or len(self.owner) == CAPACITY):
            kind = errors.SessionExistsError if name in self.owner else errors.CapacityError
            with pytest.raises(kind):
                handle.fork(name)
            return handle
        twin = self.attempt(handle, handle.fork, name)
        if twin is None:
            return handle
        self.owner[name] = twin
        self.twins[name] = Twin()
        self.twins[name].states = self.twins[handle.name].states
        return twin

    @rule(target=handles, handle=handles, name=NAMES)
    def adopt(self, handle, name):
        """Go on elsewhere from the numbers of a group, with the seq it had."""
        if not self.owns(handle) or name in self.owner or len(self.owner) == CAPACITY:
            return handle
        twin = self.twins[handle.name]
        numbers = self.engine.group([handle]).numbers()
        new = self.engine.adopt(name, numbers[0], handle.seq)
        numbers[...] = -7
        self.owner[name] = new
        self.twins[name] = Twin()
        self.twins[name].states, self.twins[name].seq = twin.states, twin.seq
        return new

    @rule(target=handles, handle=handles)
    def take_over(self, handle):
        new = self.attempt(handle, handle.take_over)
        if new is None:
            return handle
        assert (new.row, new.epoch) == (handle.row, handle.epoch + 1)
        self.owner[handle.name] = new
        assert handle.closed
        return new

    @rule(handle=consumes(handles))
    def close(self, handle):
        owned = self.owns(handle)
        handle.close()
        handle.close()
        if owned:
            del self.owner[handle.name], self.twins[handle.name]
            self.closed.add(handle)
        assert handle.closed

    @invariant()
    def same_sessions(self):
        assert self.engine.names == list(self.owner)
        assert len(self.engine) == self.engine.arena.live == len(self.owner)
        assert len({s.row for s in self.owner.values()}) == len(self.owner)
        for name, session in self.owner.items():
            assert name in self.engine
            assert self.engine[name] is session
            assert session.seq == self.twins[name].seq

    @invariant()
    def same_states(self):
        for name, session in self.owner.items():
            state = session.state()
            for layer, (h, c) in enumerate(self.twins[name].states):
                np.testing.assert_allclose(state.h(layer), h, atol=1e-11)
                np.testing.assert_allclose(state.c(layer), c, atol=1e-11)


TestSessions = Sessions.TestCase
TestSessions.pytestmark = [pytest.mark.untraced]
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def engine():
    with sl.Engine(MODEL) as engine:
        yield engine


def test_a_reused_row_starts_afresh(engine):
    first = engine.open("first")
    fresh = first.state().numbers
    first.run(X)
    row, epoch = first.row, first.epoch
    first.close()
    second = engine.open("second")
    assert second.row == row
    assert second.epoch != epoch
    assert second.seq == 0
    np.testing.assert_array_equal(second.state().numbers, fresh)
    with pytest.raises(errors.SessionUnknownError):
        engine.group_by_row([row], [epoch])


def test_nothing_handed_out_is_a_view_of_live_state(engine):
    """Whatever the caller does with what it was given, the next step is not moved by it."""
    session, witness = engine.open("a"), engine.open("b")
    sessions = [session, witness]
    group = engine.group(sessions)
    for x in X[:10]:
        y = engine.step(sessions, np.stack([x, x]))
        state = session.state()
        seqs = group.seqs
        given = [y, session.run(X[:0]), state.numbers, state.h(0), state.c(1), seqs]
        before = session.state()
        for array in given:
            array[...] = -7
        np.testing.assert_array_equal(session.state().numbers, before.numbers)
        assert session.seq == witness.seq
    np.testing.assert_allclose(session.state().numbers, witness.state().numbers, rtol=0, atol=1e-12)


def test_a_state_given_is_copied(engine):
    session = engine.open("a")
    session.run(X[:5])
    state = session.state()
    kept = state.numbers.copy()
    session.reset()
    session.restore(state)
    state.numbers[...] = -7
    np.testing.assert_array_equal(session.state().numbers, kept)


def test_events_resets_and_restores_are_numbered_in_one_row(engine):
    session = engine.open("a")
    session.run(X[:5])
    state = session.state()
    assert state.seq == 5
    session.step(X[5])
    assert session.seq == 6
    session.restore(state)
    assert session.seq == engine.group([session]).seqs[0] == 7
    session.reset()
    assert session.seq == 8
    with pytest.raises(errors.NonFiniteError):
        session.step(X[0] * np.nan)
    with pytest.raises(errors.StateMismatchError):
        session.restore("state")
    session.run(X[:0])
    assert session.seq == 8
    assert session.fork("b").seq == 0
    assert session.take_over().seq == 8


def test_numbers_of_a_group_are_its_states(engine):
    sessions = [engine.open(name) for name in "abc"]
    for k, session in enumerate(sessions):
        session.run(X[: k + 1])
    group = engine.group([sessions[2], sessions[0]])
    numbers = group.numbers()
    assert (numbers.shape, numbers.dtype) == ((2, MODEL.state_size), MODEL.dtype)
    np.testing.assert_array_equal(numbers, [sessions[k].state().numbers for k in (2, 0)])
    assert engine.group([]).numbers().shape == (0, MODEL.state_size)
    sessions[0].close()
    with pytest.raises(errors.SessionError):
        group.numbers()


def test_an_adopted_session_goes_on_bit_for_bit(engine):
    session = engine.open("a")
    session.run(X[:5])
    (numbers,) = engine.group([session]).numbers()
    numbers.flags.writeable = False
    with sl.Engine(MODEL) as other:
        adopted = other.adopt("b", numbers, 5)
        assert adopted.seq == 5
        np.testing.assert_array_equal(adopted.run(X[5:]), session.run(X[5:]))
        assert adopted.seq == session.seq == len(X)
        fresh = other.adopt("c", None, 9)  # as opened, but for its seq
        assert fresh.seq == 9
        np.testing.assert_array_equal(fresh.step(X[0]), other.open("d").step(X[0]))


def test_what_cannot_be_adopted_leaves_nothing(engine):
    numbers = engine.open("a").state().numbers
    with pytest.raises(errors.SessionExistsError):
        engine.adopt("a", numbers, 1)
    with pytest.raises(errors.ShapeError):
        engine.adopt("b", numbers[:-1], 1)
    with pytest.raises(errors.DtypeError):
        engine.adopt("b", numbers.astype("f4"), 1)
    assert engine.names == ["a"]
    assert len(engine) == engine.arena.live == 1
    for k in range(1, CAPACITY):
        engine.open(f"s{k}")
    with sl.Engine(MODEL, max_sessions=1) as small:
        small.adopt("a", numbers, 1)
        with pytest.raises(errors.CapacityError):
            small.adopt("b", numbers, 1)


@pytest.mark.parametrize(("dtype", "kernel"), [("float32", "blas"), ("float64", "")])
def test_blas_has_not_the_same_bits(dtype, kernel, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, kernel)
    with sl.Engine(sl.Model([lstm(rng, 2, 3)], dtype=dtype)) as engine:
        assert not engine.same_bits


def test_fused_kernels_have_the_same_bits(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "portable")
    with sl.Engine(sl.Model([lstm(rng, 2, 3)], dtype="float32")) as engine:
        assert engine.same_bits


def test_events_by_name_in_any_order_and_shape(engine):
    """{"x0": [...], "x1": [...]} is a sequence to run() and a batch to step()."""
    session, twin = engine.open("a"), engine.open("b")
    by_name: Mapping[str, object] = {"x1": X[:, 1], "x0": X[:, 0].tolist()}
    np.testing.assert_array_equal(session.run(by_name), twin.run(X))
    two = {"x0": [1, 2], "x1": [3, 4]}
    session.reset()
    twin.reset()
    y = engine.step([session, twin], two)
    session.reset()
    np.testing.assert_allclose(session.step({"x0": 1, "x1": 3}), y[0], atol=1e-12)


@pytest.mark.parametrize("kind", ["i1", "u2", "i8", "f2", "f4", ">f4", "f8", "g"])
def test_events_of_any_real_dtype_and_layout(kind, engine):
    x = np.arange(8).reshape(4, 2).astype(kind)
    session, twin = engine.open("a"), engine.open("b")
    expected = twin.run(np.arange(8.0).reshape(4, 2))
    np.testing.assert_array_equal(session.run(x), expected)
    session.reset()
    np.testing.assert_array_equal(session.run(np.asfortranarray(x)), expected)
    session.reset()
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(session.run(np.repeat(frozen, 2, axis=0)[::2]), expected)


def test_a_name_may_be_any_string(engine):
    for name in (np.str_("numpy's"), "\N{SNOWMAN}", "with spaces", "\x00"):
        session = engine.open(name)
        assert type(session.name) is str
        assert engine[name] is session
    assert len(engine) == engine.arena.live == 4


def test_one_input_takes_a_bare_number():
    model = sl.Model([lstm(rng, 1, 1)], dtype="float32")
    with sl.Engine(model) as engine:
        assert engine.open("a").step(0.5) == engine.open("b").step([0.5])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"not a state",
        b"\x96" + b"\x01" * 6,
        b"\x91" * 2000,
        lambda whole: whole[:-1],
        lambda whole: whole + b"\x00",
        lambda whole: whole.replace(b"<f8", b"|O8"),
        lambda whole: whole.replace(b"<f8", b"<f4"),
        lambda whole: b"\x96\x02" + whole[2:],
    ],
)
def test_bytes_that_are_no_state(data, engine):
    if callable(data):
        data = data(engine.open("a").state().to_bytes())
    with pytest.raises(errors.StateMismatchError, match="these bytes are not a saved state"):
        sl.State.from_bytes(data)


def test_growing_moves_no_live_session(engine):
    """Thousands of sessions opened around a few that are being stepped."""
    session, twin = engine.open("a"), Twin()
    opened = []
    for k in range(12):
        np.testing.assert_allclose(session.step(X[k]), twin.step(X[k]), atol=1e-11)
        opened += [engine.open(f"{k}-{j}") for j in range(3000)]
    held = engine.state_bytes
    assert held >= len(engine) * MODEL.state_size * 8
    for other in opened:
        other.close()
    assert engine.state_bytes < held
    np.testing.assert_allclose(session.step(X[0]), twin.step(X[0]), atol=1e-11)
