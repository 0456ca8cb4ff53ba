"""Values that an ONNX graph computes from its constants alone, as exporters leave them.

Single nodes are evaluated by onnx's own NumPy reference evaluator: only operators that move
numbers or do simple sums, and only while what they make stays small beside the file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.onnx.graph import FLOATS, INTEGERS, Node, line_of, tensor
from streamlstm.wording import counted

Array = NDArray[Any]
BOOL = 9  # TensorProto.DataType

ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "And", "Or", "Where"}
MOVING = {
    "Slice",
    "Concat",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Flatten",
    "Identity",
    "Split",
    "Shape",
    "Cast",
    "Neg",
    "Not",
}
FOLDED = ELEMENTWISE | MOVING | {
    "Gather", "ConstantOfShape", "Expand", "Tile", "DequantizeLinear",
}  # fmt: skip
# Numbers that folding may make in any case, and beside each byte of the file; a node's work
# counts as so many.
ALWAYS, PER_BYTE, PER_NODE = 1 << 22, 16, 500


class Constants:
    """What was folded of one file. Equal work is done once."""

    def __init__(self, file_size: int) -> None:
        self._left = ALWAYS + PER_BYTE * file_size
        self._tensors: dict[int, tuple[Any, Array]] = {}
        self._folded: dict[Node, list[Array]] = {}

    def tensor(self, proto: Any, who: str) -> Array:
        """A tensor's numbers. Raises UnsupportedModelError."""
        if id(proto) not in self._tensors:  # kept with the proto, so that its id stays its own
            self._tensors[id(proto)] = proto, tensor(proto, who)
        return self._tensors[id(proto)][1]

    def constant(self, node: Node) -> Array:
        """The value of a Constant node. Raises UnsupportedModelError."""
        given = node.attributes(
            value="tensor", value_float="float", value_int="int", value_floats="floats",
            value_ints="ints",
        )  # fmt: skip
        if len(given) != 1:
            raise UnsupportedModelError(
                f"{node} has {counted(len(given), 'value')}; the file is damaged"
            )
        ((name, value),) = given.items()
        if name == "value":
            if node not in self._folded:
                self._folded[node] = [tensor(value, f"the value of {node}")]
            return self._folded[node][0]
        return np.asarray(value, np.float32 if "float" in name else np.int64)

    def fold(self, node: Node, inputs: Sequence[Array | None], *, keep: bool) -> list[Array]:
        """Outputs of `node`, one of FOLDED. keep: whether its inputs are always these.

        Raises UnsupportedModelError.
        """
        if keep and node in self._folded:
            return self._folded[node]
        try:
            size = _size(node, inputs)
        except (ValueError, TypeError, IndexError, AttributeError) as e:
            raise UnsupportedModelError(
                f"{node} has inputs that don't fit it or each other; the file is damaged"
            ) from e
        if size > self._left:
            raise UnsupportedModelError(
                f"{node} would make {size:,} numbers, too many for a file of this size"
            )
        self._left -= size + PER_NODE
        outputs = _evaluated(node, inputs)
        if keep:
            self._folded[node] = outputs
        return outputs


def _size(node: Node, inputs: Sequence[Array | None]) -> int:
    """A bound on the numbers in the outputs."""
    given = [a for a in inputs if a is not None]
    if node.op == "ConstantOfShape":
        return _product(given[0])
    if node.op == "Expand":
        return math.prod(np.broadcast_shapes(given[0].shape, _shape(given[1])))
    if node.op == "Tile":
        return given[0].size * math.prod(_shape(given[1]))
    if node.op in ELEMENTWISE:
        return math.prod(np.broadcast_shapes(*(a.shape for a in given)))
    if node.op == "Gather":
        rest = list(given[0].shape)
        del rest[node.attributes(axis="int").get("axis", 0)]
        return int(math.prod(rest) * given[1].size)
    return sum(a.size for a in given)


def _shape(a: Array) -> tuple[int, ...]:
    shape = tuple(int(n) for n in a.ravel())
    if any(n < 0 for n in shape):
        raise ValueError(f"a shape of {list(shape)}")
    return shape


def _product(a: Array) -> int:
    return math.prod(_shape(a))


def _evaluated(node: Node, inputs: Sequence[Array | None]) -> list[Array]:
    from onnx import ValueInfoProto, helper  # noqa: PLC0415  (an extra)
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    if node.op == "Cast" and node.attributes(to="int", saturate="int", round_mode="string").get(
        "to"
    ) not in (*FLOATS, *INTEGERS, BOOL):
        raise UnsupportedModelError(f"{node} casts to a type that is no number's")
    names = {name: a for name, a in zip(node.proto.input, inputs, strict=False) if a is not None}
    graph = helper.make_graph(
        [node.proto],
        "folded",
        [ValueInfoProto(name=name) for name in names],
        [ValueInfoProto(name=name) for name in node.proto.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            made = [np.asarray(a) for a in ReferenceEvaluator(model).run(None, names)]
    except Exception as e:  # whatever wrong inputs make of it
        raise UnsupportedModelError(f"{node} can't be computed ({line_of(e)})") from e
    made = [a.astype(np.float32) if _half(a) else a for a in made]
    if any(a.dtype.kind not in "fiub" for a in made):
        raise UnsupportedModelError(f"{node} makes what is no array of numbers")
    outputs = iter(made)
    return [next(outputs) if name else np.empty(0) for name in node.proto.output]


def _half(a: Array) -> bool:
    return a.dtype.name in ("float16", "bfloat16")
