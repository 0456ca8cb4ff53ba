"""What flows through an ONNX graph, step by step, and where its axes are.

A Flow is the network's numbers on their way, with an axis of steps "T", of the batch "B", of
features "F", and any of size 1. Which layers made it, and where its axes stand, is known at
each node; an operator of which that can't be proven is refused (operators, axes).
An axis of size 1 is "1" whatever it means, since moving such axes moves no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.fold import Scale
from streamlstm.importers.onnx.graph import Node
from streamlstm.layers import Layer

Array = NDArray[Any]
Axes = tuple[str, ...]
MOST_LAYERS = 256


@dataclass(frozen=True, eq=False)
class Flow:
    """A value that the network's input has gone into.

    layers: what it went through. width: its features (None: not told yet); steps: those of the
    sequence that is assumed; batch: the graph's, 0 where it is left open (and 1 then). dtype: a
    TensorProto.DataType. last: of all steps just the last one. hidden: the h of a recurrent
    layer's last step, and nothing done to it.
    """

    layers: tuple[Layer | Scale, ...]
    axes: Axes
    width: int | None
    steps: int
    batch: int
    dtype: int
    last: bool = False
    hidden: bool = False

    def __post_init__(self) -> None:
        size = {"T": self.steps, "B": self.batch, "F": self.width}
        small = {axis for axis, n in size.items() if n == 1}
        if small & set(self.axes):
            axes = tuple("1" if axis in small else axis for axis in self.axes)
            object.__setattr__(self, "axes", axes)

    def sizes(self, node: Node) -> tuple[int, ...]:
        """Of each axis. Raises UnsupportedModelError."""
        if "F" in self.axes and self.width is None:
            raise UnsupportedModelError(
                f"{node} needs the size of the features, which the graph's input does not tell; "
                "export with a fixed one"
            )
        size = {"T": self.steps, "B": self.batch or 1, "F": self.width or 1, "1": 1}
        return tuple(size[axis] for axis in self.axes)

    def has_features(self, k: int) -> bool:
        """Whether axis k is that of the features."""
        if not -len(self.axes) <= k < len(self.axes):
            return False
        return self.axes[k] == "F" or (self.width == 1 and self.axes[k] == "1")

    def through(self, layer: Layer | Scale, width: int) -> Flow:
        """This flow behind one more layer of as many axes. Raises UnsupportedModelError."""
        if len(self.layers) >= MOST_LAYERS:  # each flow has its own list of them
            raise UnsupportedModelError(
                f"the network has more than {MOST_LAYERS} layers, one behind the other"
            )
        return replace(self, layers=(*self.layers, layer), width=width, hidden=False)

    def moved(self, axes: Sequence[str]) -> Flow:
        """The same numbers with their axes elsewhere."""
        return replace(self, axes=tuple(axes))


# --- for operators ----------------------------------------------------------------------------


def unproven(node: Node, why: str) -> UnsupportedModelError:
    """The refusal of a node that `why`."""
    return UnsupportedModelError(f"{node} {why}; select one recurrent layer, or export without it")


def constant(node: Node, given: Sequence[Any], k: int = 0) -> Array:
    """Input k after the flow, which must be a constant."""
    a = given[k] if k < len(given) else None
    if isinstance(a, np.ndarray):
        return a
    raise UnsupportedModelError(f"{node} lacks its input {k + 1}; the file is damaged")


def ints(node: Node, given: Sequence[Any], k: int) -> list[int] | None:
    """Input k as whole numbers; None where it is not given."""
    if k >= len(given) or given[k] is None:
        return None
    a = constant(node, given, k)
    if a.dtype.kind not in "iu" or a.ndim > 1:
        raise UnsupportedModelError(f"{node} has {a.dtype} where it needs whole numbers")
    return [int(n) for n in a.ravel()]


def floats(node: Node, a: Array) -> Array:
    """`a`, which must be floats."""
    if a.dtype.kind != "f":
        raise UnsupportedModelError(f"{node} has constants of {a.dtype}; expected floats")
    return a
