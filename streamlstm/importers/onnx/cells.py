"""LSTM and GRU nodes of ONNX as layers.

The operators' spec (onnx/docs/Operators.md: LSTM, GRU) and, where it leaves room, what
onnxruntime does (compared by experiment with its 1.32, tests/parity/test_onnx.py):
- clip holds each gate's whole sum, after bias and peephole, and that of g; not c, and not the
  c that goes through h's function, which the spec leaves open.
- input_forget: f = 1 - i, the f block of W, R, B and P is not looked at.
- activation_alpha and _beta go in order to those activations only that have one (HardSigmoid);
  the others take none from the list.
- activations may be written in any case.
DynamicQuantizeLSTM (onnxruntime/docs/ContribOperators.md): W and R are 8-bit, transposed, with
a scale and zero point for all numbers or for each column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.gate_orders import canonical
from streamlstm.importers.onnx.graph import Node
from streamlstm.layers import GRU, LSTM, Function, Recurrent
from streamlstm.wording import counted

Array = NDArray[Any]

QUANTIZED = "com.microsoft.DynamicQuantizeLSTM"
LSTM_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
# Inputs by place, and outputs, of what keeps a state from step to step.
INPUTS = {
    "LSTM": LSTM_INPUTS,
    "GRU": LSTM_INPUTS[:6],
    "RNN": LSTM_INPUTS[:6],
    QUANTIZED: (*LSTM_INPUTS, "W_scale", "W_zero_point", "R_scale", "R_zero_point"),
    "com.microsoft.AttnLSTM": LSTM_INPUTS,
}
OURS = ("LSTM", "GRU", QUANTIZED)
WEIGHTS = ("W", "R", "B", "P", "W_scale", "W_zero_point", "R_scale", "R_zero_point")
GATES = {"LSTM": 4, QUANTIZED: 4, "GRU": 3}
ATTRIBUTES = {
    "activation_alpha": "floats",
    "activation_beta": "floats",
    "activations": "strings",
    "clip": "float",
    "direction": "string",
    "hidden_size": "int",
}
OWN_ATTRIBUTES = {
    "LSTM": {"input_forget": "int", "layout": "int", "output_sequence": "int"},
    "GRU": {"linear_before_reset": "int", "layout": "int", "output_sequence": "int"},
    QUANTIZED: {"input_forget": "int"},
}
NAMED: dict[str, Function] = {"tanh": "tanh", "sigmoid": "sigmoid", "relu": "relu"}


@dataclass(frozen=True, eq=False)
class Cell:
    """A node's layer (starting from zeros), and whether its sequences are [B, T, I]."""

    layer: Recurrent
    batch_first: bool


def text(node: Node, weights: Mapping[str, Array | None]) -> str:
    """Kind and sizes, as far as they can be seen, such as "LSTM 32 -> 128"."""
    kind = node.op.rpartition(".")[2]
    w, r = weights.get("W"), weights.get("R")
    if w is None or r is None or w.ndim != 3 or r.ndim != 3:
        return kind
    quantized = node.op == QUANTIZED
    both = " in both directions" if len(w) == 2 else ""
    return f"{kind} {w.shape[1 if quantized else 2]} -> {r.shape[1 if quantized else 2]}{both}"


def cell(node: Node, weights: Mapping[str, Array | None]) -> Cell:
    """The layer of `node`, whose inputs `weights` has by name (WEIGHTS; None where not given).

    Raises UnsupportedModelError.
    """
    if node.op not in OURS:
        raise UnsupportedModelError(
            f"{node} is neither an LSTM nor a GRU, and streamlstm has no other recurrent layer; "
            "train with one of these"
        )
    given = node.attributes(**ATTRIBUTES, **OWN_ATTRIBUTES[node.op])
    direction = given.get("direction", "forward")
    if direction != "forward":
        raise UnsupportedModelError(
            f"{node} has direction {direction!r}, which needs the future and can't be streamed; "
            "train with a forward one"
        )
    layout = given.get("layout", 0)
    if layout not in (0, 1):
        raise UnsupportedModelError(f"{node} has layout {layout}; known are 0 and 1")
    if node.op == QUANTIZED:
        weights = {**weights, "W": _dequantized(node, weights, "W")} | {
            "R": _dequantized(node, weights, "R")
        }
    arrays = _matrices(node, weights)
    units = arrays[1].shape[1]
    if given.get("hidden_size", units) != units:
        raise UnsupportedModelError(
            f"{node} has hidden_size {given['hidden_size']}, but R is for "
            f"{counted(units, 'unit')}; the file is damaged"
        )
    if node.op == "GRU":
        return Cell(_gru(node, given, arrays), bool(layout))
    return Cell(_lstm(node, given, arrays, weights.get("P")), bool(layout))


def _matrices(node: Node, weights: Mapping[str, Array | None]) -> tuple[Array, Array, Array]:
    """W [GH, I], R [GH, H] and B [2GH] of the one direction, in floats."""
    gates = GATES[node.op]
    w, r, b = (weights.get(name) for name in "WRB")
    for name, a in (("W", w), ("R", r)):
        if a is None or a.ndim != 3 or a.dtype.kind != "f" or not a.size:
            raise UnsupportedModelError(
                f"{name} of {node} is no array of floats [1, {gates}H, ...]; the file is damaged"
            )
    assert w is not None
    assert r is not None
    rows = gates * r.shape[2]
    b = np.zeros((1, 2 * rows), w.dtype) if b is None else b
    for name, a, shape in (
        ("W", w, (1, rows, w.shape[2])),
        ("R", r, (1, rows, r.shape[2])),
        ("B", b, (1, 2 * rows)),
    ):
        _check(node, name, a, shape)
    return w[0], r[0], b[0]


def _check(node: Node, name: str, a: Array, shape: tuple[int, ...]) -> None:
    if a.shape != shape or a.dtype.kind != "f":
        raise UnsupportedModelError(
            f"{name} of {node} is {a.dtype} {list(a.shape)}, expected floats {list(shape)}; "
            "the file is damaged"
        )


def _lstm(node: Node, given: dict[str, Any], arrays: Sequence[Array], p: Array | None) -> LSTM:
    w, r, b = arrays
    coupled = given.get("input_forget", 0)
    if coupled not in (0, 1):
        raise UnsupportedModelError(f"{node} has input_forget {coupled}; known are 0 and 1")
    f, g, h = _activations(node, given, ("Sigmoid", "Tanh", "Tanh"))
    gates, peepholes = ("igo", "io") if coupled else ("ifgo", "ifo")
    if p is not None:
        _check(node, "P", p, (1, 3 * r.shape[1]))
    b_w, b_r = (canonical(half, "onnx", "lstm", gates) for half in np.split(b, 2))
    return LSTM(
        canonical(w, "onnx", "lstm", gates),
        canonical(r, "onnx", "lstm", gates),
        b_w + b_r,
        peep=None if p is None else canonical(p[0], "onnx", "peepholes", peepholes),
        coupled="f" if coupled else "",
        gate_function=f,
        candidate_function=g,
        output_function=h,
        clip_gates=_clip(node, given),
    )


def _gru(node: Node, given: dict[str, Any], arrays: Sequence[Array]) -> GRU:
    w, r, b = arrays
    f, g = _activations(node, given, ("Sigmoid", "Tanh"))
    b_w, b_r = (canonical(half, "onnx", "gru") for half in np.split(b, 2))
    layer = GRU(
        canonical(w, "onnx", "gru"),
        canonical(r, "onnx", "gru"),
        b_w + b_r,
        # Any number but 0 (onnxruntime, deep_cpu_gru.h).
        reset_after=bool(given.get("linear_before_reset", 0)),
        gate_function=f,
        candidate_function=g,
        clip_gates=_clip(node, given),
    )
    if not layer.reset_after:
        return layer
    n = slice(2 * r.shape[1], None)
    b = layer.b.copy()
    b[n] = b_w[n]
    return replace(layer, b=b, b_n=b_r[n])


def _clip(node: Node, given: dict[str, Any]) -> float | None:
    clip = given.get("clip")
    if clip is not None and not 0 < clip < np.inf:
        raise UnsupportedModelError(f"{node} has clip {clip}; expected a number above 0")
    return clip


def _activations(node: Node, given: dict[str, Any], default: tuple[str, ...]) -> list[Function]:
    names = given.get("activations", list(default))
    if len(names) != len(default):
        raise UnsupportedModelError(
            f"{node} has {counted(len(names), 'activation')}, expected {len(default)}; "
            "the file is damaged"
        )
    alphas, betas = (list(given.get(f"activation_{k}", ())) for k in ("alpha", "beta"))
    functions: list[Function] = []
    for name in names:
        if name.lower() == "hardsigmoid":
            alpha = alphas.pop(0) if alphas else 0.2
            functions.append(hard_sigmoid(node, alpha, betas.pop(0) if betas else 0.5))
        elif name.lower() in NAMED:
            functions.append(NAMED[name.lower()])
        else:
            raise UnsupportedModelError(
                f"{node} has the activation {name!r}; known are Tanh, Sigmoid, Relu and HardSigmoid"
            )
    if alphas or betas:
        raise UnsupportedModelError(
            f"{node} has more activation_alpha or activation_beta than activations that take "
            "one, so whose they are can't be told; export it with as many as HardSigmoids"
        )
    return functions


def hard_sigmoid(node: Node, alpha: float, beta: float) -> Function:
    """Which max(0, min(1, alpha z + beta)) it is. Raises UnsupportedModelError."""
    for known, name in ((0.2, "hard_sigmoid"), (1 / 6, "hard_sigmoid6")):
        if np.float32(alpha) == np.float32(known) and beta == 0.5:
            return name  # type: ignore[return-value]
    raise UnsupportedModelError(
        f"{node} has a HardSigmoid with alpha {alpha:g} and beta {beta:g}; "
        "known are alpha 0.2 or 1/6 with beta 0.5"
    )


def _dequantized(node: Node, weights: Mapping[str, Array | None], name: str) -> Array:
    """(a - zero point) scale, [1, GH, columns], of the 8-bit a [1, columns, GH]."""
    a, scale, zero = (weights.get(name + rest) for rest in ("", "_scale", "_zero_point"))
    if (
        a is None
        or scale is None
        or zero is None
        or a.ndim != 3
        or a.dtype not in (np.int8, np.uint8)
        or zero.dtype != a.dtype
        or scale.dtype != np.float32
        or scale.shape != zero.shape
        or scale.shape not in ((1,), (1, a.shape[2]))
    ):
        raise UnsupportedModelError(
            f"{name} of {node} is not 8-bit [1, n, 4H] with a scale and zero point [1] or "
            "[1, 4H]; the file is damaged"
        )
    exact = (a.astype(np.float32) - zero.astype(np.float32)) * scale
    return np.ascontiguousarray(exact.transpose(0, 2, 1))
