"""The equations in plain NumPy float64: the definition, and the oracle of all tests.

LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000):

    i, f, o = sigmoid(W x + U h + b)    g = tanh(W x + U h + b)
    c' = f c + i g                      h' = o tanh(c')

Where the layer has them: to a gate's sum W x + U h is added p c, of gate o p c' (peepholes);
the sum s becomes norm (s - mean(s)) / sqrt(var(s) + 1e-8), over the gate's units, before b is
added (layer norm, with TFLite's constant); it is held within +-clip_gates before its function;
f = 1 - i or i = 1 - f (coupled gates); c' is held within +-clip_cell; and
h' = W_p (o tanh(c')) + b_p, held within +-clip_projection (projection).

GRU (Cho et al. 2014), with the reset after the product or before it:

    r, z = sigmoid(W x + U h + b)       h' = (1 - z) n + z h
    n = tanh(W x + b + r (U h + b_n))   or   n = tanh(W x + U (r h) + b)

A function without bounds (linear, relu) can make a cell grow for ever: what comes out of it and
c, h and r h behind it saturate at +-SATURATION. So do the sums that a layer norm takes. A layer's
input is the h' (or the output) of the layer below in the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm.layers import (
    GRU,
    LSTM,
    SATURATION,
    Activation,
    Dense,
    Embedding,
    Function,
    Layer,
    Recurrent,
)
from streamlstm.model import Model
from streamlstm.reference_head import Stream

Vector = NDArray[np.float64]
State = tuple[Vector, ...]  # (h, c), of a GRU (h,)
States = list[State]  # of each recurrent layer, in order

# TFLite, kernels/internal/tensor_utils: MeanStddevNormalization's constant.
NORM_EPSILON = 1e-8


def sigmoid(z: Any) -> Any:
    # Two forms, so that exp never overflows.
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


def softmax(z: Any) -> Any:
    e = np.exp(z - np.max(z))
    return e / e.sum()


FUNCTION: dict[Function, Callable[[Any], Any]] = {
    "linear": lambda z: z,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda z: np.maximum(z, 0),
    "hard_sigmoid": lambda z: np.clip(0.2 * z + 0.5, 0, 1),
    "hard_sigmoid6": lambda z: np.clip(z / 6 + 0.5, 0, 1),
    "softmax": softmax,
}


def held(a: Any, bound: float | None) -> Any:
    """a within +-bound, and within +-SATURATION."""
    limit = SATURATION if bound is None else min(bound, SATURATION)
    return np.clip(a, -limit, limit)


def lstm_step(layer: LSTM, x: Vector, h: Vector, c: Vector) -> State:
    """One step of one layer: x [inputs], h [P], c [H] -> h', c'."""
    u = layer.units
    sums = layer.w_x.astype(float) @ x + layer.w_h.astype(float) @ h
    blocks = {gate: slice(k * u, (k + 1) * u) for k, gate in enumerate(layer.gates)}
    peep = {gate: slice(k * u, (k + 1) * u) for k, gate in enumerate(layer.gates.replace("g", ""))}

    def gate(name: str, function: Function, seen: Vector) -> Any:
        z = sums[blocks[name]]
        if layer.peep is not None and name != "g":
            z = z + layer.peep[peep[name]] * seen
        if layer.norm is not None:
            z = held(z, None)
            z = (z - z.mean()) / np.sqrt(z.var() + NORM_EPSILON) * layer.norm[blocks[name]]
        z = z + layer.b[blocks[name]]
        if layer.clip_gates is not None:
            z = held(z, layer.clip_gates)
        return held(FUNCTION[function](z), None)

    if layer.coupled == "f":
        i = gate("i", layer.gate_function, c)
        f = 1 - i
    else:
        f = gate("f", layer.gate_function, c)
        i = 1 - f if layer.coupled else gate("i", layer.gate_function, c)
    c = held(f * c + i * gate("g", layer.candidate_function, c), layer.clip_cell)
    h = held(
        gate("o", layer.gate_function, c) * held(FUNCTION[layer.output_function](c), None), None
    )
    if layer.w_p is not None:
        h = held(layer.w_p.astype(float) @ h + _or_zero(layer.b_p), layer.clip_projection)
    return h, c


def gru_step(layer: GRU, x: Vector, h: Vector) -> State:
    """One step of one layer: x [inputs], h [H] -> h'."""

    def function(name: Function, z: Vector) -> Any:
        return held(
            FUNCTION[name](z if layer.clip_gates is None else held(z, layer.clip_gates)), None
        )

    x_r, x_z, x_n = np.split(layer.w_x.astype(float) @ x + layer.b, 3)
    u_r, u_z, u_n = np.split(layer.w_h.astype(float), 3)
    r = function(layer.gate_function, x_r + u_r @ h)
    z = function(layer.gate_function, x_z + u_z @ h)
    hidden = r * (u_n @ h + _or_zero(layer.b_n)) if layer.reset_after else u_n @ held(r * h, None)
    n = function(layer.candidate_function, x_n + hidden)
    return (held((1 - z) * n + z * h, None),)


def _or_zero(a: NDArray[Any] | None) -> Any:
    return 0.0 if a is None else a


def initial_states(model: Model) -> States:
    """What a session starts with: h0 and c0 of each recurrent layer, zeros where not learned."""

    def start(layer: Recurrent) -> Iterator[Vector]:
        for name, size in zip(("h0", "c0"), layer.state_sizes, strict=False):
            given = getattr(layer, name)
            yield np.zeros(size) if given is None else given.astype(float)

    return [tuple(start(layer)) for layer in model.recurrent]


def step(model: Model, states: States, event: ArrayLike) -> tuple[Vector, States]:
    """One event through all layers of a model without a head: event [inputs] -> outputs
    [outputs], new states."""
    scaling = [(f.mean, f.std) for f in model.inputs]
    mean, std = np.array(scaling).T
    a, new = network_step(model, states, (np.asarray(event, dtype=float) - mean) / std)
    mean, std = np.array([(f.mean, f.std) for f in model.outputs]).T
    return a * std + mean, new


def network_step(model: Model, states: States, a: Vector) -> tuple[Vector, States]:
    """The layers alone: scaled inputs -> scaled outputs, new states."""
    old = iter(states)
    new: States = []
    for layer in model.layers:
        a = _layer_step(layer, a, old, new)
    return a, new


def _layer_step(layer: Layer, a: Vector, old: Iterator[State], new: States) -> Vector:
    out: Vector
    match layer:
        case LSTM():
            new.append(lstm_step(layer, a, *next(old)))
            out = new[-1][0]
        case GRU():
            new.append(gru_step(layer, a, *next(old)))
            out = new[-1][0]
        case Dense():
            out = FUNCTION[layer.activation](layer.w.astype(float) @ a + layer.b)
        case Activation():
            out = FUNCTION[layer.function](a)
        case Embedding():
            out = layer.w[int(a[0])].astype(float)
        case _:
            raise TypeError(f"no equations for a {layer.kind} layer")
    return out


def stream(model: Model) -> Stream:
    """A new session of a model with a head."""
    states = initial_states(model)

    def network(x: Vector) -> Vector:
        nonlocal states
        y, states = network_step(model, states, x)
        return y

    assert model.head is not None
    return Stream(model.head, network)


def run(model: Model, events: ArrayLike, states: States | None = None) -> tuple[Vector, States]:
    """A sequence: events [time, inputs] -> outputs [time, outputs], states after it."""
    states = initial_states(model) if states is None else states
    events = np.asarray(events, dtype=float)
    outputs = np.empty((len(events), model.output_size))
    for t, event in enumerate(events):
        outputs[t], states = step(model, states, event)
    return outputs, states
