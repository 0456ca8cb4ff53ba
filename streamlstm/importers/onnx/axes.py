"""ONNX operators that move axes, or take the last step, and leave the numbers as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.onnx.flow import Flow, constant, ints, unproven
from streamlstm.importers.onnx.graph import FLOATS, Node

Array = NDArray[Any]


def _identity(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    if node.op == "Dropout":
        a = node.attributes(ratio="float", seed="int", is_test="int", consumed_inputs="ints")
        training = given[1] if len(given) > 1 else None
        trains = node.opset < 7 and not a.get("is_test", 0)
        if trains or (training is not None and np.any(training)):
            raise unproven(node, "drops numbers, as in training")
    elif node.op == "Cast":
        to = node.attributes(to="int", saturate="int", round_mode="string").get("to", 0)
        kinds = (6, 7), FLOATS  # an index is the same in int32 and int64; floats are rounded
        if to != flow.dtype and not any({to, flow.dtype} <= set(kind) for kind in kinds):
            raise unproven(node, "changes the type of the numbers")
        return replace(flow, dtype=to)
    else:
        node.attributes()
    return flow


def _transpose(node: Node, flow: Flow, _: Sequence[Any]) -> Flow:
    n = len(flow.axes)
    order = node.attributes(perm="ints").get("perm", list(range(n))[::-1])
    if sorted(order) != list(range(n)):
        raise unproven(node, f"orders {n} axes by {order}")
    return flow.moved([flow.axes[k] for k in order])


def _axes_of(node: Node, given: Sequence[Any], n: int) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze, an input since operator set 13; None: not given."""
    if node.opset >= 13:
        node.attributes()
        axes = ints(node, given, 0)
    else:
        axes = node.attributes(axes="ints").get("axes")
    if axes is None:
        return None
    places = sorted(k + n if k < 0 else k for k in axes)
    if len(set(places)) < len(places) or not all(0 <= k < n for k in places):
        raise unproven(node, f"has axes {axes} of {n}")
    return places


def _squeeze(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    axes = _axes_of(node, given, len(flow.axes))
    if axes is None:
        axes = [k for k, axis in enumerate(flow.axes) if axis == "1"]
    if any(flow.axes[k] != "1" and not (flow.axes[k] == "B" and not flow.batch) for k in axes):
        raise unproven(node, "drops an axis that is not of size 1")
    return flow.moved([axis for k, axis in enumerate(flow.axes) if k not in axes])


def _unsqueeze(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    count = len(given[0]) if given and isinstance(given[0], np.ndarray) and given[0].ndim else 1
    if node.opset < 13:
        count = len(node.attributes(axes="ints").get("axes", []))
    places = _axes_of(node, given, len(flow.axes) + count)
    if not places:
        raise unproven(node, "has no axes")
    old = iter(flow.axes)
    return flow.moved(["1" if k in places else next(old) for k in range(len(flow.axes) + count)])


def _reshape(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    """A new shape that has the same axes beyond size 1, in the same order."""
    sizes = flow.sizes(node)
    if node.op == "Flatten":
        axis = node.attributes(axis="int").get("axis", 1)
        axis += len(sizes) if axis < 0 else 0
        target = [math.prod(sizes[:axis]), math.prod(sizes[axis:])]
    else:
        keeps_zero = node.attributes(allowzero="int", shape="ints", consumed_inputs="ints")
        target = ints(node, given, 0) or list(keeps_zero.get("shape", []))
        if not keeps_zero.get("allowzero", 0) and all(
            n or k < len(sizes) for k, n in enumerate(target)
        ):
            target = [n or sizes[k] for k, n in enumerate(target)]
        if target.count(-1) == 1:
            known = -math.prod(target)
            target[target.index(-1)] = math.prod(sizes) // max(known, 1)
    if target == list(sizes):
        return flow
    if [n for n in target if n != 1] != [n for n in sizes if n != 1]:
        raise unproven(node, f"makes {target} of {list(sizes)}, so that steps or features mix")
    axes = iter([axis for axis, n in zip(flow.axes, sizes, strict=True) if n != 1])
    return flow.moved(["1" if n == 1 else next(axes) for n in target])


def _shape(node: Node, flow: Flow, _: Sequence[Any]) -> Array:
    a = node.attributes(start="int", end="int")
    return np.array(flow.sizes(node)[a.get("start", 0) : a.get("end")], np.int64)


# --- one step of many -----------------------------------------------------------------------------


def _length(flow: Flow, k: int) -> int | None:
    """The size of axis k; None of that of the features."""
    return {"T": flow.steps, "B": flow.batch or 1, "1": 1}.get(flow.axes[k])


def _taken(node: Node, flow: Flow, k: int, steps: Sequence[int]) -> Flow:
    """The flow when of axis k only these places are taken, and the axis stays."""
    size = _length(flow, k)
    if size is not None and list(steps) == list(range(size)):
        return flow
    if flow.axes[k] == "T" and list(steps) == [flow.steps - 1]:
        axes = [*flow.axes[:k], "1", *flow.axes[k + 1 :]]
        return replace(flow.moved(axes), last=True)
    raise unproven(node, "takes out a part that is not the last step")


def _place(node: Node, flow: Flow, k: int) -> int:
    if not -len(flow.axes) <= k < len(flow.axes):
        raise unproven(node, f"has no axis {k}")
    return k % len(flow.axes)


def _slice(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    if node.opset >= 10:
        node.attributes()
        starts, ends, axes, strides = (ints(node, given, k) for k in range(4))
    else:
        a = node.attributes(starts="ints", ends="ints", axes="ints")
        starts, ends, axes, strides = a.get("starts"), a.get("ends"), a.get("axes"), None
    if starts is None or ends is None:
        raise unproven(node, "has no starts and ends")
    axes = list(range(len(starts))) if axes is None else axes
    strides = [1] * len(starts) if strides is None else strides
    if not len(starts) == len(ends) == len(axes) == len(strides) or 0 in strides:
        raise unproven(node, "has starts, ends, axes and steps that don't fit each other")
    for start, end, axis, stride in zip(starts, ends, axes, strides, strict=True):
        k = _place(node, flow, axis)
        if flow.axes[k] == "F":
            if (start, stride) != (0, 1) or flow.width is None or end < flow.width:
                raise unproven(node, "takes out some of the features")
            continue
        flow = _taken(node, flow, k, range(_length(flow, k) or 0)[start:end:stride])
    return flow


def _gather(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    k = _place(node, flow, node.attributes(axis="int").get("axis", 0))
    indices = constant(node, given)
    size = _length(flow, k)
    if size is None or indices.ndim > 1 or indices.dtype.kind not in "iu":
        raise unproven(node, "takes out a part that is not the last step")
    if not all(-size <= n < size for n in indices.ravel()):
        raise unproven(node, "takes out what is not there")
    flow = _taken(node, flow, k, [int(n) % size for n in indices.ravel()])
    return flow if indices.ndim else flow.moved([*flow.axes[:k], *flow.axes[k + 1 :]])


def _concat(node: Node, flow: Flow, given: Sequence[Any]) -> Flow:
    if given:
        raise unproven(node, "puts constants beside the network's numbers")
    return flow


MOVING: dict[str, Callable[[Node, Flow, Sequence[Any]], Flow | Array]] = {
    **dict.fromkeys(("Identity", "Dropout", "Cast"), _identity),
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
}
