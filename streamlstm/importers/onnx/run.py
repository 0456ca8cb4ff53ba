"""What onnxruntime says of a graph or of one node of it: the word that an import is held to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.onnx.cells import INPUTS, QUANTIZED
from streamlstm.importers.onnx.flow import Flow
from streamlstm.importers.onnx.graph import FLOAT
from streamlstm.importers.onnx.network import Assumption, Network, Outcome
from streamlstm.importers.onnx.walk import Taken
from streamlstm.layers import LSTM, Recurrent

Array = NDArray[Any]
STATES = ("initial_h", "initial_c")


def framework(*, quantized: bool) -> str:
    """Name and version of what runs here; "" where it is not installed."""
    try:
        import onnxruntime  # noqa: PLC0415  (not had by most)
    except ImportError:
        return ""
    note = " (quantizing activations)" if quantized else ""
    return f"onnxruntime {onnxruntime.__version__}{note}"


def of_node(taken: Taken, x: Array) -> Array:
    """Y [steps, H] of one recurrent node alone, over x [steps, inputs], from its start."""
    from onnx import helper, numpy_helper  # noqa: PLC0415  (an extra)

    layer = taken.found.layer
    if layer is None:
        raise UnsupportedModelError(taken.found.refusal)
    arrays = dict(taken.weights)
    for state, rows in zip(STATES, _start(layer), strict=False):
        arrays[state] = rows[None, None]
    node = helper.make_node("", [], ["Y"])
    node.CopyFrom(taken.node.proto)
    names = INPUTS[taken.node.op]
    del node.input[:], node.output[:]
    node.input.extend("X" if n == "X" else n if arrays.get(n) is not None else "" for n in names)
    node.output.append("Y")
    # onnxruntime has no layout 1 on CPUs; it changes the order of X and Y alone.
    kept = [a for a in node.attribute if a.name != "layout"]
    del node.attribute[:]
    node.attribute.extend(kept)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", FLOAT, ["T", 1, layer.input_size])],
        [helper.make_tensor_value_info("Y", FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items() if a is not None],
    )
    domains = ["", *([taken.node.proto.domain] if taken.node.op == QUANTIZED else [])]
    opsets = [helper.make_opsetid(d, taken.node.opset if not d else 1) for d in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (y,) = _session(model).run(["Y"], {"X": x[:, None].astype(np.float32)})
    return np.asarray(y)[:, 0, 0]


def of_graph(network: Network, x: Array) -> Array:
    """The network's outputs [steps, outputs] over x [steps, inputs], from its initial state.

    As one sequence, where the graph takes any length and answers each step; else in runs of one
    step, or of the length that the graph is for, with the states carried from run to run.
    """
    best = network.best
    assert best.assumed is not None
    for steps in (len(x), 1, best.assumed.steps):
        outcome = _over(network, steps)
        if outcome is None or outcome.flow is None or outcome.flow.last:
            continue
        if steps == len(x):
            return _Run(network, outcome, []).outputs(x, [])
        return _carried(network, outcome, x)
    raise UnsupportedModelError(
        f"onnxruntime can't run the graph step by step: it answers only the last of "
        f"{best.assumed.steps} steps; export it with a sequence length that is left open"
    )


def _over(network: Network, steps: int) -> Outcome | None:
    """What the graph does with so many steps; None where it can't take them."""
    assumed = network.best.assumed
    assert assumed is not None
    if "T" not in assumed.axes and steps != 1:
        return None
    return network.under(replace(assumed, steps=steps))


def _carried(network: Network, outcome: Outcome, x: Array) -> Array:
    """Run after run, each from the states that the one before ended with."""
    assert outcome.flow is not None
    assert outcome.assumed is not None
    on_way = {id(layer) for layer in outcome.flow.layers}
    taken = [each for each in outcome.taken.values() if id(each.found.layer) in on_way]
    for each in taken:
        if not each.on_top:
            raise UnsupportedModelError(
                f"onnxruntime can't run the graph step by step: the states of {each.node} can't be "
                "reached in its branch; compare it alone, by selecting it"
            )
    run = _Run(network, outcome, taken)
    states = [
        np.tile(rows, (1, run.batch, 1)).astype(np.float32)
        for each in taken
        if each.found.layer is not None
        for rows in _start(each.found.layer)
    ]
    steps = outcome.assumed.steps
    y = []
    for k in range(0, len(x), steps):
        part = x[k : k + steps]
        padded = np.zeros((steps, x.shape[1]), x.dtype)
        padded[: len(part)] = part
        y.append(run.outputs(padded, states)[: len(part)])
    return np.concatenate(y)


def _start(layer: Recurrent) -> Iterator[Array]:
    """h (and c) that a session starts with, [H]."""
    zeros = np.zeros(layer.units, np.float32)
    yield zeros if layer.h0 is None else layer.h0
    if isinstance(layer, LSTM):
        yield zeros if layer.c0 is None else layer.c0


class _Run:
    """A session of onnxruntime over a copy of the graph: declared sizes that could fix the steps
    are left out, and the states of the `taken` nodes are inputs and outputs of their own."""

    def __init__(self, network: Network, outcome: Outcome, taken: list[Taken]) -> None:
        from onnx import helper  # noqa: PLC0415  (an extra)

        assert outcome.assumed is not None
        assert outcome.flow is not None
        self._assumed: Assumption = outcome.assumed
        self._flow: Flow = outcome.flow
        self._dtype = helper.tensor_dtype_to_np_dtype(self._assumed.dtype)
        model = type(network.file.proto)()
        model.CopyFrom(network.file.proto)
        graph = model.graph
        del graph.value_info[:]
        for each in graph.output:
            each.type.tensor_type.ClearField("shape")
        self._shape = [1] * len(self._assumed.axes)
        self._others: dict[str, Array] = {}
        for each in graph.input:
            if each.name == self._assumed.entry:
                dims = each.type.tensor_type.shape.dim
                if dims:
                    self._shape = [d.dim_value if d.dim_value > 0 else 1 for d in dims]
                each.type.tensor_type.ClearField("shape")
            elif each.name not in network.file.graph.tensors:
                self._others[each.name] = _zeros(each)
        self.batch = math.prod(
            n for n, a in zip(self._shape, self._assumed.axes, strict=True) if a == "B"
        )
        self._state_inputs, ends = _open_states(graph, taken)
        self._outputs = [outcome.output, *ends]
        self._session = _session(model)

    def outputs(self, x: Array, states: list[Array]) -> Array:
        """[steps, outputs] for x [steps, inputs]; `states` become those after it."""
        feeds = {self._assumed.entry: self._laid(x), **self._others}
        feeds |= dict(zip(self._state_inputs, states, strict=True))
        y, *states[:] = self._session.run(self._outputs, feeds)
        flow = self._flow
        y = y[tuple(slice(None) if axis in "TF" else 0 for axis in flow.axes)]
        long = [axis for axis in flow.axes if axis in "TF"]
        y = y.T if long == ["F", "T"] else y
        return np.asarray(y.reshape(len(x), flow.width or 1))

    def _laid(self, x: Array) -> Array:
        """x with the axes that the graph's input has, the same for all of its batch."""
        axes = self._assumed.axes
        steps_first = [axis for axis in axes if axis != "B"] != ["F", "T"]
        laid = (x if steps_first else x.T).astype(self._dtype)
        size = {"T": len(x), "F": x.shape[1], "B": 1}
        laid = laid.reshape([size[axis] for axis in axes])
        tiles = [n if axis == "B" else 1 for n, axis in zip(self._shape, axes, strict=True)]
        return np.ascontiguousarray(np.tile(laid, tiles))


def _open_states(graph: Any, taken: list[Taken]) -> tuple[list[str], list[str]]:
    """Make the states of these nodes inputs and outputs of the graph; their names."""
    from onnx import helper  # noqa: PLC0415  (an extra)

    by_output = {tuple(node.output): node for node in graph.node}
    starts: list[str] = []
    ends: list[str] = []
    declared = {each.name for each in graph.output}
    for each in taken:
        node = by_output[tuple(each.node.proto.output)]
        names = INPUTS[each.node.op]
        node.input.extend([""] * (len(names) - len(node.input)))
        node.output.extend([""] * (3 - len(node.output)) if "initial_c" in names else [])
        node.output.extend([""] * (2 - len(node.output)))
        for k, state in enumerate(STATES):
            if state not in names:
                continue
            start = f"{each.node.where}:{state}"
            node.input[names.index(state)] = start
            node.output[1 + k] = node.output[1 + k] or f"{start}:end"
            graph.input.append(helper.make_tensor_value_info(start, FLOAT, None))
            starts.append(start)
            ends.append(node.output[1 + k])
            if ends[-1] not in declared:
                graph.output.append(helper.make_tensor_value_info(ends[-1], FLOAT, None))
    return starts, ends


def _zeros(graph_input: Any) -> Array:
    """What a state that is an input of the graph starts with."""
    from onnx import helper  # noqa: PLC0415  (an extra)

    tensor = graph_input.type.tensor_type
    shape = [d.dim_value if d.dim_value > 0 else 1 for d in tensor.shape.dim]
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _session(model: Any) -> Any:
    import onnxruntime  # noqa: PLC0415  (not had by most)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
