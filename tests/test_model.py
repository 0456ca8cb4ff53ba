"""Model: what it refuses, what it is equal by, and that nobody can change it."""

from __future__ import annotations

import re

import numpy as np
import pytest

import streamlstm as sl
from networks import dense, lstm, stacked
from streamlstm.errors import ModelError

rng = np.random.default_rng(0)
L = lstm(rng, 3, 4)
D = dense(rng, 4, 2)


def changed(layer: sl.LSTM | sl.Dense, **tensors):
    return type(layer)(**(vars(layer) | tensors))


BAD_LAYERS = {
    "none": ([], "a model needs at least one layer; none was given"),
    "only dense": ([D], "a model needs at least one LSTM or GRU layer; none was given"),
    "sizes": ([L, dense(rng, 5, 2)], "layer 1 takes 5 inputs, but layer 0 gives 4 outputs"),
    "bias": (
        [changed(L, b=np.zeros(15))],
        "layer 0 (lstm): b has shape (15,), expected (16,)",
    ),
    "gates": (
        [changed(L, w_x=np.zeros((12, 3)))],
        "layer 0 (lstm): w_x has shape (12, 3), expected (16, 3)",
    ),
    "recurrent": (
        [changed(L, w_h=np.zeros((16, 5)))],
        "layer 0 (lstm): w_h has shape (16, 5), expected (16, 4)",
    ),
    "h0": ([changed(L, h0=np.zeros(3))], "layer 0 (lstm): h0 has shape (3,), expected (4,)"),
    "vector": ([changed(L, w_h=np.zeros(16))], "layer 0 (lstm): its weights must be matrices"),
    "dense vector": ([L, changed(D, w=np.zeros(4))], "layer 1 (dense): its weights must be"),
    "empty": (
        [sl.LSTM(np.zeros((0, 3)), np.zeros((0, 0)), np.zeros(0))],
        "layer 0 (lstm): w_x is empty or not finite in float64",
    ),
    "no inputs": ([changed(L, w_x=np.zeros((16, 0)))], "layer 0 (lstm): w_x is empty"),
    "NaN": ([L, changed(D, b=np.array([0, np.nan]))], "layer 1 (dense): b is empty or not finite"),
    "infinite c0": ([changed(L, c0=np.full(4, np.inf))], "layer 0 (lstm): c0 is empty or not"),
    "activation": (
        [L, changed(D, activation="gelu")],
        "layer 1 (dense): activation is 'gelu'; known are linear, tanh, sigmoid, relu",
    ),
    "mixed dtypes": (
        [L, changed(D, b=np.zeros(2, "f4"))],
        "weights must all be float32 or all float64, not float32, float64; pass dtype=",
    ),
    "integers": (
        [sl.LSTM(*(np.ones(s, int) for s in ((4, 1), (4, 1), 4)))],
        "weights must all be float32 or all float64, not int64",
    ),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_bad_layers(case):
    layers, sentence = BAD_LAYERS[case]
    with pytest.raises(ModelError, match=re.escape(sentence)):
        sl.Model(layers)


@pytest.mark.parametrize("dtype", ["float16", "int32", "complex64"])
def test_dtypes_that_networks_are_not_run_in(dtype):
    with pytest.raises(ModelError, match="weights must all be float32 or all float64"):
        sl.Model([L], dtype=dtype)


def test_weights_that_overflow_in_float32_are_refused():
    big = changed(L, b=np.full(16, 1e39))
    assert sl.Model([big]).dtype == np.float64
    with pytest.raises(ModelError, match="b is empty or not finite in float32"):
        sl.Model([big], dtype="float32")


BAD_FEATURES = {
    "count": (["a", "b"], "the network has 3 inputs, but 2 were described"),
    "repeated": (["a", "b", "a"], "input names must be distinct, non-empty strings"),
    "empty name": (["a", "b", ""], "input names must be distinct, non-empty strings"),
    "no std": (["a", "b", sl.Feature("c", std=0)], "input 'c' has mean 0.0 and std 0.0"),
    "negative std": (["a", "b", {"name": "c", "std": -1}], "std above 0"),
    "NaN": (["a", sl.Feature("b", mean=float("nan")), "c"], "input 'b' has mean nan"),
    "infinite": (["a", sl.Feature("b", std=float("inf")), "c"], "input 'b' has mean 0.0 and std"),
    "tiny std": (["a", sl.Feature("b", std=1e-39), "c"], "input 'b' has mean 0.0 and std 1e-39"),
    "vast mean": (["a", sl.Feature("b", mean=1e39), "c"], "neither beyond 3.4e+38"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_features(case):
    inputs, sentence = BAD_FEATURES[case]
    with pytest.raises(ModelError, match=re.escape(sentence)):
        sl.Model([L], inputs=inputs, dtype="float32")
    swapped = sl.Model([lstm(rng, 2, 4), dense(rng, 4, 3)], dtype="float32")
    with pytest.raises(ModelError, match=re.escape(sentence.replace("input", "output"))):
        sl.Model(swapped.layers, outputs=inputs)


def test_a_model_is_a_copy_that_nobody_changes():
    b = np.zeros(16)
    model = sl.Model([changed(L, b=b)])
    b[:] = 7
    assert not model.layers[0].b.any()
    for a in model.layers[0].tensors().values():
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 1


@pytest.mark.blas
def test_an_engine_runs_the_weights_it_was_made_with():
    """Whatever someone does to the read-only arrays by force."""
    model = sl.Model([L])
    with sl.Engine(model) as engine:
        expected = engine.open("a").step([1, 2, 3])
        for a in model.layers[0].tensors().values():
            a.flags.writeable = True
            a[...] = 0
        np.testing.assert_array_equal(engine.open("b").step([1, 2, 3]), expected)


def test_sizes_and_names():
    model = sl.Model([L, D], inputs=["a", {"name": "b", "unit": "m"}, sl.Feature("c")], name="n")
    assert (model.input_size, model.output_size, model.state_size) == (3, 2, 8)
    assert model.parameters == 16 * 3 + 16 * 4 + 16 + 2 * 4 + 2
    assert [f.name for f in (*model.inputs, *model.outputs)] == ["a", "b", "c", "y0", "y1"]
    assert model.inputs[1].unit == "m"
    assert repr(model) == "<Model 'n': 3 inputs, lstm 4, dense 2; float64>"


def test_fingerprint():
    """Equal for equal networks, whatever their name; another for any other."""
    base = sl.Model([L, D])
    assert sl.Model([L, D], name="other").fingerprint == base.fingerprint
    assert base.astype("float64").fingerprint == base.fingerprint
    others = [
        base.astype("float32"),
        sl.Model([L]),
        sl.Model([L, changed(D, activation="tanh")]),
        sl.Model([L, changed(D, b=D.b + 1e-9)]),
        sl.Model([changed(L, h0=np.zeros(4)), D]),
        sl.Model([changed(L, c0=np.zeros(4)), D]),
        sl.Model([L, D], inputs=["a", "b", "c"]),
        sl.Model([L, D], outputs=[sl.Feature("y0", "m"), "y1"]),
        sl.Model([L, D], outputs=[sl.Feature("y0", mean=1), "y1"]),
        sl.Model([L, D], outputs=[sl.Feature("y0", std=2), "y1"]),
    ]
    assert len({m.fingerprint for m in [base, *others]}) == 1 + len(others)


def test_astype_changes_dtype_alone():
    model = stacked(outputs=2, dtype="float64")
    single = model.astype("float32")
    assert single.dtype == np.float32
    assert single.astype("float64").layers[0].b.dtype == np.float64
    np.testing.assert_allclose(single.layers[0].w_x, model.layers[0].w_x, rtol=1e-6)
