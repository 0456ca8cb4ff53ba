"""The network in an ONNX graph: passes over it, under what the graph does not say.

A graph tells neither which input holds the events nor which of its axes are steps, batch and
features. Under a wrong assumption no pass gets through, since an LSTM's X has one order only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.onnx.cells import Cell
from streamlstm.importers.onnx.constants import Constants
from streamlstm.importers.onnx.flow import Axes, Flow
from streamlstm.importers.onnx.graph import FLOATS, INTEGERS, File, Node
from streamlstm.importers.onnx.states import End, Ends, Unknown, Value, depth_of
from streamlstm.importers.onnx.walk import Taken, Walk
from streamlstm.layers import Layer

Array = NDArray[Any]

# Lengths to assume where the graph leaves it open: what comes out must not depend on them.
ASSUMED_STEPS = (7, 11)
# Nodes that are gone through for it, each time that it is.
MOST_VISITS = 60_000


@dataclass(frozen=True)
class Assumption:
    """Which graph input holds the events, what its axes are, and how many steps come."""

    entry: str
    axes: Axes
    dtype: int
    width: int | None
    steps: int
    batch: int
    fixed: bool  # whether the graph itself fixes the steps


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a pass found: the network's way to its output, or why there is none."""

    assumed: Assumption | None
    taken: dict[str, Taken]
    output: str
    flow: Flow | None
    refusal: Unknown


@dataclass(eq=False)
class Network:
    """The passes over one file."""

    file: File
    _constants: Constants = field(init=False, repr=False)
    _cells: dict[Node, Cell | UnsupportedModelError] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._constants = Constants(self.file.size)

    def under(self, assumed: Assumption | None) -> Outcome:
        """What one pass finds. Raises UnsupportedModelError for a damaged graph."""
        flow = None
        if assumed is not None:
            flow = Flow(
                layers=(),
                axes=assumed.axes,
                width=assumed.width,
                steps=assumed.steps,
                batch=assumed.batch,
                dtype=assumed.dtype,
            )
        walk = Walk(self._constants, self._cells, assumed.entry if assumed else "", flow)
        values = walk.outputs(self.file.graph)
        output, way, refusal = "", None, Unknown("")
        try:
            output, way = _answer(values)
        except UnsupportedModelError as e:
            depth = max(map(depth_of, values.values()), default=0)
            refusal = Unknown(str(e), depth)
        return Outcome(assumed, walk.taken, output, way, refusal)

    @cached_property
    def best(self) -> Outcome:
        """The outcome of the first assumption that holds, or of the one that went furthest."""
        best = self.under(None)
        if not best.taken:
            return Outcome(None, {}, "", None, Unknown(self._unrolled()))
        nodes = sum(1 for _ in self.file.graph.everywhere())
        for tried, assumed in enumerate(_assumptions(self.file)):
            if tried * nodes > MOST_VISITS:
                why = "the graph has too many inputs to try which one holds the events"
                return replace(best, refusal=Unknown(f"{why}; select one recurrent layer"))
            outcome = self.under(assumed)
            if outcome.flow is not None and not assumed.fixed:
                outcome = self._confirmed(outcome, assumed)
            if outcome.flow is not None:
                return outcome
            if outcome.refusal.depth > best.refusal.depth or best.assumed is None:
                best = outcome
        return best

    def _confirmed(self, outcome: Outcome, assumed: Assumption) -> Outcome:
        """The outcome, or a refusal where it is another one for another number of steps."""
        other = self.under(replace(assumed, steps=ASSUMED_STEPS[1]))
        if outcome.flow and other.flow and same(outcome.flow.layers, other.flow.layers):
            return outcome
        refusal = other.refusal
        if other.flow:
            why = "the network depends on the length of the sequence, which a stream has not"
            refusal = Unknown(f"{why}; select one recurrent layer", depth_of(other.flow))
        return Outcome(assumed, outcome.taken, "", None, refusal)

    def _unrolled(self) -> str:
        ops = Counter(node.op for node in self.file.graph.everywhere())
        names = ", ".join(op for op, _ in ops.most_common(4))
        return (
            f"no LSTM or GRU node is in the graph (mostly {names}): if its layers were unrolled "
            "into steps or loops, export them whole, from torch.nn.LSTM rather than LSTMCell, or "
            "from Keras without unroll"
        )


def same(a: Sequence[Layer | Scale], b: Sequence[Layer | Scale]) -> bool:
    """Whether these layers have the same options and numbers."""

    def parts(layer: Layer | Scale) -> tuple[Any, dict[str, Array]]:
        if isinstance(layer, Scale):
            return Scale, {"scale": layer.scale, "shift": layer.shift}
        return (type(layer), layer.options()), layer.tensors()

    def equal(one: Layer | Scale, other: Layer | Scale) -> bool:
        (kind, tensors), (kind_b, tensors_b) = parts(one), parts(other)
        return (
            kind == kind_b
            and tensors.keys() == tensors_b.keys()
            and all(np.array_equal(tensors[k], tensors_b[k], equal_nan=True) for k in tensors)
        )

    return len(a) == len(b) and all(map(equal, a, b))


def _assumptions(file: File) -> Iterator[Assumption]:
    """What the events' axes could be; an LSTM's X settles which they are."""
    for each in file.proto.graph.input:
        if each.name in file.graph.tensors:
            continue
        tensor = each.type.tensor_type
        if tensor.elem_type not in (*FLOATS, *INTEGERS):
            continue
        sizes = [max(d.dim_value, 0) for d in tensor.shape.dim]
        if not tensor.HasField("shape"):
            sizes = [0, 0, 0]
        for axes in _orders(len(sizes), whole=tensor.elem_type in INTEGERS):
            size = dict(zip(axes, sizes, strict=True))
            width = size.get("F", 1) or None
            batch = size.get("B", 1)
            fixed = "T" not in size or size["T"] > 0
            steps = size.get("T", 1) or ASSUMED_STEPS[0]
            yield Assumption(each.name, axes, tensor.elem_type, width, steps, batch, fixed)


def _orders(rank: int, *, whole: bool) -> list[Axes]:
    """Of events that are floats: all orders of steps, batch and features; one step alone or no
    batch, too. Whole numbers are one in a step and have no axis of features."""
    if rank <= 1:
        alone: list[Axes] = [("T",), ("B",)] if whole else [("T",), ("F",)]
        return alone if rank else []
    if rank == 2:
        single: list[Axes] = [("B", "T"), ("T", "B")]
        return single if whole else [("T", "F"), ("F", "T"), ("B", "F"), *single]
    return sorted(permutations("BTF"), key=lambda axes: axes[2] != "F") if rank == 3 else []


def _answer(values: dict[str, Value]) -> tuple[str, Flow]:
    """Name and flow of the output that is the network's answer. Raises UnsupportedModelError."""
    for value in values.values():
        if isinstance(value, Unknown):
            raise UnsupportedModelError(value.why)
    flows = {name: value for name, value in values.items() if isinstance(value, Flow)}
    # Those that are states stand beside the answer; alone they are the answer.
    heads = {name: flow for name, flow in flows.items() if not flow.hidden} or flows
    if not heads and any(isinstance(value, End | Ends) for value in values.values()):
        raise UnsupportedModelError(
            f"the outputs {list(values)} are states that a sequence ends with, and not h of one "
            "layer; export the last layer's output too, or select one recurrent layer"
        )
    if not heads:
        raise UnsupportedModelError(
            f"none of the outputs {list(values)} is computed from the graph's input; "
            "select one recurrent layer"
        )
    deepest = max(heads, key=lambda name: len(heads[name].layers))
    for name, flow in heads.items():
        if not same(flow.layers, heads[deepest].layers):
            raise UnsupportedModelError(
                f"outputs {name!r} and {deepest!r} come from different layers; a network here "
                "has one output: cut the graph behind it, or select one recurrent layer"
            )
    return deepest, heads[deepest]
