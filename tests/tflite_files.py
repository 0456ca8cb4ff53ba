"""`.tflite` files written operator by operator, and their LSTM's equations in NumPy.

No converter writes layer norm, peepholes or CIFG any more, so these files are made here, from
the operator's definition: tensorflow/lite/kernels/lstm_shared.h (places of the tensors) and
lstm_eval.cc (equations). Nothing of the importers is used. Needs ai-edge-litert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from peers.peer_litert import Graph

Array = NDArray[Any]
Gates = dict[str, Array]
Operator = schema.BuiltinOperator


@dataclass(frozen=True, eq=False)
class Cell:
    """One LSTM operator's tensors, gate by gate: i, f, c (the candidate), o."""

    w_x: Gates
    w_h: Gates
    b: Gates
    peep: Gates
    norm: Gates
    w_p: Array | None = None
    b_p: Array | None = None
    cell_clip: float = 0.0
    proj_clip: float = 0.0
    function: str = "TANH"

    @property
    def units(self) -> int:
        return len(self.b["f"])

    @property
    def outputs(self) -> int:
        return int(self.w_h["f"].shape[1])


def cell(
    seed: int,
    inputs: int,
    units: int,
    *,
    cifg: bool = False,
    peephole: bool = False,
    norm: bool = False,
    projected: int = 0,
    projection_bias: bool = False,
    **options: Any,
) -> Cell:
    """Random float32 tensors at the scale of training; `projected`: P, or 0 for none."""
    k, rng = units**-0.5, np.random.default_rng(seed)

    def gates(names: str, *shape: int) -> Gates:
        return {g: rng.uniform(-k, k, shape).astype("f4") for g in names}

    names = "fco" if cifg else "ifco"
    outputs = projected or units
    return Cell(
        gates(names, units, inputs),
        gates(names, units, outputs),
        gates(names, units),
        gates(names.replace("c", ""), units) if peephole else {},
        {g: 1 + a for g, a in gates(names, units).items()} if norm else {},
        rng.uniform(-k, k, (outputs, units)).astype("f4") if projected else None,
        rng.uniform(-k, k, outputs).astype("f4") if projected and projection_bias else None,
        **options,
    )


def run(cell: Cell, x: Array) -> tuple[Array, Array, Array]:
    """The operator in float64: x [steps, inputs] -> h of all steps, the last h and c."""
    h, c = np.zeros(cell.outputs), np.zeros(cell.units)
    act: Any = {"TANH": np.tanh, "RELU": lambda z: np.maximum(z, 0)}[cell.function]

    def sigmoid(z: Array) -> Array:
        return 1 / (1 + np.exp(-z))

    def bounded(a: Array, bound: float) -> Array:
        return np.clip(a, -bound, bound) if bound else a

    def summed(gate: str, event: Array, seen: Array) -> Array:
        z = cell.w_x[gate].astype(float) @ event + cell.w_h[gate].astype(float) @ h
        if gate in cell.peep:
            z = z + cell.peep[gate] * seen
        if cell.norm:
            z = (z - z.mean()) / np.sqrt(z.var() + 1e-8) * cell.norm[gate]
        return z + cell.b[gate]

    found = []
    for event in np.asarray(x, float):
        f = sigmoid(summed("f", event, c))
        i = sigmoid(summed("i", event, c)) if "i" in cell.b else 1 - f
        c_next = bounded(f * c + i * act(summed("c", event, c)), cell.cell_clip)
        h_next = sigmoid(summed("o", event, c_next)) * act(c_next)
        if cell.w_p is not None:
            bias = 0 if cell.b_p is None else cell.b_p
            h_next = bounded(cell.w_p.astype(float) @ h_next + bias, cell.proj_clip)
        h, c = h_next, c_next
        found.append(h)
    return np.array(found), h, c


def add_constant(graph: Graph, a: Array, scale: Sequence[float] = (), axis: int = 0) -> int:
    """A constant of any dtype; scale: of INT8 numbers, one or one for each index on `axis`."""
    number = graph.constant(np.ascontiguousarray(a))
    tensor = graph.graph.tensors[number]
    types = {"f2": "FLOAT16", "f4": "FLOAT32", "i1": "INT8", "i4": "INT32", "u1": "UINT8"}
    tensor.type = getattr(schema.TensorType, types[a.dtype.str[1:]])
    if len(scale):
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.asarray(scale, np.float32)
        tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)
        tensor.quantization.quantizedDimension = axis
    return number


def add_variable(graph: Graph, *shape: int) -> int:
    number = graph.tensor(*shape)
    graph.graph.tensors[number].isVariable = True
    return number


def add_lstm(
    graph: Graph,
    below: int,
    cell: Cell,
    shape: Sequence[int],
    *,
    time_major: bool = False,
    single: bool = False,
    old: bool = False,
    constant: Any = add_constant,
) -> tuple[int, int, int]:
    """Its output, h and c; shape: of its input. single: the LSTM operator, whose input is one
    step. old: with 20 inputs, without layer norm's. constant: what writes a weight."""

    def each(gates: Gates, names: str) -> list[int]:
        return [constant(graph, gates[g]) if g in gates else -1 for g in names]

    h, c = add_variable(graph, 1, cell.outputs), add_variable(graph, 1, cell.units)
    projection = [-1 if a is None else constant(graph, a) for a in (cell.w_p, cell.b_p)]
    inputs = [below, *each(cell.w_x, "ifco"), *each(cell.w_h, "ifco"), *each(cell.peep, "ifo")]
    inputs += [*each(cell.b, "ifco"), *projection, h, c]
    inputs += [] if old else each(cell.norm, "ifco")
    options = schema.LSTMOptionsT() if single else schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction = getattr(schema.ActivationFunctionType, cell.function)
    options.cellClip, options.projClip = cell.cell_clip, cell.proj_clip
    if not single:
        options.timeMajor = time_major
    code = Operator.LSTM if single else Operator.UNIDIRECTIONAL_SEQUENCE_LSTM
    return graph.apply(code, inputs, *shape[:-1], cell.outputs, options=options), h, c


def add_dense(graph: Graph, below: int, w: Array, b: Array | None, *shape: int) -> int:
    """FULLY_CONNECTED over the last axis; shape: of its input."""
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    bias = -1 if b is None else add_constant(graph, b)
    return graph.apply(
        Operator.FULLY_CONNECTED,
        [below, add_constant(graph, w), bias],
        *shape[:-1],
        len(w),
        options=options,
    )


def one_cell(cell: Cell, *, steps: int = 1, time_major: bool = False, **how: Any) -> bytes:
    """A file with just that cell, over sequences of `steps`."""
    inputs = cell.w_x["f"].shape[1]
    shape = (steps, 1, inputs) if time_major else (1, steps, inputs)
    if how.get("single"):
        shape = (1, inputs)
    graph = Graph()
    x = graph.tensor(*shape)
    out, _, _ = add_lstm(graph, x, cell, shape, time_major=time_major, **how)
    return graph.finish([x], [out])
