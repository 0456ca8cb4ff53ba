"""Folding changes the layers, never the answers."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamlstm as sl
from fake_source import FakeSource
from networks import dense, lstm, stacked
from streamlstm import reference
from streamlstm.errors import ModelError, UnsupportedModelError
from streamlstm.importers import model_of
from streamlstm.importers.fold import Scale, folded, leading
from streamlstm.layers import FUNCTIONS, Layer

SIZES = st.integers(1, 6)


def scale(rng: np.random.Generator, size: int) -> Scale:
    return Scale(rng.uniform(0.3, 2, size), rng.uniform(-1, 1, size))


def gru(rng: np.random.Generator, inputs: int, units: int, reset_after: bool) -> sl.GRU:
    shapes = ((3 * units, inputs), (3 * units, units), (3 * units,))
    return sl.GRU(*(rng.uniform(-0.5, 0.5, shape) for shape in shapes), reset_after=reset_after)


@st.composite
def flows(draw: st.DrawFn) -> list[Layer | Scale]:
    """Float64 layers with scales and activations anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = st.sampled_from(["lstm", "normed", "gru", "dense", "scale", "activation"])
    width = draw(SIZES)
    out: list[Layer | Scale] = []
    if draw(st.booleans()):
        out.append(sl.Embedding(rng.uniform(-1, 1, (5, width))))
    for kind in [*draw(st.lists(kinds, max_size=5)), "lstm", *draw(st.lists(kinds, max_size=5))]:
        units = width if kind in ("scale", "activation") else draw(SIZES)
        if kind in ("lstm", "normed"):
            layer = lstm(rng, width, units)
            norm = rng.uniform(0.5, 2, 4 * units) if kind == "normed" else None
            out.append(replace(layer, norm=norm))
        elif kind == "gru":
            out.append(gru(rng, width, units, draw(st.booleans())))
        elif kind == "dense":
            out.append(dense(rng, width, units, draw(st.sampled_from(FUNCTIONS))))
        elif kind == "scale":
            out.append(scale(rng, width))
        else:
            out.append(sl.Activation(draw(st.sampled_from(FUNCTIONS)), width))
        width = units
    return out


@pytest.mark.untraced
@given(flows())
def test_the_same_answers(flow):
    plain = [
        sl.Dense(np.diag(layer.scale), layer.shift) if isinstance(layer, Scale) else layer
        for layer in flow
    ]
    want, got = sl.Model(plain), sl.Model(folded(flow))
    rng = np.random.default_rng(0)
    whole = rng.integers(0, want.vocabulary or 1, (20, 1)).astype(float)
    x = whole if want.vocabulary else rng.standard_normal((20, want.input_size))
    np.testing.assert_allclose(
        reference.run(got, x)[0], reference.run(want, x)[0], rtol=1e-9, atol=1e-9
    )


rng = np.random.default_rng(1)
LSTM_4 = lstm(rng, 4, 4)
NORMED = replace(LSTM_4, norm=np.ones(16))
LINEAR, RELU = dense(rng, 4, 4), dense(rng, 4, 4, "relu")
TANH = sl.Activation("tanh", 4)
S = scale(rng, 4)


def kinds(layers: list[Layer]) -> list[str]:
    return [f"{m.kind} {m.activation}" if isinstance(m, sl.Dense) else m.kind for m in layers]


@pytest.mark.parametrize(
    ("flow", "want"),
    [
        ([S, LSTM_4], ["lstm"]),
        ([S, S, gru(rng, 4, 4, True)], ["gru"]),
        ([S, RELU, LSTM_4], ["dense relu", "lstm"]),
        ([LSTM_4, LINEAR, S, TANH], ["lstm", "dense tanh"]),
        ([LSTM_4, LINEAR, sl.Activation("linear", 4), S], ["lstm", "dense linear"]),
        ([sl.Embedding(LINEAR.w), S, LSTM_4], ["embedding", "lstm"]),
        ([LSTM_4, RELU, S], ["lstm", "dense relu", "dense linear"]),
        ([LSTM_4, RELU, TANH], ["lstm", "dense relu", "activation"]),
        ([LSTM_4, S, TANH], ["lstm", "dense tanh"]),
        ([LSTM_4, TANH, S, LINEAR], ["lstm", "activation", "dense linear"]),
        # The shift would be normalised away.
        ([S, NORMED], ["dense linear", "lstm"]),
    ],
)
def test_what_takes_a_scale_in(flow, want):
    assert kinds(folded(flow)) == want


def test_batch_norm_is_the_papers():
    x, mean, beta = rng.standard_normal((3, 4))
    variance, gamma = rng.uniform(0.1, 2, (2, 4))
    got = Scale.batch_norm(mean, variance, gamma, beta, 1e-3)
    want = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(got.scale * x + got.shift, want)
    got = Scale.batch_norm(mean, variance, 1, 0, 1e-3)
    np.testing.assert_allclose(got.scale * x + got.shift, (x - mean) / np.sqrt(variance + 1e-3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("flow", [[S, LSTM_4], [LSTM_4, TANH, S], [LSTM_4, S], [S, NORMED]])
def test_the_layers_dtype_stays(flow, dtype):
    cast = [
        replace(m, **{name: a.astype(dtype) for name, a in m.tensors().items()})
        if isinstance(m, Layer)
        else m
        for m in flow
    ]
    assert sl.Model(folded(cast)).dtype == dtype


def batch_norm(**changed):
    ones = {name: np.ones(4) for name in ("mean", "variance", "gamma", "beta")}
    return Scale.batch_norm(**(ones | changed), epsilon=1e-3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Scale(np.ones(1), np.ones(4)),
            "a batch normalisation's tensors don't fit each other (scale [1], shift [4]): "
            "each has one number for each feature",
        ),
        (lambda: Scale(np.ones((2, 2)), np.ones((2, 2))), "(scale [2, 2], shift [2, 2])"),
        (
            lambda: batch_norm(gamma=np.ones(3)),
            "(mean [4], variance [4], gamma [3], beta [4])",
        ),
        (lambda: batch_norm(mean=np.ones(1)), "(mean [1], variance [4], gamma [4], beta [4])"),
        (
            lambda: folded([LSTM_4, Scale(np.ones(1), np.ones(1))]),
            "a layer gives 4 numbers where the next takes 1; "
            "one of the two is a batch normalisation",
        ),
        (lambda: folded([Scale(np.ones(5), np.ones(5)), LSTM_4]), "gives 5 numbers where"),
        (lambda: folded([S, Scale(np.ones(1), np.ones(1)), LSTM_4]), "gives 4 numbers where"),
    ],
)
def test_what_does_not_fit_is_refused(make, sentence):
    with pytest.raises(UnsupportedModelError, match=re.escape(sentence)):
        make()


def test_an_activation_of_another_size_is_left_to_the_model():
    with pytest.raises(ModelError, match="layer 2 takes 3 inputs, but layer 1 gives 4 outputs"):
        sl.Model(folded([LSTM_4, LINEAR, sl.Activation("relu", 3)]))


@pytest.mark.parametrize(
    "bad", [batch_norm(variance=np.full(4, -1.0)), Scale(np.full(4, 1e300), np.ones(4))]
)
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(ModelError, match="w_x is empty or not finite in float32"):
        sl.Model(folded([bad, replace(LSTM_4, w_x=LSTM_4.w_x.astype("float32"))]), dtype="float32")


# --- at the start of a network ---


class Normalising(FakeSource):
    """A network that takes a mean away first, and divides by a std; its framework does so in
    float64."""

    mean = np.array([101325.0, 300.0, 5.0])
    std = np.array([20.0, 5.0, 1.0])

    def network(self):
        first = Scale(np.ones(3, "f4"), -self.mean.astype("f4"))
        return [first, Scale(1 / self.std, np.zeros(3)), *super().network()]

    def answers(self, x, select):  # noqa: ARG002
        assert np.abs((x - self.mean) / self.std).max() < 10
        return reference.run(self.model, (x - self.mean) / self.std)[0]


@pytest.mark.parametrize("std", [1.0, 4.0])
def test_what_is_done_to_events_first_becomes_the_inputs_scaling(std):
    """Folded into the weights, the mean would be the difference of two large sums in float32."""
    source = Normalising(stacked(outputs=1))
    inputs = [sl.Feature(name, "kPa", std=std) for name in "abc"]
    model = model_of(source, inputs=inputs)
    assert [f.name for f in model.inputs] == ["a", "b", "c"]
    np.testing.assert_allclose([f.mean for f in model.inputs], std * source.mean, rtol=1e-15)
    np.testing.assert_allclose([f.std for f in model.inputs], std * source.std, rtol=1e-15)
    proof = sl.verify(model, source)
    assert proof.largest < 1e-6
    assert np.ptp(proof.y) > 0.1  # the events are where the network looks


@pytest.mark.parametrize("scale", [-1.0, 0.0, np.inf])
def test_scaling_that_no_std_can_say_is_folded(scale):
    first = Scale(np.array([1.0, scale, 1.0]), np.zeros(3))
    layers = [first, *stacked().layers]
    assert leading(layers) == (None, layers)


def test_a_scaling_of_another_size_is_refused():
    source = FakeSource(stacked())
    source.network = lambda: [Scale(np.ones(2), np.zeros(2)), *stacked().layers]
    with pytest.raises(UnsupportedModelError, match="2 numbers where the first layer takes"):
        model_of(source)
