"""A .tflite network run by TensorFlow Lite itself, for the proof of an import."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.tflite.file import Graph, Operator
from streamlstm.importers.tflite.flow import CELLS, Flow, flow

Array = NDArray[Any]


def keep_only(model: Any, op: Operator) -> None:
    """Take all but one operator, and what makes its weights, out of a ModelT's graph."""
    graph = model.subgraphs[0]
    seen = Graph(model, 0)
    makers = {
        maker.place
        for t in op.inputs[1:]
        if t >= 0 and (maker := seen.producer(t)) is not None and maker.name == "DEQUANTIZE"
    }
    graph.operators = [graph.operators[k] for k in sorted(makers | {op.place})]
    graph.inputs, graph.outputs = [op.inputs[0]], list(op.outputs)
    model.subgraphs, model.signatureDefs = [graph], None


def answers(model: Any, x: Array) -> Array:
    """The outputs [steps, outputs] for x [steps, inputs], from states of zero."""
    graph = Graph(model, 0)
    made = flow(graph)
    # States that an operator writes anew in each run are not kept from run to run.
    kept = all(
        graph.producer(t) is None
        for op in graph.operators
        if op.name in CELLS
        for t in op.inputs[18:20]
    )
    try:
        if kept:
            return _run(model, x, made, 1 if made.last else None)
        if not made.last:
            return _run(model, x, made, len(x))
        return np.concatenate([_run(model, x[:t], made, t) for t in range(1, len(x) + 1)])
    except (RuntimeError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UnsupportedModelError(
            f"TensorFlow Lite can't run this file step by step: {reason}"
        ) from e


def _run(model: Any, x: Array, made: Flow, steps: int | None) -> Array:
    """In runs of `steps` (None: as many as the file says), states kept in between."""
    runtime = importlib.import_module("ai_edge_litert.interpreter")
    flatbuffers = importlib.import_module("flatbuffers")
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    interpreter = runtime.Interpreter(
        model_content=bytes(builder.Output()),
        num_threads=1,
        experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape = [int(n) for n in given["shape"]]
    if steps is not None and math.prod(shape) != steps * x.shape[1]:
        shape[made.time or 0] = steps
        interpreter.resize_tensor_input(given["index"], shape)
    interpreter.allocate_tensors()
    interpreter.reset_all_variables()
    at_once = math.prod(shape) // x.shape[1]
    padded = np.zeros((-(-len(x) // at_once) * at_once, x.shape[1]), given["dtype"])
    padded[: len(x)] = x
    found = []
    for events in padded.reshape(-1, *shape):
        interpreter.set_tensor(given["index"], events)
        interpreter.invoke()
        found.append(interpreter.get_tensor(result["index"]).reshape(-1, made.width))
    return np.concatenate(found)[: len(x)]
