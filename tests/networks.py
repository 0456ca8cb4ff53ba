"""Random networks and events for the tests, at the scale that training leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamlstm import GRU, LSTM, Activation, Dense, Embedding, Feature, Model
from streamlstm.layers import FUNCTIONS, UNBOUNDED

Array = NDArray[Any]

# Functions of gates with which errors don't grow without bound.
BOUNDED = [f for f in FUNCTIONS if f not in (*UNBOUNDED, "softmax")]

# Error allowed of h and outputs, and of c (relative + absolute), against float64.
H_ERROR = {"float32": 1e-5, "float64": 1e-11}
C_ERROR = {"float32": {"rtol": 1e-5, "atol": 1e-4}, "float64": {"rtol": 1e-11, "atol": 1e-11}}


def lstm(rng: np.random.Generator, inputs: int, units: int, *, learned_start: bool = False) -> LSTM:
    """An LSTM layer with weights at PyTorch's default scale, U(-1/sqrt(H), 1/sqrt(H))."""
    k = units**-0.5
    w_x, w_h, b = (
        rng.uniform(-k, k, shape) for shape in ((4 * units, inputs), (4 * units, units), 4 * units)
    )
    if not learned_start:
        return LSTM(w_x, w_h, b)
    return LSTM(w_x, w_h, b, h0=rng.uniform(-1, 1, units), c0=rng.uniform(-2, 2, units))


def dense(rng: np.random.Generator, inputs: int, units: int, activation: str = "linear") -> Dense:
    """A dense layer with weights at PyTorch's default scale, U(-1/sqrt(I), 1/sqrt(I))."""
    k = inputs**-0.5
    return Dense(rng.uniform(-k, k, (units, inputs)), rng.uniform(-k, k, units), activation)  # type: ignore[arg-type]


def lstm_with(rng: np.random.Generator, inputs: int, units: int, **chosen: Any) -> LSTM:
    """An LSTM layer with some of all options, drawn by `rng`; chosen: those that are given."""

    def drawn(option: str, make: Any) -> dict[str, Any]:
        if option in chosen:
            return {option: chosen[option]}
        return {option: make()} if rng.random() < 0.3 else {}

    def weights(*shape: int) -> Array:
        return rng.uniform(-(units**-0.5), units**-0.5, shape)

    coupled = str(drawn("coupled", lambda: rng.choice(["i", "f"])).get("coupled", ""))
    gates = 3 if coupled else 4
    options = drawn("w_p", lambda: weights(int(rng.integers(1, 2 * units + 1)), units))
    outputs = len(options["w_p"]) if options else units
    if options:
        options |= drawn("b_p", lambda: weights(outputs)) | drawn("clip_projection", lambda: 0.1)
    options |= drawn("peep", lambda: rng.uniform(-1, 1, (gates - 1) * units))
    # Over a few units a norm can divide by almost nothing.
    if units >= 8:
        options |= drawn("norm", lambda: rng.uniform(0.5, 1.5, gates * units))
    options |= drawn("clip_gates", lambda: 0.5) | drawn("clip_cell", lambda: 0.3)
    options |= drawn("h0", lambda: rng.uniform(-1, 1, outputs))
    options |= drawn("c0", lambda: rng.uniform(-2, 2, units))
    for name in ("gate_function", "candidate_function", "output_function"):
        options |= drawn(name, lambda: str(rng.choice(BOUNDED)))
    rows = gates * units
    return LSTM(
        weights(rows, inputs), weights(rows, outputs), weights(rows), coupled=coupled, **options
    )


def gru(rng: np.random.Generator, inputs: int, units: int, *, reset_after: bool = True) -> GRU:
    """A GRU layer with weights at PyTorch's default scale and a start of its own."""
    k = units**-0.5
    w_x, w_h, b, b_n, h0 = (
        rng.uniform(-k, k, s)
        for s in ((3 * units, inputs), (3 * units, units), 3 * units, units, units)
    )
    return GRU(w_x, w_h, b, b_n if reset_after else None, h0, reset_after=reset_after)


def stacked(
    inputs: int = 3,
    units: int = 8,
    layers: int = 1,
    outputs: int | None = None,
    *,
    dtype: str = "float32",
    seed: int = 0,
) -> Model:
    """`layers` LSTM layers of `units`, under a linear layer where `outputs` is given."""
    rng = np.random.default_rng(seed)
    made: list[Any] = [lstm(rng, units if k else inputs, units) for k in range(layers)]
    if outputs is not None:
        made.append(dense(rng, units, outputs))
    return Model(made, dtype=dtype)


def events(model: Model, *shape: int, seed: int = 0) -> Array:
    """Random events [*shape, inputs] in the units and dtype of the model."""
    mean, std = np.array([(f.mean, f.std) for f in model.inputs]).T
    rng = np.random.default_rng(seed)
    if model.vocabulary:
        return rng.integers(0, model.vocabulary, (*shape, 1)).astype(model.dtype)
    x = mean + std * rng.standard_normal((*shape, model.input_size))
    return x.astype(model.dtype)


RECURRENT = ("lstm", "lstm with", "gru")


@st.composite
def models(draw: st.DrawFn, max_units: int = 24) -> Model:
    """Recurrent layers among others, any options, any sizes from 1, scaled or not, either dtype;
    some behind an embedding."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = st.integers(1, max_units)
    kinds = draw(
        st.lists(st.sampled_from([*RECURRENT, "activation", *FUNCTIONS]), min_size=1, max_size=4)
        .filter(lambda kinds: not set(kinds).isdisjoint(RECURRENT))
        .map(lambda kinds: kinds if kinds[0] != "activation" else kinds[::-1])
    )
    made: list[Any] = []
    width = inputs = draw(sizes)
    embedded = draw(st.integers(0, 3)) == 0
    if embedded:
        made.append(Embedding(rng.uniform(-1, 1, (draw(sizes), width))))
        inputs = 1
    for kind in kinds:
        units = draw(sizes)
        match kind:
            case "lstm":
                made.append(lstm(rng, width, units, learned_start=draw(st.booleans())))
            case "lstm with":
                made.append(lstm_with(rng, width, units))
            case "gru":
                made.append(gru(rng, width, units, reset_after=draw(st.booleans())))
            case "activation":
                made.append(Activation(draw(st.sampled_from(FUNCTIONS)), width))
            case _:
                made.append(dense(rng, width, units, kind))
        width = made[-1].output_size
    scaled = draw(st.booleans())

    def features(letter: str, count: int) -> list[Feature] | None:
        if not scaled:
            return None
        scales = zip(rng.uniform(-20, 20, count), 10 ** rng.uniform(-1, 2, count), strict=True)
        return [Feature(f"{letter}{k}", "m", mean, std) for k, (mean, std) in enumerate(scales)]

    return Model(
        made,
        inputs=None if embedded else features("in", inputs),
        outputs=features("out", width),
        dtype=draw(st.sampled_from(["float32", "float64"])),
    )
