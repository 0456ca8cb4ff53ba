"""One pass over an ONNX graph: where each value comes from, and each recurrent layer's weights.

The pass assumes which input holds the events, where its axes are and how many steps there are.
A value is constant, on the network's way (a Flow), a recurrent state, or unknown for a reason,
which becomes the refusal of what needs it. So one node that streamlstm lacks leaves the
recurrent layers elsewhere in the file as they are.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.onnx.cells import INPUTS, WEIGHTS, Cell, cell, text
from streamlstm.importers.onnx.constants import FOLDED, Constants
from streamlstm.importers.onnx.flow import Flow
from streamlstm.importers.onnx.graph import Graph, Node
from streamlstm.importers.onnx.operators import applied
from streamlstm.importers.onnx.rounded import rounded
from streamlstm.importers.onnx.states import (
    Constant,
    End,
    Ends,
    Start,
    Unknown,
    Value,
    depth_of,
    end,
    rows_of,
    start,
)
from streamlstm.importers.source import Found
from streamlstm.layers import LSTM, Layer

Array = NDArray[Any]


Scope = ChainMap[str, Value]
LOOPS = ("Loop", "Scan", "SequenceMap")


@dataclass(frozen=True, eq=False)
class Taken:
    """A recurrent node with the constants of its inputs, for running it alone."""

    node: Node
    weights: dict[str, Array | None]
    found: Found
    on_top: bool  # in the outermost graph


@dataclass(eq=False)
class Walk:
    """constants, cells: kept from pass to pass. flow: of the graph input `entry`; None: of none."""

    constants: Constants
    cells: dict[Node, Cell | UnsupportedModelError]
    entry: str = ""
    flow: Flow | None = None
    taken: dict[str, Taken] = field(default_factory=dict)

    def outputs(self, graph: Graph) -> dict[str, Value]:
        """The values of the graph's outputs. Raises UnsupportedModelError."""
        scope: Scope = ChainMap()
        for each in graph.proto.input:
            flows = each.name == self.entry and self.flow is not None
            scope[each.name] = self.flow if flows and self.flow else Start()
        # Overflow in weights is seen when a Model is made of them.
        with np.errstate(all="ignore"):
            self._graph(graph, scope, on_top=True)
        return {
            each.name: scope.get(each.name) or Unknown(f"nothing makes the output {each.name!r}")
            for each in graph.proto.output
        }

    def _graph(self, graph: Graph, scope: Scope, *, on_top: bool = False) -> None:
        for name, proto in graph.tensors.items():
            try:
                scope[name] = Constant(self.constants.tensor(proto, f"tensor {name!r}"))
            except UnsupportedModelError as e:
                scope[name] = Unknown(str(e))
        made = {*graph.tensors, *(each.name for each in graph.proto.input)}
        for node in graph.nodes:
            names = [name for name in node.proto.output if name]
            if made & set(names) or len(set(names)) < len(names):
                raise UnsupportedModelError(
                    f"{node} makes a value of a name that is taken; the file is damaged"
                )
            made.update(names)
            values = self._node(node, scope, on_top=on_top)
            for k, name in enumerate(node.proto.output):
                if name:
                    scope[name] = (
                        values[k]
                        if k < len(values)
                        else Unknown(f"{node} has an output {name!r}, which is not known")
                    )

    def _node(self, node: Node, scope: Scope, *, on_top: bool) -> Sequence[Value]:
        inputs = [self._input(node, name, scope) for name in node.proto.input]
        if node.op in INPUTS:
            return self._recurrent(node, inputs, on_top=on_top)
        if node.op == "If":
            return self._branches(node, inputs, scope)
        depth = max((depth_of(value) for value in inputs), default=0)
        try:
            if node.op in LOOPS or node.bodies:
                self._bodies(node, scope)
                raise UnsupportedModelError(
                    f"{node} runs a graph of its own in a loop, which can't be imported; export "
                    "with LSTM or GRU nodes, or select one recurrent layer"
                )
            return self._values(node, inputs)
        except UnsupportedModelError as e:
            return [Unknown(str(e), depth)] * len(node.proto.output)

    def _input(self, node: Node, name: str, scope: Scope) -> Value | None:
        if not name:
            return None
        missing = Unknown(f"{node} takes {name!r}, which nothing makes; the file is damaged")
        return scope.get(name, missing)

    def _values(self, node: Node, inputs: list[Value | None]) -> Sequence[Value]:
        if node.op == "Constant":
            return [Constant(self.constants.constant(node))]
        known = [each for each in inputs if each is not None]
        if node.op in FOLDED and all(isinstance(each, Constant) for each in known):
            varies = any(isinstance(each, Constant) and each.varies for each in known)
            arrays = [each.a if isinstance(each, Constant) else None for each in inputs]
            outputs = self.constants.fold(node, arrays, keep=not varies)
            return [Constant(a, varies) for a in outputs]
        if (begun := start(node, inputs, self.constants)) is not None:
            return [begun] * len(node.proto.output)
        for each in known:
            if isinstance(each, Unknown):
                raise UnsupportedModelError(each.why)
        if (ended := end(node, inputs, self.constants)) is not None:
            return [ended] * len(node.proto.output)
        plain: list[Any] = [each.a if isinstance(each, Constant) else each for each in inputs]
        if (parts := rounded(node, plain)) is not None:
            return parts
        if any(isinstance(each, Start | End | Ends) for each in known):
            raise UnsupportedModelError(
                f"{node} takes a recurrent state or a second input of the graph, "
                "which can't be imported; select one recurrent layer"
            )
        value = applied(node, plain)
        return [Constant(value, varies=True) if isinstance(value, np.ndarray) else value]

    # --- subgraphs --------------------------------------------------------------------------------

    def _branches(self, node: Node, inputs: list[Value | None], scope: Scope) -> Sequence[Value]:
        made: dict[str, list[Value]] = {}
        for name, body in node.bodies.items():
            inner = scope.new_child()
            self._graph(body, inner)
            made[name] = [
                inner.get(each.name) or Unknown(f"{node} lacks the output {each.name!r}")
                for each in body.proto.output
            ]
        condition = inputs[0] if inputs else None
        if isinstance(condition, Constant) and condition.a.size == 1:
            chosen = made.get("then_branch" if condition.a.item() else "else_branch", [])
            return [
                replace(each, varies=each.varies or condition.varies)
                if isinstance(each, Constant)
                else each
                for each in chosen
            ]
        inside = [where for where in self.taken if where.startswith(f"{node.where}/")]
        names = ": " + ", ".join(map(repr, inside)) if inside else ""
        why = (
            f"{node} chooses its branch while the graph runs, by no constant; "
            f"select one recurrent layer{names}"
        )
        return [Unknown(why, max(map(depth_of, inputs), default=0))] * len(node.proto.output)

    def _bodies(self, node: Node, scope: Scope) -> None:
        for body in node.bodies.values():
            inner = scope.new_child()
            for each in body.proto.input:
                inner[each.name] = Unknown(f"{each.name!r} is made by {node} while it runs")
            self._graph(body, inner)

    # --- recurrent nodes --------------------------------------------------------------------------

    def _recurrent(
        self, node: Node, inputs: list[Value | None], *, on_top: bool
    ) -> Sequence[Value]:
        by_name = dict(zip(INPUTS[node.op], inputs, strict=False))
        constants = {name: each.a for name, each in by_name.items() if isinstance(each, Constant)}
        weights = {name: constants.get(name) for name in WEIGHTS}
        layer, refusal = None, ""
        outputs: Sequence[Value]
        try:
            built = self._cell(node, by_name, weights)
            layer = self._started(node, built, by_name)
            found = Found(node.where, text(node, weights), layer)
            outputs = self._stepped(node, built, layer, by_name)
        except UnsupportedModelError as e:
            refusal = str(e)
            if layer is None:
                found = Found(node.where, text(node, weights), None, refusal)
            depth = max(map(depth_of, inputs), default=0)
            outputs = [Unknown(refusal, depth)] * max(3, len(node.proto.output))
        self.taken[node.where] = Taken(node, weights, found, on_top)
        return outputs

    def _cell(
        self, node: Node, inputs: dict[str, Value | None], weights: dict[str, Array | None]
    ) -> Cell:
        if len(node.proto.input) > len(INPUTS[node.op]):
            raise UnsupportedModelError(f"{node} has more inputs than are known")
        for name in WEIGHTS:
            value = inputs.get(name)
            if value is not None and not isinstance(value, Constant):
                why = value.why if isinstance(value, Unknown) else "it comes from a graph input"
                raise UnsupportedModelError(
                    f"{name} of {node} is no constant: {why}; export with constant weights"
                )
            if isinstance(value, Constant) and value.varies:
                raise UnsupportedModelError(
                    f"{name} of {node} depends on the size of the graph's input; "
                    "export with constant weights"
                )
        if node not in self.cells:
            try:
                self.cells[node] = cell(node, weights)
            except UnsupportedModelError as e:
                self.cells[node] = e
        built = self.cells[node]
        if isinstance(built, UnsupportedModelError):
            raise built
        return built

    def _started(self, node: Node, built: Cell, inputs: dict[str, Value | None]) -> Any:
        """The layer with the state that it starts from."""
        layer = built.layer
        self._check_lengths(node, inputs)
        h0 = rows_of(node, "initial_h", inputs, layer.units)
        if not isinstance(layer, LSTM):
            return replace(layer, h0=h0)
        return replace(layer, h0=h0, c0=rows_of(node, "initial_c", inputs, layer.units))

    def _check_lengths(self, node: Node, inputs: dict[str, Value | None]) -> None:
        lengths, x = inputs.get("sequence_lens"), inputs.get("X")
        if lengths is None:
            return
        steps = x.steps if isinstance(x, Flow) else None
        if not isinstance(lengths, Constant) or np.any(lengths.a != steps):
            raise UnsupportedModelError(
                f"{node} has sequence_lens, which end some sequences early; a stream has no "
                "end: export without it"
            )

    def _stepped(
        self, node: Node, built: Cell, layer: Layer, inputs: dict[str, Value | None]
    ) -> Sequence[Value]:
        """The node's outputs Y, Y_h and Y_c."""
        x = inputs.get("X")
        if isinstance(x, Unknown):
            return [x] * 3
        if not isinstance(x, Flow):
            raise UnsupportedModelError(
                f"X of {node} is not made from the graph's main input; select one recurrent layer"
            )
        if x.last:
            raise UnsupportedModelError(
                f"{node} starts when the sequence has ended, from the last step of the layer "
                "below; a stream has no end: select one recurrent layer"
            )
        steps, batch = (1, 0) if built.batch_first else (0, 1)
        if (
            len(x.axes) != 3
            or x.axes[steps] != ("1" if x.steps == 1 else "T")
            or x.axes[batch] not in "B1"
            or not x.has_features(2)
            or x.width not in (None, layer.input_size)
        ):
            raise UnsupportedModelError(
                f"X of {node} has its steps, batch or features on other axes than the node takes "
                f"(features must be {layer.input_size}); export with an input [steps, batch, "
                "features]"
            )
        t, b = x.axes[steps], x.axes[batch]
        y = replace(x, axes=("F",)).through(layer, layer.output_size)
        y_h = replace(y, hidden=True, last=x.steps != 1)
        # Y [T, D, B, H] and Y_h [D, B, H]; by layout 1 [B, T, D, H] and [B, D, H].
        if built.batch_first:
            return [y.moved((b, t, "1", "F")), y_h.moved((b, "1", "F")), End(depth_of(y))]
        return [y.moved((t, "1", b, "F")), y_h.moved(("1", b, "F")), End(depth_of(y))]
