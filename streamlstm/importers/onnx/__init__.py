"""ONNX: graphs with LSTM and GRU nodes, read with the library `onnx` and not run.

graph (nodes) -> walk (where each value comes from) -> network (which input holds the events). A
walk asks constants (folding), cells (recurrent nodes), states (what they start from), operators,
rounded and axes (what a flow goes through). run asks onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.onnx import graph, run
from streamlstm.importers.onnx.cells import QUANTIZED
from streamlstm.importers.onnx.network import Network
from streamlstm.importers.onnx.rounded import ROUNDS
from streamlstm.importers.source import Found, Source
from streamlstm.layers import Layer

Array = NDArray[Any]


def read(path: Path) -> OnnxSource:
    """An ONNX file. Raises OSError, UnsupportedModelError."""
    source = OnnxSource(Network(graph.load(path)))
    source.recurrent()  # a damaged graph is refused here
    return source


class OnnxSource(Source):
    """The network of an ONNX file; a Source."""

    format = "ONNX"

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def framework(self) -> str:
        return run.framework(quantized=self.quantizes)

    @property
    def quantizes(self) -> bool:
        return any(node.op in (QUANTIZED, ROUNDS) for node in self._network.file.graph.everywhere())

    def recurrent(self) -> Sequence[Found]:
        return [taken.found for taken in self._network.best.taken.values()]

    def network(self) -> Sequence[Layer | Scale]:
        best = self._network.best
        if best.flow is None:
            raise UnsupportedModelError(best.refusal.why)
        return best.flow.layers

    def answers(self, x: Array, select: str | None) -> Array:
        """See Source. onnxruntime's own errors are passed on."""
        if select is None:
            self.network()
            return run.of_graph(self._network, x)
        return run.of_node(self._network.best.taken[select], x)
