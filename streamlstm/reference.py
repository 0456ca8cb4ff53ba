"""The equations in plain NumPy float64: the definition, and the oracle of all tests.

    i, f, o = sigmoid(W x + U h + b)    g = tanh(W x + U h + b)
    c' = f c + i g                      h' = o tanh(c')

(Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.) A stacked
layer's input is the h' of the layer below in the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm.model import LSTM, Activation, Layer, Model

Vector = NDArray[np.float64]
States = list[tuple[Vector, Vector]]  # (h, c) of each LSTM layer, in order


def sigmoid(z: Any) -> Any:
    # Two forms, so that exp never overflows.
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


ACTIVATION: dict[Activation, Callable[[Any], Any]] = {
    "linear": lambda z: z,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda z: np.maximum(z, 0),
}


def lstm_step(layer: LSTM, x: Vector, h: Vector, c: Vector) -> tuple[Vector, Vector]:
    """One step of one layer: x [inputs], h [H], c [H] -> h', c'."""
    z = layer.w_x.astype(float) @ x + layer.w_h.astype(float) @ h + layer.b
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def initial_states(model: Model) -> States:
    """What a session starts with: h0 and c0 of each LSTM layer, zeros where not learned."""

    def start(layer: LSTM, a: NDArray[Any] | None) -> Vector:
        return np.zeros(layer.units) if a is None else a.astype(float)

    return [(start(m, m.h0), start(m, m.c0)) for m in model.layers if isinstance(m, LSTM)]


def step(model: Model, states: States, event: ArrayLike) -> tuple[Vector, States]:
    """One event through all layers: event [inputs] -> outputs [outputs], new states."""
    scaling = [(f.mean, f.std) for f in model.inputs]
    mean, std = np.array(scaling).T
    a = (np.asarray(event, dtype=float) - mean) / std
    old = iter(states)
    new: States = []
    for layer in model.layers:
        a = _layer_step(layer, a, old, new)
    mean, std = np.array([(f.mean, f.std) for f in model.outputs]).T
    return a * std + mean, new


def _layer_step(layer: Layer, a: Vector, old: Any, new: States) -> Vector:
    if isinstance(layer, LSTM):
        new.append(lstm_step(layer, a, *next(old)))
        return new[-1][0]
    out: Vector = ACTIVATION[layer.activation](layer.w.astype(float) @ a + layer.b)
    return out


def run(model: Model, events: ArrayLike, states: States | None = None) -> tuple[Vector, States]:
    """A sequence: events [time, inputs] -> outputs [time, outputs], states after it."""
    states = initial_states(model) if states is None else states
    events = np.asarray(events, dtype=float)
    outputs = np.empty((len(events), model.output_size))
    for t, event in enumerate(events):
        outputs[t], states = step(model, states, event)
    return outputs, states
