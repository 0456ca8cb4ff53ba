"""Batch normalisation and activations put into the layers beside them.

A batch norm that is only run is y = scale x + shift (Ioffe & Szegedy 2015, algorithm 2), which
a linear dense layer before it or a layer with weights after it takes in without a trace. Only at
the start of a network it would leave one: events may be far from zero, and what the shift took away
would then be the difference of two large sums. There it becomes the inputs' mean and std.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError
from streamlstm.layers import GRU, LSTM, Activation, Dense, Embedding, Layer
from streamlstm.wording import counted

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scale:
    """y = scale x + shift, both [size]."""

    scale: Array
    shift: Array

    def __post_init__(self) -> None:
        _check_vectors(scale=self.scale, shift=self.shift)
        for name in ("scale", "shift"):  # a shift in float32 has lost digits of what it takes away
            object.__setattr__(self, name, np.asarray(getattr(self, name), float))

    @classmethod
    def batch_norm(
        cls, mean: Array, variance: Array, gamma: Any, beta: Any, epsilon: float
    ) -> Scale:
        """gamma (x - mean) / sqrt(variance + epsilon) + beta; gamma and beta may be 1 and 0."""
        given = {"gamma": gamma, "beta": beta}
        _check_vectors(
            mean=mean, variance=variance, **{name: a for name, a in given.items() if np.ndim(a)}
        )
        with np.errstate(all="ignore"):  # what is not finite is refused with the layer's weights
            scale = gamma / np.sqrt(np.asarray(variance, float) + epsilon)
            return cls(scale, beta - np.asarray(mean, float) * scale)

    @property
    def input_size(self) -> int:
        """Numbers that it takes in a step."""
        return int(self.scale.size)

    output_size = input_size


def _check_vectors(**vectors: Any) -> None:
    shapes = {name: list(np.shape(a)) for name, a in vectors.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len({*map(str, shapes.values())}) > 1:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UnsupportedModelError(
            f"a batch normalisation's tensors don't fit each other ({told}): "
            "each has one number for each feature"
        )


def leading(layers: Sequence[Layer | Scale]) -> tuple[Scale | None, Sequence[Layer | Scale]]:
    """What is done to the events first, where inputs' mean and std can say it, and the rest."""
    scales: list[Scale] = []
    for layer in layers:
        if not isinstance(layer, Scale):
            break
        scales.append(layer)
    if not scales:
        return None, layers
    first = reduce(_chained, scales)
    sayable = np.isfinite(first.shift) & np.isfinite(first.scale) & (first.scale > 0)
    return (first, layers[len(scales) :]) if sayable.all() else (None, layers)


def folded(layers: Sequence[Layer | Scale]) -> list[Layer]:
    """The same network without Scale, and with activations in the dense layers before them.

    Raises UnsupportedModelError when a Scale does not fit its neighbours.
    """
    layers = [m for m in layers if not (isinstance(m, Activation) and m.function == "linear")]
    for below, layer in pairwise(layers):
        if Scale in (type(below), type(layer)) and below.output_size != layer.input_size:
            raise UnsupportedModelError(
                f"a layer gives {counted(below.output_size, 'number')} where the next takes "
                f"{layer.input_size}; one of the two is a batch normalisation"
            )
    with np.errstate(all="ignore"):  # what is not finite in the layers' dtype is refused by Model
        return _with_activations(_without_scales(layers))


def _without_scales(layers: Sequence[Layer | Scale]) -> list[Layer]:
    tensors = (m.tensors().values() for m in layers if not isinstance(m, Scale))
    dtype = next((np.asarray(a).dtype for own in tensors for a in own), np.dtype(np.float32))
    out: list[Layer] = []
    pending: Scale | None = None
    for layer in layers:
        if isinstance(layer, Scale):
            pending = layer if pending is None else _chained(pending, layer)
            if out and (taken := _scaled_after(out[-1], pending)):
                out[-1], pending = taken, None
        elif pending is None:
            out.append(layer)
        else:
            taken = _scaled_before(pending, layer)
            out += [taken] if taken else [_diagonal(pending, dtype), layer]
            pending = None
    return out if pending is None else [*out, _diagonal(pending, dtype)]


def _with_activations(layers: Sequence[Layer]) -> list[Layer]:
    out: list[Layer] = []
    for layer in layers:
        below = out[-1] if out else None
        if (
            isinstance(layer, Activation)
            and isinstance(below, Dense)
            and below.activation == "linear"
            and below.output_size == layer.size  # else Model says that it does not fit
        ):
            out[-1] = Dense(below.w, below.b, layer.function)
        else:
            out.append(layer)
    return out


def _chained(first: Scale, then: Scale) -> Scale:
    return Scale(first.scale * then.scale, first.shift * then.scale + then.shift)


def _like(a: Array, weights: Array) -> Array:
    return np.asarray(a).astype(weights.dtype)


def _scaled_after(layer: Layer, s: Scale) -> Layer | None:
    """One layer that does what `layer` and then `s` do; None where there is none."""
    if isinstance(layer, Dense) and layer.activation == "linear":
        w = _like(layer.w * s.scale[:, None], layer.w)
        return Dense(w, _like(layer.b * s.scale + s.shift, layer.b))
    if isinstance(layer, Embedding):
        return Embedding(_like(layer.w * s.scale + s.shift, layer.w))
    return None


def _scaled_before(s: Scale, layer: Layer) -> Layer | None:
    """One layer that does what `s` and then `layer` do; None where there is none."""
    if isinstance(layer, Dense):
        w, b = layer.w.astype(float), layer.b
        return Dense(_like(w * s.scale, layer.w), _like(b + w @ s.shift, b), layer.activation)
    # The shift would be in a layer-normed sum, the bias is behind it.
    if isinstance(layer, GRU) or (isinstance(layer, LSTM) and layer.norm is None):
        w, b = layer.w_x.astype(float), layer.b
        return replace(layer, w_x=_like(w * s.scale, layer.w_x), b=_like(b + w @ s.shift, b))
    return None


def _diagonal(s: Scale, dtype: np.dtype[Any]) -> Dense:
    """A dense layer that does what `s` does."""
    return Dense(np.diag(s.scale).astype(dtype), np.asarray(s.shift, dtype))
