"""Random networks and events for the tests, at the scale that training leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamlstm import LSTM, Dense, Feature, Model
from streamlstm.model import ACTIVATIONS

Array = NDArray[Any]

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
    x = mean + std * rng.standard_normal((*shape, model.input_size))
    return x.astype(model.dtype)


@st.composite
def models(draw: st.DrawFn, max_units: int = 24) -> Model:
    """LSTM layers among dense ones, any sizes from 1, scaled or not, either dtype."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = st.integers(1, max_units)
    kinds = draw(
        st.lists(st.sampled_from(["lstm", *ACTIVATIONS]), min_size=1, max_size=4).filter(
            lambda kinds: "lstm" in kinds
        )
    )
    made: list[Any] = []
    width = inputs = draw(sizes)
    for kind in kinds:
        units = draw(sizes)
        if kind == "lstm":
            made.append(lstm(rng, width, units, learned_start=draw(st.booleans())))
        else:
            made.append(dense(rng, width, units, kind))
        width = units
    scaled = draw(st.booleans())

    def features(letter: str, count: int) -> list[Feature] | None:
        if not scaled:
            return None
        scales = zip(rng.uniform(-20, 20, count), 10 ** rng.uniform(-1, 2, count), strict=True)
        return [Feature(f"{letter}{k}", "m", mean, std) for k, (mean, std) in enumerate(scales)]

    return Model(
        made,
        inputs=features("in", inputs),
        outputs=features("out", width),
        dtype=draw(st.sampled_from(["float32", "float64"])),
    )
