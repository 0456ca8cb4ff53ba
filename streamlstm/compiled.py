"""The compiled half, brought in, and a model made ready to run by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.bounds import largest_event
from streamlstm.errors import ModelError
from streamlstm.feature import Feature
from streamlstm.head import LARGEST_A
from streamlstm.model import Model

try:
    from streamlstm import kernels
    from streamlstm.core.engine import EngineCore
    from streamlstm.core.head import CompiledHead
    from streamlstm.core.network import Network
    from streamlstm.core.sessions import Group, SessionCore
except ImportError as e:
    if not (e.name or "").startswith(("streamlstm.core.", "streamlstm.kernels.")):
        raise
    raise ImportError(
        "streamlstm's compiled modules are missing or out of date beside "
        f"{__file__}; outside its source folder run `pip install` on it, inside it "
        "run `python setup.py build_ext --inplace`"
    ) from e

__all__ = ["EngineCore", "Group", "SessionCore", "made_ready"]

Array = NDArray[Any]


def made_ready(model: Model) -> tuple[Network, Array, CompiledHead | None]:
    """The network of a model for the kernel that runs here, the largest event [inputs] that it can
    take, and its head. Raises ModelError where the network can't take all that its head may give.
    """
    largest = largest_event(model)
    head = None
    if model.head is not None:
        # The difference of two values is the largest of its inputs.
        if largest.min() < 2 * LARGEST_A:
            raise ModelError("the network's weights can overflow with what its head gives it")
        head = CompiledHead(model.head)
        largest = head.largest
    x_mean, x_std = _scaling(model.inputs if head is None else model.layers[0].input_size)
    y_mean, y_std = _scaling(model.outputs if head is None else model.layers[-1].output_size)
    row = kernels.choose(model.dtype).row
    return Network(row, list(model.layers), x_mean, x_std, y_mean, y_std), largest, head


def _scaling(features: Sequence[Feature] | int) -> Array:
    """Mean and std of each: [2, features]; of a number of them that a head has scaled, 0 and 1."""
    if isinstance(features, int):
        return np.array([np.zeros(features), np.ones(features)])
    return np.array([(f.mean, f.std) for f in features]).T
