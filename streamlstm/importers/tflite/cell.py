"""TensorFlow Lite's LSTM operators as our layer.

The tensors' places are those of tensorflow/lite/kernels/lstm_shared.h, their meaning that of
lstm_eval.cc: a missing input gate is 1 - f ("CIFG"); peepholes are added before the layer
norm, the bias after it; cell_clip bounds c, proj_clip the projected h, and 0 means no bound;
the fused activation is g's function and the one of c on its way to h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.gate_orders import canonical
from streamlstm.importers.tflite.file import Graph, Operator
from streamlstm.layers import LSTM, Function
from streamlstm.wording import counted

Array = NDArray[Any]

# Places of the gates' tensors, in the table's order, i and then the others.
W_X, W_H, PEEP, B = (1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11), (12, 13, 14, 15)
W_P, B_P, STATES, NORM = 16, 17, (18, 19), (20, 21, 22, 23)
PLACES = 24
# Not NONE: ApplyActivationToVector then leaves its output unwritten, and c would not get to h.
FUNCTION: dict[str, Function] = {"RELU": "relu", "TANH": "tanh"}


def lstm(graph: Graph, op: Operator) -> LSTM:
    """The layer of an LSTM (full kernel) or UNIDIRECTIONAL_SEQUENCE_LSTM operator.

    Raises UnsupportedModelError.
    """
    _check(graph, op)
    coupled = _tensor(graph, op, W_X[0]) is None
    named = {"w_x": W_X, "w_h": W_H, "peep": PEEP, "b": B, "norm": NORM}
    found = {name: _gates(graph, op, places, coupled) for name, places in named.items()}
    w_p, b_p = _tensor(graph, op, W_P), _tensor(graph, op, B_P)
    if found["w_x"] is None or found["w_h"] is None or found["b"] is None:
        raise UnsupportedModelError(f"{op} lacks weights or biases; is the file damaged?")
    if w_p is None and b_p is not None:
        raise UnsupportedModelError(f"{op} has a projection's bias and no projection")
    function = graph.function(op)
    if function not in FUNCTION:
        raise UnsupportedModelError(
            f"{op} has activation {function}; {' and '.join(FUNCTION)} can be imported"
        )
    cell, projection = (_clip(op, name) for name in ("cellClip", "projClip"))
    layer = LSTM(
        **found,  # type: ignore[arg-type]
        w_p=w_p,
        b_p=b_p,
        coupled="i" if coupled else "",
        candidate_function=FUNCTION[function],
        output_function=FUNCTION[function],
        clip_cell=cell,
        clip_projection=None if w_p is None else projection,
    )
    _check_shapes(op, layer)
    return layer


def _check(graph: Graph, op: Operator) -> None:
    if op.name == "LSTM" and op.option("kernelType") != 0:
        raise UnsupportedModelError(
            f"{op} is of the basic kernel, whose states are the graph's own inputs; convert the "
            "network anew, or import the file that it came from"
        )
    if op.name != "LSTM" and op.option("diagonalRecurrentTensors"):
        raise UnsupportedModelError(f"{op} has diagonal recurrent weights, which we don't have")
    if len(op.inputs) not in (20, PLACES) or len(op.outputs) != 1:
        raise UnsupportedModelError(
            f"{op} has {counted(len(op.inputs), 'input')} and "
            f"{counted(len(op.outputs), 'output')}; expected 20 or 24, and 1"
        )
    for place in STATES:
        state = op.inputs[place]
        if state < 0 or not graph.is_variable(state) or graph.users(state) != 1:
            raise UnsupportedModelError(
                f"{op} has a state (input {place}) that is not a variable of its own"
            )
        start = graph.constant(state)
        if (start is None and graph.producer(state) is not None) or (
            start is not None and start.any()
        ):
            raise UnsupportedModelError(
                f"{op} has a state (input {place}) that does not start at zero"
            )


def _tensor(graph: Graph, op: Operator, place: int) -> Array | None:
    """A weight; None where the operator has none."""
    if place >= len(op.inputs) or op.inputs[place] < 0:
        return None
    a = graph.constant(op.inputs[place])
    if a is None or a.dtype != np.float32:
        raise UnsupportedModelError(
            f"{op} has an input {place} that is no constant of real numbers, as weights must be"
        )
    return a


def _gates(graph: Graph, op: Operator, places: Sequence[int], coupled: bool) -> Array | None:
    """The tensors of all gates as one, gates in our order; None where there are none."""
    kind = "peepholes" if len(places) == 3 else "lstm"
    first, *rest = (_tensor(graph, op, place) for place in places)
    if first is None and all(a is None for a in rest):
        return None
    found = [a for a in rest if a is not None]
    if len(found) < len(rest) or (first is None) != coupled:
        raise UnsupportedModelError(
            f"{op} has only some of the inputs {places[0]} to {places[-1]}, one for each gate"
        )
    # A stand-in for i, so that every gate has its block.
    blocks = [found[0] if first is None else first, *found]
    if len({a.shape for a in blocks}) != 1 or not blocks[0].size or not blocks[0].ndim:
        raise UnsupportedModelError(
            f"{op} has inputs {places[0]} to {places[-1]} of different shapes"
        )
    wanted = ("fo" if kind == "peepholes" else "fgo") if coupled else ""
    return canonical(np.concatenate(blocks), "tflite", kind, wanted)


def _clip(op: Operator, name: str) -> float | None:
    clip = float(op.option(name))
    if not 0 <= clip < np.inf:
        raise UnsupportedModelError(f"{op} has {name} {clip}; expected 0 (none) or more")
    return clip or None


def _check_shapes(op: Operator, layer: LSTM) -> None:
    if layer.w_x.ndim != 2 or layer.w_h.ndim != 2:
        raise UnsupportedModelError(f"{op} has weights that are no matrices")
    for name, a in layer.tensors().items():
        if a.shape != layer.shapes()[name]:
            raise UnsupportedModelError(
                f"{op} has sizes that don't fit: its {name} is {a.shape}, "
                f"expected {layer.shapes()[name]}"
            )
