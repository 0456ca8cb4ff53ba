"""Every option of the cells, one at a time and far out; together they stand in networks.models."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

import streamlstm as sl
from networks import BOUNDED, C_ERROR, H_ERROR, dense, events, gru, lstm, lstm_with
from streamlstm import errors, kernels, layers, reference
from streamlstm.layers import CELL_FUNCTIONS, FUNCTIONS

pytestmark = pytest.mark.blas
KERNELS = ["float64", "blas", *kernels.FUSED]
H = 20  # a whole panel and a part of one


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def with_only(**chosen) -> sl.LSTM:
    """A plain LSTM of 3 inputs with these options; a list of one tensor's shape stands for it."""
    gates = 3 if chosen.get("coupled") else 4
    r = rng()
    made = {k: r.uniform(-0.4, 0.4, v) if isinstance(v, tuple) else v for k, v in chosen.items()}
    p = len(made["w_p"]) if "w_p" in made else H
    shapes = (gates * H, 3), (gates * H, p), gates * H
    return sl.LSTM(*(r.uniform(-0.4, 0.4, s) for s in shapes), **made)


CELLS = {
    "plain": with_only(),
    "peepholes": with_only(peep=(3 * H,)),
    "projection": with_only(w_p=(6, H)),
    "wide projection": with_only(w_p=(37, H), b_p=(37,)),
    "projection, clipped": with_only(w_p=(6, H), b_p=(6,), clip_projection=0.05),
    "i = 1 - f": with_only(coupled="i"),
    "f = 1 - i": with_only(coupled="f"),
    "i = 1 - f, peepholes": with_only(coupled="i", peep=(2 * H,)),
    "f = 1 - i, peepholes": with_only(coupled="f", peep=(2 * H,)),
    "norm": with_only(norm=(4 * H,)),
    "norm, peepholes, i = 1 - f": with_only(norm=(3 * H,), peep=(2 * H,), coupled="i"),
    "norm, peepholes, f = 1 - i": with_only(norm=(3 * H,), peep=(2 * H,), coupled="f"),
    "norm, projection": with_only(norm=(4 * H,), w_p=(6, H)),
    "clipped gates": with_only(clip_gates=0.3),
    "clipped c": with_only(clip_cell=0.1),
    "learned start": with_only(h0=(H,), c0=(H,)),
    "everything": with_only(
        coupled="f", peep=(2 * H,), norm=(3 * H,), w_p=(6, H), b_p=(6,), h0=(6,), c0=(H,),
        clip_gates=1.0, clip_cell=0.4, clip_projection=0.2, gate_function="hard_sigmoid",
        candidate_function="relu", output_function="sigmoid",
    ),
    **{f"gates {f}": with_only(gate_function=f) for f in BOUNDED},
    **{f"candidate {f}": with_only(candidate_function=f) for f in CELL_FUNCTIONS},
    **{f"output {f}": with_only(output_function=f) for f in CELL_FUNCTIONS},
    "gru": gru(rng(), 3, H),
    "gru, reset before": gru(rng(), 3, H, reset_after=False),
    "gru, clipped": sl.GRU(**vars(gru(rng(), 3, H)) | {"clip_gates": 0.2}),
    "gru, relu": sl.GRU(**vars(gru(rng(), 3, H)) | {"candidate_function": "relu"}),
    "gru, before, hard": sl.GRU(
        **vars(gru(rng(), 3, H, reset_after=False)) | {"gate_function": "hard_sigmoid6"}
    ),
}  # fmt: skip


@pytest.fixture(params=KERNELS)
def dtype(request, monkeypatch):
    """The dtype, with each kernel in turn."""
    if request.param == "float64":
        return "float64"
    monkeypatch.setenv(kernels.VARIABLE, request.param)
    if request.param not in ("blas", *(n for n in kernels.FUSED if kernels.available(n))):
        pytest.skip(f"this CPU lacks the {request.param} kernel")
    return "float32"


@cache  # the oracle knows no kernels
def expected_of(cell, dtype):
    """A model, five streams for it, and what the reference makes of each."""
    model = sl.Model([CELLS[cell]], dtype=dtype)
    x = events(model, 5, 60)
    return model, x, [reference.run(model, stream) for stream in x]


@pytest.mark.untraced
@pytest.mark.parametrize("cell", CELLS)
def test_each_option_by_every_door(cell, dtype):
    model, x, wanted = expected_of(cell, dtype)
    with sl.Engine(model) as engine:
        sessions = [engine.open(f"s{k}") for k in range(5)]
        y = engine.group(sessions).run(x)
        steps = engine.open("steps")
        y_steps = np.array([steps.step(event) for event in x[0]])
        states = [s.state() for s in sessions]
        for k, (expected, last) in enumerate(wanted):
            np.testing.assert_allclose(y[k], expected, rtol=1e-5, atol=H_ERROR[dtype])
            np.testing.assert_allclose(states[k].h(0), last[0][0], rtol=1e-5, atol=H_ERROR[dtype])
            if len(last[0]) == 2:
                np.testing.assert_allclose(states[k].c(0), last[0][1], **C_ERROR[dtype])
        np.testing.assert_allclose(y_steps, y[0], rtol=1e-5, atol=H_ERROR[dtype])
        if engine.same_bits:
            assert y_steps.tobytes() == y[0].tobytes()
            assert steps.state().numbers.tobytes() == states[0].numbers.tobytes()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_function_of_an_activation_layer(function, dtype):
    model = sl.Model([lstm(rng(), 3, 21), sl.Activation(function, 21)], dtype=dtype)
    x = events(model, 30)
    with sl.Engine(model) as engine:
        y = engine.open("a").run(x)
    np.testing.assert_allclose(y, reference.run(model, x)[0], rtol=0, atol=H_ERROR[dtype])
    if function == "softmax":
        np.testing.assert_allclose(y.sum(axis=1), 1, rtol=0, atol=1e-6)


def test_embedding(dtype):
    table = rng().uniform(-1, 1, (50, 4))
    model = sl.Model([sl.Embedding(table), gru(rng(), 4, 8), dense(rng(), 8, 2)], dtype=dtype)
    ids = rng().integers(0, 50, (40, 1))
    with sl.Engine(model) as engine:
        session = engine.open("a")
        expected, _ = reference.run(model, ids)
        np.testing.assert_allclose(session.run(ids), expected, rtol=0, atol=H_ERROR[dtype])
        before = session.state().numbers
        for bad in (-1, 50, 0.5, np.nan, 1e20):
            with pytest.raises(
                errors.NonFiniteError, match=r"takes whole numbers from 0 to 49|is \S*inf"
            ):
                session.step([bad])
        assert session.seq == 40
        assert session.state().numbers.tobytes() == before.tobytes()


@cache
def never_forgets(option, dtype):
    """A model of such a cell, a long stream for it, and what the reference makes of that."""
    given = {"peep": 1e-7, "clip_cell": 1e6, "clip_gates": 30.0, "norm": 1e-3, "coupled": ""}
    tensors = {"peep": 3 * H, "norm": 4 * H}
    cell = with_only()
    b = np.repeat([1.0, 20.0, 1.0, 0.5], H)
    options = {} if option in ("w_p",) else {option: given[option]}
    if option in tensors:
        options[option] = np.full(tensors[option], given[option])
    if option == "w_p":
        options["w_p"] = np.eye(H)
    cell = sl.LSTM(cell.w_x * 0.1, cell.w_h * 0.1, b, **options)
    model = sl.Model([cell], dtype=dtype)
    x = events(model, 2000)
    return model, x, reference.run(model, x)


@pytest.mark.untraced
@pytest.mark.parametrize("option", ["peep", "clip_cell", "clip_gates", "norm", "w_p", "coupled"])
def test_a_cell_that_never_forgets_stays_exact(option, dtype):
    """c reaches 1,000: f is 1 but for 1e-9, i and g about 0.7 each step."""
    model, x, (expected, last) = never_forgets(option, dtype)
    assert last[0][1].max() > 1000
    with sl.Engine(model) as engine:
        session = engine.open("a")
        np.testing.assert_allclose(session.run(x), expected, rtol=0, atol=H_ERROR[dtype])
        np.testing.assert_allclose(session.state().c(0), last[0][1], **C_ERROR[dtype])


@pytest.mark.parametrize(
    "cell",
    [
        with_only(gate_function="linear", candidate_function="linear", output_function="linear"),
        with_only(candidate_function="relu", output_function="relu", w_p=(6, H)),
        sl.GRU(**vars(gru(rng(), 3, H)) | {"gate_function": "relu", "candidate_function": "relu"}),
    ],
)
def test_a_cell_that_diverges_saturates(cell, dtype):
    """Functions without bounds and weights that grow: numbers stop at 1e15, none is NaN."""
    grown = type(cell)(**vars(cell) | {"w_h": np.abs(cell.w_h) * 50, "b": np.abs(cell.b) + 1})
    model = sl.Model([grown], dtype=dtype)
    x = events(model, 200)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.run(x)
        numbers = session.state().numbers
        assert np.isfinite(numbers).all()
        assert np.abs(numbers).max() <= reference.SATURATION * (1 + 1e-6)
        session.restore(session.state())
        assert np.isfinite(session.step(engine.largest_event * 0.99)).all()
        assert np.isfinite(session.step(engine.largest_event * -0.99)).all()


@pytest.mark.parametrize("cell", ["everything", "gru", "gru, reset before", "wide projection"])
def test_files_and_states_keep_every_option(cell, tmp_path):
    model = sl.Model([CELLS[cell], sl.Activation("softmax", CELLS[cell].output_size)])
    model.save(tmp_path / "m.safetensors")
    again = sl.load(tmp_path / "m.safetensors")
    assert again.fingerprint == model.fingerprint
    assert again.description() == model.description()
    x = events(model, 9)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.run(x)
        state = sl.State.from_bytes(session.state().to_bytes())
        assert state.sizes == model.state_sizes
        other = engine.open("b")
        other.restore(state)
        assert other.step(x[0]).tobytes() == session.step(x[0]).tobytes()


BAD = {
    "coupling": (with_only(), {"coupled": "o"}, "coupled is 'o'; expected 'i', 'f' or ''"),
    "peepholes of three gates": (
        with_only(coupled="i"),
        {"peep": np.zeros(3 * H)},
        f"peep has shape ({3 * H},), expected ({2 * H},)",
    ),
    "norm": (with_only(), {"norm": np.zeros(H)}, f"norm has shape ({H},), expected ({4 * H},)"),
    "projection": (
        with_only(w_p=(6, H)),
        {"w_p": np.zeros((5, H))},
        f"w_p has shape (5, {H}), expected (6, {H})",
    ),
    "bias without projection": (
        with_only(),
        {"b_p": np.zeros(H)},
        "b_p and clip_projection belong to a projection; give w_p too",
    ),
    "clip": (with_only(), {"clip_cell": -1.0}, "clip_cell is -1.0; expected a number above 0"),
    "function": (
        with_only(),
        {"gate_function": "softmax"},
        "gate_function is 'softmax'; known are linear, tanh, sigmoid, relu, hard_sigmoid",
    ),
    "reset before": (
        gru(rng(), 3, H),
        {"reset_after": False},
        "b_n has no place where reset_after is False; add it to b",
    ),
    "a fraction for a switch": (
        gru(rng(), 3, H),
        {"reset_after": 0.5},
        "reset_after is 0.5; expected a bool",
    ),
    "text for a clip": (with_only(), {"clip_cell": "1"}, "clip_cell is '1'; expected a float"),
    "NaN for a clip": (with_only(), {"clip_gates": np.nan}, "clip_gates is nan; expected a number"),
    "vast clip": (with_only(), {"clip_gates": 10**400}, "clip_gates is too large"),
    "missing bias": (with_only(), {"b": None}, "b holds object; expected real numbers"),
    "complex": (
        with_only(),
        {"b": np.zeros(4 * H, complex)},
        "float32 or all float64, not complex128",
    ),
    "a start that no cell reaches": (
        with_only(),
        {"c0": np.full(H, 1e16)},
        "c0 goes beyond 1e+15, which no cell reaches",
    ),
    "gru": (gru(rng(), 3, H), {"b": np.zeros(H)}, f"b has shape ({H},), expected ({3 * H},)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(case):
    layer, change, sentence = BAD[case]
    with pytest.raises(errors.ModelError, match=re.escape(sentence)):
        sl.Model([type(layer)(**vars(layer) | change)])


def test_embeddings_come_first_and_unscaled():
    table = sl.Embedding(np.ones((5, 3)))
    with pytest.raises(errors.ModelError, match="put it first"):
        sl.Model([sl.Activation("relu", 1), table, with_only()])
    with pytest.raises(errors.ModelError, match="can't be scaled"):
        sl.Model([table, with_only()], inputs=[sl.Feature("id", std=2.0)])


def test_options_of_other_types_are_the_same_option():
    plain = with_only(clip_cell=1.0)
    same = [with_only(clip_cell=one) for one in (1, np.float32(1), np.int64(1))]
    assert {sl.Model([cell]).fingerprint for cell in same} == {sl.Model([plain]).fingerprint}
    gates = [sl.GRU(**vars(gru(rng(), 3, H)) | {"reset_after": r}) for r in (True, np.True_)]
    assert len({sl.Model([cell]).fingerprint for cell in gates}) == 1
    with pytest.raises(errors.ModelError, match="layer 1 is a str"):
        sl.Model([plain, "dense"])


def test_more_ids_than_float32_can_tell_apart():
    table = np.zeros((2**24 + 1, 1), np.float32)
    cell = sl.GRU(*(np.ones(s, np.float32) for s in ((3, 1), (3, 1), 3)))
    with pytest.raises(errors.ModelError, match=r"float32 can't tell 16,777,217 whole numbers"):
        sl.Model([sl.Embedding(table), cell])


OVERFLOWS = {
    "embedding": [
        sl.Embedding(np.full((2, 3), 1e38)),
        sl.Dense(np.full((3, 3), 5.0), np.zeros(3)),
        with_only(),
    ],
    "gru restored": [
        gru(rng(), 3, 2),
        sl.Dense(np.full((2, 2), 1e30), np.zeros(2)),
        lstm(rng(), 2, 2),
    ],
}


@pytest.mark.parametrize("case", OVERFLOWS)
def test_weights_that_can_overflow_are_refused(case):
    with pytest.raises(errors.ModelError, match="can overflow float32"):
        sl.Engine(sl.Model(OVERFLOWS[case], dtype="float32"))


def test_outputs_that_can_overflow_are_refused():
    vast = [sl.Feature(f"y{k}", std=1e30) for k in range(H)]
    with pytest.raises(errors.ModelError, match="output 'y0': its mean and std can overflow"):
        sl.Engine(sl.Model([gru(rng(), 3, H)], outputs=vast, dtype="float32"))


def test_a_layer_kind_without_a_bound_can_not_be_made():
    """What it may reach is asked of every kind: a forgotten one would let numbers overflow."""

    class Forgetful(sl.Dense):
        reach = layers.Layer.reach

    with pytest.raises(TypeError, match="abstract"):
        Forgetful(np.ones((1, 1)), np.ones(1))


COLUMN = np.array([[1.0], [2], [3], [-4]])
FLAT = np.array([0.0, 0, -6, 1])
LIMIT = layers.SATURATION


@pytest.mark.parametrize(
    ("layer", "reach", "bound"),
    [
        (sl.Dense(np.array([[1.0, -2], [3, 0]]), np.array([0.5, -4])), (3, 4), None),
        (sl.Dense(np.eye(2), np.zeros(2), activation="tanh"), (1, 0), 1),
        (sl.Activation("relu", 3), (1, 0), None),
        (sl.Activation("softmax", 3), (1, 0), 1),
        (sl.Embedding(np.array([[1.0, -7], [2, 3]])), (0, 7), None),
        (sl.LSTM(COLUMN, COLUMN, FLAT), (4, 4 * LIMIT + 6), 1),
        (sl.LSTM(COLUMN, COLUMN, FLAT, output_function="relu"), (4, 4 * LIMIT + 6), LIMIT),
        (
            sl.LSTM(COLUMN, COLUMN, FLAT, peep=np.array([0, -9.0, 0]), norm=5 * np.ones(4)),
            (4, 13 * LIMIT + 5 + 6),
            1,
        ),
        (
            sl.GRU(COLUMN[:3], COLUMN[:3], FLAT[:3], b_n=np.array([-8.0])),
            (3, 3 * LIMIT + 8 + 6),
            LIMIT,
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, layers.Layer) else None,
)
def test_how_far_a_layers_sums_reach(layer, reach, bound):
    assert (layer.reach(), layer.bound()) == (reach, bound)


def test_layer_norm_of_the_largest_event(dtype):
    """Sums far beyond a norm's reach saturate before it; none overflows into NaN."""
    cell = sl.LSTM(np.ones((4 * H, 1)), np.zeros((4 * H, H)), np.zeros(4 * H), norm=np.ones(4 * H))
    with sl.Engine(sl.Model([cell], dtype=dtype)) as engine:
        session = engine.open("a")
        for share in (0.5, 0.0, -0.99):
            assert np.isfinite(session.step(engine.largest_event * share)).all()


def test_macs_count_every_product():
    """What threads and the release of the GIL go by."""
    proj = sl.Model([CELLS["projection"]])
    with sl.Engine(proj) as engine:
        assert engine.network.macs == 4 * H * (3 + 6) + 6 * H
    with sl.Engine(sl.Model([CELLS["gru, reset before"]])) as engine:
        assert engine.network.macs == 3 * H * (3 + H)
    r = rng()
    assert sl.Model([lstm_with(r, 3, 9)]).parameters > 0
