"""ONNX operators as layers: dense, scaling, activations, an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.onnx.axes import MOVING
from streamlstm.importers.onnx.cells import hard_sigmoid
from streamlstm.importers.onnx.flow import Flow, constant, floats, unproven
from streamlstm.importers.onnx.graph import FLOATS, Node
from streamlstm.layers import Activation, Dense, Embedding, Function
from streamlstm.wording import counted

Array = NDArray[Any]


def applied(node: Node, inputs: Sequence[Flow | Array | None]) -> Flow | Array:
    """The first output of `node`, one of whose inputs is a Flow, the others constants.

    Raises UnsupportedModelError for what streamlstm does not have, or can't prove.
    """
    flows = sum(isinstance(each, Flow) for each in inputs)
    if flows == 1 and node.op in OPERATORS:
        if isinstance(inputs[0], Flow):
            return OPERATORS[node.op](node, inputs[0], inputs[1:])
        if node.op in ("Add", "Mul", "Sub") and isinstance(inputs[1], Flow):
            turned = _arithmetic(node, inputs[1], inputs[:1])
            # c - y is -(y - c)
            return (
                turned.through(_scale(turned, -1.0, 0.0), turned.width or 1)
                if (node.op == "Sub")
                else turned
            )
        if node.op == "Gather" and isinstance(inputs[1], Flow):
            return _embedding(node, inputs[0], inputs[1])
    if flows > 1:
        raise UnsupportedModelError(
            f"{node} joins two paths through the network; streamlstm runs one after the other: "
            "select one recurrent layer"
        )
    raise UnsupportedModelError(
        f"{node} is an operator that streamlstm does not have; select one recurrent layer, "
        "or export without it"
    )


def _matmul(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    node.attributes()
    w = floats(node, constant(node, given))
    return dense(node, flow, w.T, np.zeros(w.shape[-1:], w.dtype))


def _gemm(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    a = node.attributes(alpha="float", beta="float", transA="int", transB="int", broadcast="int")
    if a.get("transA", 0):
        raise unproven(node, "has transA, which would make steps of the features")
    w = floats(node, constant(node, given))
    w = w if a.get("transB", 0) else w.T
    c = given[1] if len(given) > 1 and given[1] is not None else np.zeros(1, w.dtype)
    if w.ndim != 2 or (c.size > 1 and c.shape[-1] != c.size) or c.size not in (1, len(w)):
        raise unproven(node, f"has weights {list(w.shape)} and biases {list(c.shape)}")
    if len(flow.axes) != 2:
        axes = "1 axis" if len(flow.axes) == 1 else f"{len(flow.axes)} axes"
        raise unproven(node, f"takes {axes}; a Gemm takes 2")
    # In float64 where alpha or beta is not 1, else as they are.
    w = w if a.get("alpha", 1.0) == 1 else (w * float(a["alpha"])).astype(w.dtype)
    c = c if a.get("beta", 1.0) == 1 else (c * float(a["beta"])).astype(c.dtype)
    return dense(node, flow, w, np.broadcast_to(floats(node, c).ravel(), len(w)))


def dense(node: Node, flow: Flow, w: Array, b: Array) -> Flow:
    """The flow behind w [O, I] and b [O]. Raises UnsupportedModelError."""
    if w.ndim != 2 or not w.size:
        raise unproven(node, f"has weights {list(w.shape)}; expected a matrix")
    if not flow.has_features(-1) or flow.width not in (None, w.shape[1]):
        raise unproven(node, "sums over an axis that is not that of its features")
    flow = replace(flow, axes=(*flow.axes[:-1], "F"), width=len(w))
    return flow.through(Dense(w, b), len(w))


def _arithmetic(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    """Add, Sub, Mul and Div with a constant for each feature, or for all."""
    a = node.attributes(broadcast="int", axis="int") if node.opset < 7 else node.attributes()
    if a:
        raise unproven(node, "has axes of its own (operator set below 7)")
    c = floats(node, constant(node, given))
    long = [k - c.ndim for k, n in enumerate(c.shape) if n != 1]
    if c.ndim > len(flow.axes) or len(long) > 1 or (long and not flow.has_features(long[0])):
        raise unproven(node, f"has constants {list(c.shape)} that are not one for each feature")
    width = flow.width or max(c.size, 1)
    if c.size not in (1, width):
        raise unproven(node, f"has constants {list(c.shape)} for {counted(width, 'feature')}")
    c = c.ravel().astype(float)
    with np.errstate(divide="ignore"):  # what is infinite is refused with the layer
        pair = {"Add": (1.0, c), "Sub": (1.0, -c), "Mul": (c, 0.0), "Div": (1 / c, 0.0)}[node.op]
    flow = replace(flow, width=width)
    return flow.through(_scale(flow, *pair), width)


def _scale(flow: Flow, scale: Any, shift: Any) -> Scale:
    width = flow.width or 1
    return Scale(np.broadcast_to(scale, width), np.broadcast_to(shift, width))


def _batch_norm(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    a = node.attributes(
        epsilon="float", momentum="float", training_mode="int", spatial="int", is_test="int",
        consumed_inputs="ints",
    )  # fmt: skip
    trains = a.get("training_mode", 0) or (node.opset < 7 and not a.get("is_test", 0))
    if trains or not a.get("spatial", 1) or sum(bool(o) for o in node.proto.output) > 1:
        raise unproven(node, "is a batch normalisation in training, or not for each channel")
    if len(flow.axes) < 2 or not flow.has_features(1):
        raise unproven(node, "normalises an axis that is not that of its features")
    gamma, beta, mean, variance = (floats(node, constant(node, given, k)) for k in range(4))
    shapes = {each.shape for each in (gamma, beta, mean, variance)}
    if len(shapes) > 1 or mean.ndim != 1 or flow.width not in (None, mean.size):
        raise unproven(node, "has no four numbers for each feature")
    scale = Scale.batch_norm(mean, variance, gamma, beta, a.get("epsilon", 1e-5))
    return flow.through(scale, mean.size)


def _activation(node: Node, flow: Flow, _: Sequence[Any]) -> Flow:
    function: Function
    if node.op == "HardSigmoid":
        a = node.attributes(alpha="float", beta="float", consumed_inputs="ints")
        function = hard_sigmoid(node, a.get("alpha", 0.2), a.get("beta", 0.5))
    elif node.op == "Softmax":
        axis = node.attributes(axis="int").get("axis", -1 if node.opset >= 13 else 1)
        # Below 13 it goes over all axes from this one on: the same for the last one.
        if axis not in (-1, len(flow.axes) - 1) or not flow.has_features(-1):
            raise unproven(node, "goes over an axis that is not the last one, of its features")
        function = "softmax"
    else:
        node.attributes(consumed_inputs="ints")
        function = {"Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu"}[node.op]  # type: ignore[assignment]
    flow.sizes(node)  # of an open width there is no layer
    width = flow.width or 1
    return flow.through(Activation(function, width), width)


def _embedding(node: Node, table: Any, flow: Flow) -> Flow:
    """Rows of a table by the events, which are whole numbers."""
    if not isinstance(table, np.ndarray) or table.ndim != 2 or flow.dtype in FLOATS or flow.layers:
        raise unproven(node, "looks up what is no embedding of the events")
    if node.attributes(axis="int").get("axis", 0) != 0:
        raise unproven(node, "looks up columns; expected rows")
    layer = Embedding(floats(node, table))
    return replace(
        flow, layers=(layer,), axes=(*flow.axes, "F"), width=layer.output_size, dtype=FLOATS[0]
    )


OPERATORS: dict[str, Callable[[Node, Flow, Sequence[Any]], Flow | Array]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("Tanh", "Sigmoid", "Relu", "HardSigmoid", "Softmax"), _activation),
    **MOVING,
}
