"""LiteRT (TensorFlow Lite): the cell written out in operators that its XNNPACK kernels take.

The .tflite file is written with the schema classes that ai-edge-litert ships. The states
are inputs and outputs of the graph, and are copied from the one to the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from peers.cells import Array, Cell
from peers.peer import Peer
from streamlstm import LSTM, Model

Operator = schema.BuiltinOperator


class Graph:
    """A .tflite model under construction; tensors are known by their numbers."""

    def __init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]  # the first one stands for "no data"
        self.model.operatorCodes = []
        self.model.subgraphs = [self.graph]

    def tensor(self, *shape: int) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), schema.TensorType.FLOAT32, 0
        tensor.name = f"t{len(self.graph.tensors)}"
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, a: Array) -> int:
        number = self.tensor(*a.shape)
        tensor, buffer = self.graph.tensors[number], schema.BufferT()
        buffer.data = np.frombuffer(a.tobytes(), np.uint8)
        tensor.buffer = len(self.model.buffers)
        if a.dtype == np.int32:
            tensor.type = schema.TensorType.INT32
        self.model.buffers.append(buffer)
        return number

    def apply(self, code: int, inputs: list[int], *shape: int, options: Any = None) -> int:
        """One operator with one output of `shape`; its number."""
        return self.apply_many(code, inputs, [self.tensor(*shape)], options)[0]

    def apply_many(
        self, code: int, inputs: list[int], outputs: list[int], options: Any = None
    ) -> list[int]:
        entry, operator = schema.OperatorCodeT(), schema.OperatorT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        entry.version = 1
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        self.model.operatorCodes.append(entry)
        self.graph.operators.append(operator)
        return outputs

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder()
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def lstm(
    graph: Graph, layer: LSTM, batch: int, below: int, state: tuple[int, int]
) -> tuple[int, int]:
    """One step of a layer: the numbers of h' and c', given those of h and c."""
    h, c = state
    H, width = layer.units, layer.input_size + layer.units
    concatenation, split = schema.ConcatenationOptionsT(), schema.SplitOptionsT()
    concatenation.axis, split.numSplits = 1, 4
    multiply, add = schema.MulOptionsT(), schema.AddOptionsT()

    xh = graph.apply(Operator.CONCATENATION, [below, h], batch, width, options=concatenation)
    w = graph.constant(np.concatenate([layer.w_x, layer.w_h], axis=1))
    z = graph.apply(
        Operator.FULLY_CONNECTED,
        [xh, w, graph.constant(layer.b)],
        *(batch, 4 * H),
        options=schema.FullyConnectedOptionsT(),
    )
    gates = [graph.tensor(batch, H) for _ in range(4)]
    graph.apply_many(Operator.SPLIT, [graph.constant(np.array(1, np.int32)), z], gates, split)
    i, f, o = (graph.apply(Operator.LOGISTIC, [gates[k]], batch, H) for k in (0, 1, 3))
    g = graph.apply(Operator.TANH, [gates[2]], batch, H)
    kept = graph.apply(Operator.MUL, [f, c], batch, H, options=multiply)
    added = graph.apply(Operator.MUL, [i, g], batch, H, options=multiply)
    c_next = graph.apply(Operator.ADD, [kept, added], batch, H, options=add)
    t = graph.apply(Operator.TANH, [c_next], batch, H)
    return graph.apply(Operator.MUL, [o, t], batch, H, options=multiply), c_next


def step_graph(model: Model, batch: int) -> tuple[bytes, int, list[tuple[int, int]]]:
    """The model as a file, the number of x, and of each state before and after the step."""
    graph = Graph()
    below = x = graph.tensor(batch, model.input_size)
    states: list[tuple[int, int]] = []
    for layer in model.layers:
        h, c = graph.tensor(batch, layer.units), graph.tensor(batch, layer.units)
        below, c_next = lstm(graph, layer, batch, below, (h, c))
        states += [(h, below), (c, c_next)]
    old, new = ([pair[k] for pair in states] for k in range(2))
    return graph.finish([x, *old], new), x, states


class LiteRT(Peer):
    """The documented API: tensor() gives functions, and the arrays they give must not be kept."""

    name = "LiteRT"

    def __init__(self, cell: Cell) -> None:
        content, x, states = step_graph(cell.model, cell.batch)
        self.interpreter = Interpreter(model_content=content, num_threads=1)
        self.interpreter.allocate_tensors()
        tensor = self.interpreter.tensor
        self.x = tensor(x)
        self.states = [(tensor(old), tensor(new)) for old, new in states]
        for old, _ in self.states:
            old().fill(0)

    def loop(self, events: Iterable[Array]) -> Array:
        x_in, invoke, states = self.x, self.interpreter.invoke, self.states
        for x in events:
            x_in()[:] = x
            invoke()
            for old, new in states:
                old()[:] = new()
        return states[-2][1]().copy()


class LiteRTRaw(LiteRT):
    """The arrays kept and the private Invoke called, against the documentation: the least
    that a call of LiteRT from Python can cost."""

    name = "LiteRT raw"

    def loop(self, events: Iterable[Array]) -> Array:
        x_in, invoke = self.x(), self.interpreter._interpreter.Invoke
        states = [(old(), new()) for old, new in self.states]
        for x in events:
            x_in[:] = x
            invoke()
            for old, new in states:
                old[:] = new
        return states[-2][1].copy()


PEERS = (LiteRT, LiteRTRaw)
