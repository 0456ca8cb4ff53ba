"""ONNX Runtime: one LSTM operator per layer, the states as inputs and outputs of the graph."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

from peers.cells import Array, Cell
from peers.peer import Peer
from streamlstm import Model

OPSET, IR_VERSION = 17, 8


def iofg(a: Array) -> Array:
    """Gates i, f, g, o in ONNX's order, with its leading axis of directions."""
    i, f, g, o = np.split(a, 4)
    return np.concatenate([i, o, f, g])[None]


def step_graph(model: Model, batch: int) -> bytes:
    """x [1, batch, I], h0, c0, h1, ... [1, batch, H] -> h0_next, c0_next, h1_next, ..."""
    nodes, weights, states, states_next = [], [], [], []

    def tensor(name: str, width: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, batch, width])

    below = "x"
    for k, layer in enumerate(model.layers):
        b = np.concatenate([iofg(layer.b), np.zeros_like(layer.b)[None]], axis=1)
        for name, a in (("W", iofg(layer.w_x)), ("R", iofg(layer.w_h)), ("B", b)):
            weights.append(numpy_helper.from_array(a, f"{name}{k}"))
        inputs = [below, f"W{k}", f"R{k}", f"B{k}", "", f"h{k}", f"c{k}"]
        outputs = ["", f"h{k}_next", f"c{k}_next"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=layer.units))
        states += [tensor(f"{s}{k}", layer.units) for s in "hc"]
        states_next += [tensor(f"{s}{k}_next", layer.units) for s in "hc"]
        below = f"h{k}_next"
    x = tensor("x", model.input_size)
    graph = helper.make_graph(nodes, "step", [x, *states], states_next, weights)
    opset = helper.make_opsetid("", OPSET)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    checker.check_model(made)
    return bytes(made.SerializeToString())


class Run(Peer):
    """session.run: a dict of arrays in, a list of fresh arrays out."""

    name = "ONNX Runtime run"

    def __init__(self, cell: Cell) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        graph = step_graph(cell.model, cell.batch)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.states = [f"{s}{k}" for k in range(cell.layers) for s in "hc"]
        self.states_next = [f"{s}_next" for s in self.states]
        self.feed = {s: np.zeros((1, cell.batch, cell.units), np.float32) for s in self.states}

    def event(self, x: Array) -> Array:
        return x[None]

    def loop(self, events: Iterable[Array]) -> Array:
        run, states, states_next, feed = self.session.run, self.states, self.states_next, self.feed
        for x in events:
            feed["x"] = x
            feed.update(zip(states, run(states_next, feed), strict=True))
        return feed[states[-2]]


class IOBinding(Run):
    """Two bindings whose state buffers change places; only x is copied."""

    name = "ONNX Runtime IOBinding"

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.x = np.zeros((1, cell.batch, cell.inputs), np.float32)
        two = [{s: np.zeros_like(a) for s, a in self.feed.items()} for _ in range(2)]
        # OrtValues of CPU arrays share their memory.
        x = ort.OrtValue.ortvalue_from_numpy(self.x)
        values = [
            {s: ort.OrtValue.ortvalue_from_numpy(a) for s, a in buffers.items()} for buffers in two
        ]
        last_h = self.states[-2]
        self.kept = two, values, x
        self.bindings = cycle(
            (self.binding(x, values[k], values[1 - k]), two[1 - k][last_h]) for k in range(2)
        )

    def binding(self, x: Any, old: dict[str, Any], new: dict[str, Any]) -> Any:
        binding = self.session.io_binding()
        binding.bind_ortvalue_input("x", x)
        for state in self.states:
            binding.bind_ortvalue_input(state, old[state])
            binding.bind_ortvalue_output(f"{state}_next", new[state])
        return binding

    def loop(self, events: Iterable[Array]) -> Array:
        run, bindings, buffer, y = self.session.run_with_iobinding, self.bindings, self.x, self.x
        for x in events:
            buffer[:] = x
            binding, y = next(bindings)
            run(binding)
        return y


PEERS = (Run, IOBinding)
