"""Values of an ONNX graph, and among them the recurrent states that a run starts and ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.onnx.constants import Constants
from streamlstm.importers.onnx.flow import Flow
from streamlstm.importers.onnx.graph import FLOATS, Node
from streamlstm.importers.onnx.rounded import Rounded

Array = NDArray[Any]

# What moves a state's numbers, and may do so before a session is known.
MOVES_STATE = {
    "Slice",
    "Gather",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Reshape",
    "Identity",
    "Cast",
    "Split",
    "Expand",
    "Concat",
}


@dataclass(frozen=True, eq=False)
class Constant:
    """varies: whether it was made from the sizes that are assumed."""

    a: Array
    varies: bool = False


@dataclass(frozen=True, eq=False)
class Start:
    """A state to start from: of a graph input (None: a session starts with zeros), or one known
    vector [H] or number for every row of the batch."""

    rows: Array | None = None


@dataclass(frozen=True, eq=False)
class End:
    """A state that a run ends with. depth: as in Unknown."""

    depth: int


@dataclass(frozen=True, eq=False)
class Ends:
    """The h that each of several layers ends with, one behind the other on axis 0."""

    parts: tuple[Flow, ...]

    @property
    def depth(self) -> int:
        return max(map(depth_of, self.parts))


@dataclass(frozen=True, eq=False)
class Unknown:
    """why: as a sentence. depth: the layers that a Flow had gone through before."""

    why: str
    depth: int = 0


Value = Constant | Flow | Rounded | Start | End | Ends | Unknown


def start(node: Node, inputs: Sequence[Value | None], constants: Constants) -> Value | None:
    """What `node` makes, if that is a state to start from."""
    first, *rest = [*inputs, None]
    by_sizes = [each for each in rest if each is not None]
    if node.op == "ConstantOfShape" and not isinstance(first, Constant):
        fill = constants.fold(node, [np.array([1])], keep=False)[0]
        return Start(fill)
    if node.op == "Expand" and isinstance(first, Constant):
        if by_sizes and not isinstance(by_sizes[0], Constant):
            a = first.a
            if a.ndim and a.size == a.shape[-1]:
                return Start(a.ravel())
        return None
    # What is joined to a state could be anything: only shapes, places and the like beside it.
    alone = not any(isinstance(each, Flow | Start | End | Ends) for each in by_sizes)
    alone = alone and (node.op != "Concat" or not by_sizes)
    if isinstance(first, Start) and node.op in MOVES_STATE and alone:
        if node.op == "Cast" and node.attributes(to="int", saturate="int").get("to") not in (
            FLOATS
        ):
            return None
        if first.rows is None or first.rows.size == 1 or node.op in ("Identity", "Cast"):
            return first
    return None


def end(node: Node, inputs: Sequence[Value | None], constants: Constants) -> Value | None:
    """What `node` makes of states that a run ends with, if it just moves them."""
    known = [each for each in inputs if each is not None]
    if node.op not in MOVES_STATE or not known or not is_state(known[0]):
        return None
    first, *rest = known
    if isinstance(first, Ends) and node.op in ("Gather", "Slice"):
        return _one_of(node, first, inputs[1:], constants)
    flows = tuple(each for each in known if isinstance(each, Flow) and each.hidden)
    if node.op == "Concat" and 1 < len(flows) == len(known):
        if node.attributes(axis="int").get("axis") == 0 and all(
            len(each.axes) == 3 and each.axes[0] == "1" for each in flows
        ):
            return Ends(flows)
        return End(depth_of(first))
    if all(isinstance(each, Constant) or is_state(each) for each in known) and (
        (rest and is_state(rest[0])) or not isinstance(first, Flow)
    ):
        return End(depth_of(first))
    return None


def _one_of(
    node: Node, ends: Ends, rest: Sequence[Value | None], constants: Constants
) -> Value | None:
    """The h of one layer, which a Gather or Slice on axis 0 takes out."""
    axes = [0]
    if node.op == "Gather":
        axes = [node.attributes(axis="int").get("axis", 0)]
    elif node.opset < 10:
        axes = node.attributes(starts="ints", ends="ints", axes="ints").get("axes", [0])
    elif len(rest) > 2 and isinstance(rest[2], Constant):
        axes = rest[2].a.ravel().tolist()
    if axes != [0] or not all(each is None or isinstance(each, Constant) for each in rest):
        return End(ends.depth)
    arrays = [each.a if isinstance(each, Constant) else None for each in rest]
    places = np.arange(len(ends.parts))
    (taken,) = constants.fold(node, [places, *arrays], keep=False)
    if taken.size != 1:
        return End(ends.depth)
    part = ends.parts[int(taken.item())]
    return part if taken.ndim else part.moved(part.axes[1:])


def depth_of(value: Value | None) -> int:
    """How far the network had been followed, for the reason of the pass that went furthest."""
    if isinstance(value, Flow | Rounded):
        return len((value.flow if isinstance(value, Rounded) else value).layers) + 1
    return value.depth if isinstance(value, Unknown | End | Ends) else 0


def is_state(value: Value | None) -> bool:
    return isinstance(value, End | Ends | Start) or (isinstance(value, Flow) and value.hidden)


def rows_of(node: Node, name: str, inputs: dict[str, Value | None], units: int) -> Array | None:
    """The vector [H] that every session starts from; None for zeros."""
    value = inputs.get(name)
    if value is None or (isinstance(value, Start) and value.rows is None):
        return None
    if isinstance(value, Start) and value.rows is not None:
        rows = value.rows
        if rows.size == 1:
            rows = np.broadcast_to(rows.ravel(), (units,))
    elif isinstance(value, Constant):
        rows = value.a
        if rows.ndim != 3 or 1 not in rows.shape[:2] or not rows.size:
            rows = rows[..., :0]
    else:
        why = f": {value.why}" if isinstance(value, Unknown) else ""
        raise UnsupportedModelError(
            f"{name} of {node} is computed while the graph runs{why}; "
            "export with a constant or a graph input there"
        )
    if rows.shape[-1:] != (units,) or rows.dtype.kind != "f":
        raise UnsupportedModelError(
            f"{name} of {node} is {rows.dtype} {list(rows.shape)}, expected floats "
            f"[1, batch, {units}]; the file is damaged"
        )
    rows = rows.reshape(-1, units)
    if np.any(rows != rows[0]):
        raise UnsupportedModelError(
            f"{name} of {node} differs from sequence to sequence of the batch; "
            "export with a batch of 1"
        )
    return rows[0].copy() if np.any(rows[0]) else None
