"""Every refusal of the embedded API: its class, its sentence, and that no state changed."""

from __future__ import annotations

import re

import numpy as np
import pytest

import streamlstm as sl
from networks import events, lstm, stacked
from streamlstm import errors

MODEL = sl.Model(
    stacked(inputs=3, units=8, outputs=2).layers,
    inputs=["flow", sl.Feature("level", "m", 2.0, 0.5), {"name": "rain"}],
    name="pump",
)
X = events(MODEL, 4)
STEPPED = 3  # events that `session` has seen before a test


@pytest.fixture
def engine():
    with sl.Engine(MODEL, max_sessions=8) as engine:
        yield engine


@pytest.fixture
def session(engine):
    session = engine.open("pump-17")
    session.run(X[:STEPPED])
    return session


@pytest.fixture
def refused(engine, session):
    """Asserts that a call raises just this class (and sentence) and changes nothing."""

    def check(kind, sentence, call, *args, **kwargs):
        before, names, held = session.state(), engine.names, engine.state_bytes
        with pytest.raises(kind, match=sentence and re.escape(sentence)) as caught:
            call(*args, **kwargs)
        assert caught.type is kind
        after = session.state()
        np.testing.assert_array_equal(after.numbers, before.numbers)
        assert (after.seq, engine.names, engine.state_bytes) == (before.seq, names, held)

    return check


NAN, INF = float("nan"), float("inf")
BAD_EVENTS = {
    "too few inputs": ([1.0, 2.0], errors.ShapeError, "events have shape (2,)"),
    "too many inputs": (np.zeros(4), errors.ShapeError, "with 3 inputs: flow, level, rain"),
    "one number": (1.0, errors.ShapeError, "events have shape ()"),
    "a matrix": (np.zeros((1, 3)), errors.ShapeError, "events have shape (1, 3)"),
    "nothing": ([], errors.ShapeError, "events have shape (0,)"),
    "ragged": ([[1.0], [2.0, 3.0], 4.0], errors.ShapeError, "rows differ in length"),
    "text": (["1", "2", "3"], errors.DtypeError, "must be real numbers; got dtype <U1"),
    "None": (None, errors.DtypeError, "got dtype object"),
    "None inside": ([1.0, None, 2.0], errors.DtypeError, "got dtype object"),
    "complex": (np.zeros(3, complex), errors.DtypeError, "got dtype complex128"),
    "booleans": (np.zeros(3, bool), errors.DtypeError, "got dtype bool"),
    "dates": (np.zeros(3, "M8[s]"), errors.DtypeError, "got dtype datetime64[s]"),
    "huge integers": ([2**70, 0, 0], errors.DtypeError, "got dtype object"),
    "NaN": ([1.0, NAN, 2.0], errors.NonFiniteError, "input[1] is nan"),
    "NaN, float32": (np.float32([0, 0, NAN]), errors.NonFiniteError, "input[2] is nan"),
    "infinity": ([INF, 0.0, 0.0], errors.NonFiniteError, "input[0] is inf"),
    "minus infinity": (np.float32([0, -INF, 0]), errors.NonFiniteError, "input[1] is -inf"),
    "beyond float32": ([0.0, 0.0, 1e300], errors.NonFiniteError, "input[2] is inf"),
    "the largest float32": (
        np.float32([0, 0, np.finfo("f4").max]),
        errors.NonFiniteError,
        "input[2] is 3.4028234663852886e+38; an event must be finite, and within",
    ),
    "a missing name": ({"flow": 1, "level": 2}, errors.MissingInputError, "lacks rain"),
    "an unknown name": (
        {"flow": 1, "level": 2, "rain": 3, "snow": 4},
        errors.MissingInputError,
        "unknown snow; the model's inputs are flow, level, rain",
    ),
    "uneven names": (
        {"flow": [1, 2], "level": 2, "rain": 3},
        errors.ShapeError,
        "flow (2,), level (), rain ()",
    ),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_bad_events(case, session, refused):
    event, kind, sentence = BAD_EVENTS[case]
    refused(kind, sentence, session.step, event)


@pytest.mark.parametrize("case", BAD_EVENTS.keys() - {"booleans"})  # NumPy makes floats of them
def test_bad_events_in_a_run(case, session, refused):
    """One bad event among good ones: none of them is applied."""
    event, kind, _ = BAD_EVENTS[case]
    if isinstance(event, dict):
        refused(kind, None, session.run, {name: [0, value] for name, value in event.items()})
    else:
        with pytest.raises(errors.InputError):
            session.run([X[0], event])
        assert session.seq == STEPPED


@pytest.mark.parametrize("shape", [(3,), (2, 2), (4, 3), (1, 2, 3), ()])
def test_wrong_shapes_of_many_events(shape, engine, session, refused):
    other = engine.open("other")
    sessions = [session, other]
    kind = errors.ShapeError
    refused(kind, None, engine.step, sessions, np.zeros(shape))
    refused(kind, None, engine.group(sessions).step, np.zeros(shape))
    if shape != (1, 2, 3):
        refused(kind, None, engine.group(sessions).run, np.zeros(shape))
    assert other.seq == 0


def test_a_count_of_events_unlike_the_sessions(engine, session, refused):
    sentence = "1 events came for 2 sessions; give one row a session, in the group's order"
    group = engine.group([session, engine.open("other")])
    refused(errors.ShapeError, sentence, group.step, X[:1])
    refused(errors.ShapeError, sentence, group.run, X[None, :1])


def test_one_bad_event_stops_a_whole_batch(engine, session, refused):
    others = [engine.open(f"s{k}") for k in range(3)]
    X[1, 2], kept = NAN, X[1, 2]
    sentence = "input[1, 2] is nan; an event must be finite"
    try:
        refused(errors.NonFiniteError, sentence, engine.step, [session, *others], X)
    finally:
        X[1, 2] = kept
    assert [other.seq for other in others] == [0, 0, 0]


def step_into_cases():
    good_x, good_out = np.zeros(3, "f4"), np.zeros(2, "f4")
    frozen = np.zeros(2, "f4")
    frozen.flags.writeable = False
    dtype, shape = errors.DtypeError, errors.ShapeError
    return {
        "a list": ([0, 0, 0], good_out, dtype, "x must be a C-contiguous float32 array; got list"),
        "float64": (np.zeros(3), good_out, dtype, "got float64"),
        "swapped bytes": (np.zeros(3, ">f4"), good_out, dtype, "got >f4"),
        "strided": (np.zeros(6, "f4")[::2], good_out, dtype, "x must be a C-contiguous"),
        "short": (np.zeros(2, "f4"), good_out, shape, "x has shape (2,); expected (3,)"),
        "NaN": (np.float32([NAN, 0, 0]), good_out, errors.NonFiniteError, "input[0] is nan"),
        "out a list": (good_x, [0, 0], dtype, "out must be a C-contiguous writable float32"),
        "out float64": (good_x, np.zeros(2), dtype, "got float64"),
        "out frozen": (good_x, frozen, dtype, "out must be a C-contiguous writable float32"),
        "out strided": (good_x, np.zeros(4, "f4")[::2], dtype, "out must be"),
        "out long": (good_x, np.zeros(3, "f4"), shape, "out has shape (3,); expected (2,)"),
        "out None": (good_x, None, dtype, "got NoneType"),
    }


@pytest.mark.parametrize("case", step_into_cases())
def test_step_into_converts_nothing(case, engine, session, refused):
    x, out, kind, sentence = step_into_cases()[case]
    refused(kind, sentence, session.step_into, x, out)
    group = engine.group([session])
    if isinstance(x, np.ndarray) and isinstance(out, np.ndarray):
        refused(kind, None, group.step_into, x[None], out[None])


def test_overlapping_out(engine, session, refused):
    """In a batch, one stream's outputs must not run over another's inputs."""
    group = engine.group([session, engine.open("other")])
    memory = np.zeros(10, "f4")
    x, out = memory[:6].reshape(2, 3), memory[5:9].reshape(2, 2)
    sentence = "out overlaps the input in memory; give an array of its own"
    refused(errors.InputError, sentence, group.step_into, x, out)
    group.step_into(x, memory[6:].reshape(2, 2))


def test_one_session_twice(engine, session, refused):
    sentence = "session pump-17 stands twice in one step (again at index 2)"
    sessions = [session, engine.open("other"), session]
    refused(errors.RepeatedSessionError, sentence, engine.step, sessions, X[:3])
    refused(errors.RepeatedSessionError, sentence, engine.group, sessions)
    rows, epochs = [s.row for s in sessions], [s.epoch for s in sessions]
    refused(
        errors.RepeatedSessionError,
        f"session of row {session.row} stands twice in one step (again at index 2)",
        engine.group_by_row,
        rows,
        epochs,
    )


def test_what_is_no_session(engine, session, refused):
    for item in (None, "pump-17", 0):
        sentence = f"item 1 of the sessions is a {type(item).__name__}"
        refused(errors.InputError, sentence, engine.group, [session, item])
        refused(errors.InputError, sentence, engine.step, [session, item], X[:2])


def test_a_session_of_another_engine(engine, session, refused):
    with sl.Engine(MODEL) as other:
        stranger = other.open("stranger")
        sentence = "session stranger belongs to another engine"
        refused(errors.InputError, sentence, engine.step, [session, stranger], X[:2])
        assert stranger.seq == 0


def test_names(engine, session, refused):
    exists = "session pump-17 is open already; use engine['pump-17'] or close it first"
    refused(errors.SessionExistsError, exists, engine.open, "pump-17")
    refused(errors.SessionExistsError, exists, session.fork, "pump-17")
    for name in ("", None, 17, b"pump"):
        refused(errors.SessionError, "a session's name is a non-empty string", engine.open, name)
    refused(errors.SessionError, "is no Unicode text", engine.open, "half a pair: \ud800")
    unknown = "no session 'valve' is open; open it with engine.open('valve')"
    refused(errors.SessionUnknownError, unknown, engine.__getitem__, "valve")
    assert "valve" not in engine
    with pytest.raises(KeyError):  # as of any mapping
        engine["valve"]


def test_capacity(engine, session, refused):
    for k in range(7):
        engine.open(f"s{k}")
    sentence = "all 8 sessions are open; close some, or create the engine with a larger"
    refused(errors.CapacityError, sentence, engine.open, "one more")
    refused(errors.CapacityError, sentence, session.fork, "one more")
    engine["s3"].close()
    assert engine.open("one more").seq == 0


@pytest.mark.parametrize("count", [0, -1, 2**31 + 1])
def test_max_sessions(count):
    with pytest.raises(errors.CapacityError, match=f"max_sessions is {count}; give 1 to"):
        sl.Engine(MODEL, max_sessions=count)


STATE = sl.State(MODEL.fingerprint, 0, ((8, 8),), np.zeros(16, "f4"))
USES = {  # every call on a session that needs its state
    "step": lambda session: session.step(X[0]),
    "step_into": lambda session: session.step_into(X[0], np.zeros(2, "f4")),
    "run": lambda session: session.run(X),
    "seq": lambda session: session.seq,
    "state": lambda session: session.state(),
    "restore": lambda session: session.restore(STATE),
    "reset": lambda session: session.reset(),
    "fork": lambda session: session.fork("twin"),
    "take_over": lambda session: session.take_over(),
    "engine.step": lambda session: session.engine.step([session], X[:1]),
    "engine.group": lambda session: session.engine.group([session]),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_session(use, engine, refused):
    closed = engine.open("closed")
    closed.close()
    sentence = "session closed is closed; open it again"
    refused(errors.SessionClosedError, sentence, USES[use], closed)
    assert closed.closed
    closed.close()  # twice is harmless
    assert engine.names == ["pump-17"]


@pytest.mark.parametrize("use", USES)
def test_a_fenced_session(use, engine, refused):
    old = engine.open("taken")
    new = old.take_over()
    sentence = "session taken was opened again elsewhere; this handle no longer owns it"
    refused(errors.SessionFencedError, sentence, USES[use], old)
    assert old.closed
    old.close()  # harmless: it is not this handle's to close
    assert not new.closed
    assert engine["taken"] is new


@pytest.mark.parametrize("use", USES)
def test_a_closed_engine(use):
    engine = sl.Engine(MODEL)
    session = engine.open("a")
    group = engine.group([session])
    engine.close()
    engine.close()  # twice is harmless
    assert (len(engine), engine.names, engine.state_bytes) == (0, [], 0)
    for call in (lambda: USES[use](session), lambda: engine.open("b"), lambda: group.step(X[:1])):
        with pytest.raises(errors.EngineClosedError, match="engine is closed; create a new Engine"):
            call()
    session.close()
    assert session.closed


def test_a_group_with_a_lost_session(engine, session, refused):
    other = engine.open("other")
    group = engine.group([session, other])
    sentence = "the session at index 1 of this group was closed or taken over"
    for lose in ("take_over", "close"):
        getattr(engine["other"], lose)()
        refused(errors.SessionUnknownError, sentence, group.step, X[:2])
        refused(errors.SessionUnknownError, sentence, group.run, np.zeros((2, 5, 3)))
        refused(
            errors.SessionUnknownError, sentence, group.step_into, X[:2], np.zeros((2, 2), "f4")
        )
        refused(errors.SessionUnknownError, sentence, lambda: group.seqs)


def test_rows(engine, session, refused):
    mine = (session.row, session.epoch)
    for row, epoch in ((mine[0], mine[1] + 1), (mine[0] + 1, mine[1]), (2**32 - 1, 1)):
        sentence = f"row {row} with epoch {epoch} (index 1) is no open session's"
        call = engine.group_by_row
        refused(errors.SessionUnknownError, sentence, call, [mine[0], row], [mine[1], epoch])
    refused(errors.ShapeError, "1 rows came with 2 epochs", engine.group_by_row, [0], [1, 1])


def test_states_of_others(session, refused):
    state = session.state()
    other = stacked(seed=1)
    with sl.Engine(other) as elsewhere:
        refused(
            errors.StateMismatchError,
            f"the state belongs to model {other.fingerprint[:12]}, this session to",
            session.restore,
            elsewhere.open("a").state(),
        )
    short = sl.State(state.fingerprint, 0, ((4, 4),), state.numbers[:8])
    refused(
        errors.StateMismatchError,
        "the state holds float32 (8,); expected float32 (16,)",
        session.restore,
        short,
    )
    poisoned = sl.State(state.fingerprint, 0, ((8, 8),), np.full(16, NAN, "f4"))
    sentence = "the state holds NaN or infinity; restore an earlier one"
    refused(errors.NonFiniteError, sentence, session.restore, poisoned)


def test_every_error_is_in_the_drawn_tree():
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__)) | {"StreamLSTMError"}
    defined = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert drawn == defined
    assert all(issubclass(getattr(errors, name), errors.StreamLSTMError) for name in defined)


def test_weights_that_could_overflow_the_state_are_refused():
    """The bound of an event follows the weights: no finite event makes a NaN that stays."""
    rng = np.random.default_rng(0)
    huge = sl.Dense(np.full((4, 2), 1e10), np.zeros(4))
    model = sl.Model([huge, lstm(rng, 4, 3)], dtype="float32")
    with sl.Engine(model) as engine:
        session = engine.open("a")
        with pytest.raises(errors.NonFiniteError, match="within"):
            session.step([3e30, -3e30])
        session.step(engine.largest_event * [0.99, -0.99])
        assert np.isfinite(session.state().numbers).all()
    wider = sl.Dense(np.full((4, 4), 1e30), np.zeros(4))
    with pytest.raises(errors.ModelError, match="its weights can overflow"):
        sl.Engine(sl.Model([lstm(rng, 2, 4), wider, wider, lstm(rng, 4, 3)], dtype="float32"))


def test_each_input_has_a_bound_of_its_own():
    model = sl.Model(
        stacked(inputs=2).layers,
        inputs=[sl.Feature("tiny", std=1e-26), sl.Feature("pressure", mean=101325, std=900)],
    )
    with sl.Engine(model) as engine:
        assert np.isfinite(engine.open("a").step([1e-26, 101325])).all()


def test_an_h_that_no_lstm_reaches_is_not_restored():
    with sl.Engine(MODEL) as engine:
        state = sl.State(MODEL.fingerprint, 0, ((8, 8),), np.full(16, 3e38, "f4"))
        with pytest.raises(errors.NonFiniteError, match="no cell reaches"):
            engine.open("a").restore(state)
