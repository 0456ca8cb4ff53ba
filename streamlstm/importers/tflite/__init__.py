"""TensorFlow Lite: `.tflite` files with LSTM operators, read with ai-edge-litert's schema.

Converters fuse an LSTM to UNIDIRECTIONAL_SEQUENCE_LSTM where it comes from Keras 2 with a fixed
batch; otherwise they write a loop (WHILE) or bare arithmetic, which are refused.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.source import Found, Source
from streamlstm.importers.tflite import run
from streamlstm.importers.tflite.cell import lstm
from streamlstm.importers.tflite.file import Graph, Operator, parse
from streamlstm.importers.tflite.flow import CELLS, LOOP, flow
from streamlstm.layers import Layer

Array = NDArray[Any]

RECURRENT = (
    *CELLS,
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
    "BIDIRECTIONAL_SEQUENCE_RNN",
    "RNN",
    "WHILE",
)
# Between a reversal and its LSTM these may stand.
SHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE")


class TFLite(Source):
    """The network of a .tflite file, a Source. A layer's path is "op" and its place."""

    format = "TensorFlow Lite"

    def __init__(self, content: bytes, path: Path) -> None:
        self._content, self._path = content, path
        model = parse(content, path)
        self._graphs = [Graph(model, k) for k in range(len(model.subgraphs))]

    @property
    def framework(self) -> str:
        try:
            note = " (quantizing activations)" if self.quantizes else ""
            return f"ai-edge-litert {version('ai-edge-litert')}{note}"
        except PackageNotFoundError:
            return ""

    @property
    def quantizes(self) -> bool:
        # "Hybrid" kernels: 8-bit weights, and inputs that are rounded to 8 bits beside them.
        return any(
            "INT8" in {graph.type_of(t) for t in op.inputs if t >= 0}
            for graph in self._graphs
            for op in graph.operators
            if op.name in (*CELLS, "FULLY_CONNECTED")
        )

    def recurrent(self) -> list[Found]:
        return [
            _found(graph, op, which)
            for which, graph in enumerate(self._graphs)
            for op in graph.operators
            if op.name in RECURRENT
        ]

    def network(self) -> list[Layer | Scale]:
        return flow(self._graphs[0]).layers

    def answers(self, x: Array, select: str | None) -> Array:
        model = parse(self._content, self._path)
        if select is not None:
            op = next(op for op in self._graphs[0].operators if _where(op, 0) == select)
            run.keep_only(model, op)
        return run.answers(model, np.asarray(x))


def read(path: Path) -> TFLite:
    """The network of a .tflite file. Raises OSError, UnsupportedModelError."""
    return TFLite(path.read_bytes(), path)


def _where(op: Operator, which: int) -> str:
    return f"subgraph {which} op {op.place}" if which else f"op {op.place}"


def _found(graph: Graph, op: Operator, which: int) -> Found:
    where = _where(op, which)
    try:
        if op.name not in CELLS:
            raise UnsupportedModelError(_refusal(op))
        if which:
            raise UnsupportedModelError(
                f"{op} is part of subgraph {which}, a loop or a branch; "
                "only what always runs can be imported"
            )
        if _reversed(graph, op):
            raise UnsupportedModelError(
                f"{op} reads its sequence backwards, which can't be streamed"
            )
        layer = lstm(graph, op)
    except UnsupportedModelError as e:
        return Found(where, op.name, None, str(e))
    return Found(where, f"LSTM {layer.input_size} -> {layer.output_size}", layer)


def _refusal(op: Operator) -> str:
    if op.name == "WHILE":
        return f"{op} {LOOP}"
    if op.name.startswith("BIDIRECTIONAL"):
        return f"{op} also reads its sequence backwards, which can't be streamed"
    return f"{op} is a simple RNN; LSTM can be imported"


def _reversed(graph: Graph, op: Operator) -> bool:
    """Whether an operator's input comes straight from a reversal."""
    below: Operator | None = op
    for _ in graph.operators:  # no further than there are operators: a file may have a circle
        below = graph.producer(below.inputs[0]) if below and below.inputs else None
        if below is None or below.name not in SHAPING:
            break
    return below is not None and below.name == "REVERSE_V2"
