"""The largest events that a network can take, so that every number in it stays finite."""

from __future__ import annotations

import numpy as np

from streamlstm.errors import ModelError
from streamlstm.layers import Array
from streamlstm.model import Model


def largest_event(model: Model) -> Array:
    """The largest magnitude of each input [inputs] that leaves every number finite.

    A sensor's "missing" is often the largest float: it would make an infinite sum, the
    difference of two of them NaN, and a NaN never leaves h and c. Followed through the layers
    is the largest magnitude a sum can reach, gain * (scaled event) + offset; what a layer's
    functions bound has gain 0.
    """
    largest = float(np.finfo(model.dtype).max)
    top, scaled = largest / 4, np.inf
    gain, offset = 1.0, 0.0
    for k, layer in enumerate(model.layers):
        rows, more = layer.reach()
        gain, offset = gain * rows, offset * rows + more
        if offset >= top:
            raise ModelError(f"layer {k} ({layer.kind}): its weights can overflow {model.dtype}")
        if gain:
            scaled = min(scaled, (top - offset) / gain)
        bound = layer.bound()
        if bound is not None:
            gain, offset = 0.0, bound
    if model.head is not None:
        return np.full(model.head.network_inputs, min(scaled, largest))
    mean, std = np.array([(f.mean, f.std) for f in model.inputs]).T
    for f in model.outputs:
        if offset * f.std + abs(f.mean) >= largest:
            raise ModelError(f"output {f.name!r}: its mean and std can overflow {model.dtype}")
    if model.vocabulary:
        return np.array([model.vocabulary - 1], model.dtype)
    with np.errstate(over="ignore"):
        events: Array = np.minimum(scaled * std - np.abs(mean), largest)
    if not (events > np.abs(mean)).all():
        name = model.inputs[int(np.argmin(events > np.abs(mean)))].name
        raise ModelError(f"input {name!r}: its mean is too many std from 0 for {model.dtype}")
    return events
