"""sl.verify without frameworks: the reference answers in their place."""

from __future__ import annotations

import re

import numpy as np
import pytest

import streamlstm as sl
from fake_source import FakeSource
from networks import stacked
from streamlstm import reference
from streamlstm.errors import (
    DtypeError,
    MissingInputError,
    ModelError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from streamlstm.importers import verify
from streamlstm.proof import random_events

MODEL = stacked(outputs=2)
SCALED = sl.Model(
    MODEL.layers,
    inputs=[sl.Feature("p", "Pa", 101325, 40), sl.Feature("t", "°C", -3, 7), "flow"],
    outputs=[sl.Feature("level", "m", 20, 0.5), "leak"],
)


def answers(x):
    return reference.run(MODEL, x)[0]


def stepped(model, x):
    with sl.Engine(model) as engine:
        session = engine.open("a")
        return np.array([session.step(event) for event in x])


@pytest.mark.parametrize("against", [FakeSource(MODEL), answers])
def test_a_right_import(against):
    proof = sl.verify(MODEL, against)
    assert proof.framework == ("answers" if against is answers else "oracle 1.0")
    assert (proof.x.shape, proof.y.shape) == ((500, 3), (500, 2))
    assert proof.x.dtype == proof.y.dtype == np.float64
    assert proof.largest == np.abs(stepped(MODEL, proof.x) - proof.y).max()
    assert 0 < proof.largest < 1e-6
    np.testing.assert_allclose(proof.y, answers(proof.x), atol=1e-6)


def test_events_are_the_seeds():
    one, same, other = (sl.verify(MODEL, answers, steps=9, seed=s).x for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one.shape == (9, 3)
    assert not np.any(one == other)
    np.testing.assert_array_equal(one, random_events(MODEL, 9, 1))


def test_the_framework_sees_scaled_events():
    """And its answers come back in the outputs' own units."""
    source = FakeSource(MODEL)
    proof = sl.verify(SCALED, source, steps=200)
    (seen,) = source.seen
    assert np.abs(seen.mean(axis=0)).max() < 0.3
    np.testing.assert_allclose(proof.x, seen * [40, 7, 1] + [101325, -3, 0], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(proof.y, answers(seen) * [0.5, 1] + [20, 0], rtol=1e-6)
    assert proof.largest < 1e-5


def test_a_float64_model():
    model = stacked(outputs=2, dtype="float64")
    proof = sl.verify(model, FakeSource(model))
    assert proof.largest < 1e-6


def test_events_of_an_embedding_are_whole_numbers(tmp_path):
    weights = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    model = sl.Model([sl.Embedding(weights), *MODEL.layers])
    proof = sl.verify(model, FakeSource(model))
    assert set(proof.x.ravel()) == {0, 1, 2, 3, 4}
    assert proof.x.shape == (500, 1)
    assert proof.largest < 1e-6
    for kept in (proof, None):
        model.save(tmp_path / "words.safetensors", proof=kept)
        assert sl.load(tmp_path / "words.safetensors").fingerprint == model.fingerprint


def test_given_events():
    x = np.arange(12.0).reshape(4, 3)
    proof = sl.verify(MODEL, answers, x=x)
    np.testing.assert_array_equal(proof.x, x)
    by_name = sl.verify(MODEL, answers, x={"x0": x[:, 0], "x1": x[:, 1], "x2": x[:, 2]})
    np.testing.assert_array_equal(by_name.y, proof.y)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"x": np.ones(3)}, ShapeError, "events have shape (3,)"),
        ({"x": np.ones((4, 2))}, ShapeError, "events have shape (4, 2)"),
        ({"x": np.ones((0, 3))}, ShapeError, "x holds no events; give 1 or more"),
        ({"x": [["a", "b", "c"]]}, DtypeError, "events must be real numbers"),
        ({"x": np.full((2, 3), np.nan)}, NonFiniteError, "nan"),
        ({"x": {"x0": [1], "x1": [1]}}, MissingInputError, "lacks x2"),
        ({"steps": 0}, ShapeError, "steps is 0; give 1 or more"),
    ],
)
def test_events_that_are_refused(given, error, sentence):
    source = FakeSource(MODEL)
    with pytest.raises(error, match=re.escape(sentence)):
        sl.verify(MODEL, source, **given)
    assert not source.seen


def test_select():
    model = stacked(layers=2)
    alone = sl.Model([model.layers[1]])
    assert sl.verify(alone, FakeSource(model), select="rnn.1").largest < 1e-6


# -- what is wrong ---------------------------------------------------------------------------------


def test_a_large_difference_is_told_not_raised():
    assert sl.verify(MODEL, FakeSource(MODEL, off=0.5)).largest == pytest.approx(0.5, rel=1e-5)
    assert np.isnan(sl.verify(MODEL, FakeSource(MODEL, off=np.nan)).largest)
    assert sl.verify(MODEL, FakeSource(MODEL, off=np.inf)).largest == np.inf


@pytest.mark.parametrize("order", ["figo", "igfo", "ifog"])
def test_gates_in_a_wrong_order_differ_by_far(order):
    layer = MODEL.layers[0]
    tensors = {
        name: np.concatenate([dict(zip("ifgo", np.split(a, 4), strict=True))[g] for g in order])
        for name, a in layer.tensors().items()
    }
    wrong = sl.Model([sl.LSTM(**tensors), MODEL.layers[1]])
    assert sl.verify(wrong, FakeSource(MODEL)).largest > 1e-2


@pytest.mark.parametrize(
    ("format_", "installed", "sentence"),
    [
        ("PyTorch", False, "nothing here runs PyTorch networks: pip install torch"),
        ("ONNX", False, "nothing here runs ONNX networks: pip install onnxruntime"),
        ("Keras", False, "nothing here runs Keras networks: pip install tensorflow-cpu"),
        (
            "PyTorch",
            True,
            "nothing here runs this PyTorch network; give sl.verify a function that does",
        ),
        ("NAM", False, "nothing here runs this NAM network; give sl.verify a function that does"),
    ],
)
def test_without_the_framework(monkeypatch, format_, installed, sentence):
    monkeypatch.setattr(verify, "find_spec", lambda _: installed or None)
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(sentence)}$"):
        sl.verify(MODEL, FakeSource(MODEL, format=format_, framework=""))


def test_a_framework_that_fails():
    source = FakeSource(MODEL)
    source.answers = lambda _x, _select: 1 / 0
    with pytest.raises(ModelError, match=r"^oracle 1.0 failed on the network: division by zero$"):
        sl.verify(MODEL, source)


def test_what_a_callers_function_raises_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        sl.verify(MODEL, lambda _: 1 / 0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda x: answers(x)[:, 0], "[500] (float64)"),
        (lambda x: answers(x)[:, :1], "[500, 1] (float64)"),
        (lambda x: answers(x)[-1:], "[1, 2] (float64)"),
        (lambda x: answers(x).astype(str), "[500, 2] (<U"),
        (lambda _: None, "[] (object)"),
    ],
)
def test_answers_that_are_no_outputs(wrong, told):
    with pytest.raises(ModelError, match=re.escape(f"gives outputs of shape {told}")) as caught:
        sl.verify(MODEL, wrong)
    assert "where the model gives [500, 2]; compare it with the network" in str(caught.value)


@pytest.mark.parametrize(
    ("against", "more", "sentence"),
    [
        (7, {}, "verify compares with a source file, a torch module, a Source or a function; got"),
        (answers, {"select": "rnn"}, "a function has no layers to select; leave out select"),
        (answers, {"flow": ["rnn"]}, "flow is of a file or a module; leave it out here"),
    ],
)
def test_nothing_to_compare_with(against, more, sentence):
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        sl.verify(MODEL, against, **more)


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        sl.verify(MODEL, tmp_path / "none.onnx")
