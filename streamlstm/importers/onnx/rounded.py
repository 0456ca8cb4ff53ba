"""Dense layers that round their input to 8 bits, as onnxruntime's quantize_dynamic writes them.

    q, s, z = DynamicQuantizeLinear(x);  y = Cast(MatMulInteger(q, W, z, z_W)) * (s * s_W)

They stand for x @ (W - z_W) s_W (onnx/docs/Operators.md), which is what they become.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.onnx.flow import Flow, unproven
from streamlstm.importers.onnx.graph import FLOAT, Node
from streamlstm.importers.onnx.operators import dense

Array = NDArray[Any]
ROUNDS = "DynamicQuantizeLinear"


@dataclass(frozen=True, eq=False)
class Rounded:
    """What is made of a flow on its way through such a layer.

    part: "numbers", "scale" or "zero" (zero point) of the flow; "sum": with the weights less
    their zero point. w: these weights [I, O], or the weights' scale beside the flow's.
    """

    flow: Flow
    part: str
    w: Array | None = None


def rounded(node: Node, given: Sequence[Any]) -> list[Rounded | Flow] | None:
    """The outputs of a node of such a layer; None where it is none. given: flows, Rounded and
    arrays. Raises UnsupportedModelError."""
    if node.op == ROUNDS and len(given) == 1 and isinstance(given[0], Flow):
        node.attributes()
        return [Rounded(given[0], part) for part in ("numbers", "scale", "zero")]
    if not any(isinstance(each, Rounded) for each in given):
        return None
    parts = [each.part if isinstance(each, Rounded) else "" for each in given]
    by_part = {each.part: each for each in given if isinstance(each, Rounded)}
    arrays = [each for each in given if isinstance(each, np.ndarray)]
    first = next(iter(by_part.values()))
    one = all(each.flow is first.flow for each in by_part.values())
    step = (node.op, *sorted(parts)) if node.op == "Mul" else (node.op, *parts)
    if step == ("Cast", "sum") and node.attributes(to="int").get("to") == FLOAT:
        return [first]
    if step == ("Mul", "", "scale") and first.w is None and arrays and arrays[0].dtype == "f4":
        return [replace(first, w=arrays[0])]
    if step[:4] == ("MatMulInteger", "numbers", "", "zero") and one and arrays:
        w, zero = (*arrays, np.zeros((), arrays[0].dtype))[:2]
        if w.dtype in (np.int8, np.uint8) and w.ndim == 2 and _fits(zero, w):
            exact = w.astype(np.float32) - zero.astype(np.float32)
            return [replace(first, part="sum", w=exact)]
    if step == ("Mul", "scale", "sum") and one:
        scale, exact = by_part["scale"].w, by_part["sum"].w
        if scale is not None and exact is not None and _fits(scale, exact):
            zeros = np.zeros(exact.shape[1], np.float32)
            return [dense(node, first.flow, (exact * scale).T, zeros)]
    raise unproven(node, "is of no quantised layer as onnxruntime writes them")


def _fits(a: Array, w: Array) -> bool:
    """Whether it is one number for all of w, or for each column."""
    return a.shape in ((), (1,), (w.shape[1],))
