"""A Keras layer as our layers: what stands between and around the recurrent ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.fold import Scale
from streamlstm.importers.keras.cells import RECURRENT, cells, recurrent
from streamlstm.importers.keras.files import KerasFile, refuse
from streamlstm.importers.keras.flow import SELECT, Part, layer_of
from streamlstm.importers.keras.options import (
    REQUIRED,
    check_shape,
    check_units,
    function_of,
    matrix,
    options,
)
from streamlstm.layers import FUNCTIONS, Activation, Dense, Embedding, Function, Layer
from streamlstm.wording import counted

Array = NDArray[Any]
Layers = list[Layer | Scale]

# Layers that do nothing when a model is only run.
_IDLE = (
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "InputLayer",
    "SpatialDropout1D",
)
# Why the best known of the others can't be had.
_UNABLE = {
    "Bidirectional": "needs the end of the sequence before its start; train a forward layer",
    "SimpleRNN": "is a plain RNN, which we do not have; train an LSTM or a GRU",
    "Masking": "leaves steps out; save the model without it and don't send such events",
    "Lambda": "holds Python code, which is never run; put a built-in layer in its place",
    "Flatten": "takes all steps at once, which a stream never has",
    "RepeatVector": "makes one step into many, which a stream can't",
    "Conv1D": "looks at several steps at once, which we do not have",
}
_UNABLE |= dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), "is convolutional")


@dataclass(frozen=True)
class Stream:
    """What flows at a point of the network: "tokens" (a whole number a step), "sequence" (a
    vector a step), "last" (one vector, after return_sequences=False); and numbers in it."""

    kind: str
    size: int | None


def start(first: Part) -> Stream:
    """What the first layer takes."""
    shape = first.config.get("batch_shape", first.config.get("batch_input_shape"))
    if shape is None:
        return Stream("tokens" if first.kind == "Embedding" else "sequence", None)
    if not isinstance(shape, list) or not 2 <= len(shape) <= 3:
        refuse(f"{first.who} takes inputs of shape {shape}; expected [batch, steps, inputs]")
    size = shape[-1] if isinstance(shape[-1], int) else None
    return Stream("tokens", None) if len(shape) == 2 else Stream("sequence", size)


def layers_of(part: Part, file: KerasFile, stream: Stream) -> tuple[Layers, Stream]:
    """Our layers for one of Keras, and what flows on. Raises UnsupportedModelError."""
    if part.kind in _IDLE or (part.kind == "Flatten" and stream.kind == "last"):
        return [], stream
    if part.kind == "Embedding":
        if stream.kind != "tokens":
            refuse(f"{part.who} must come first; {SELECT}")
        embedding = _embedding(part, file)
        return [embedding], Stream("sequence", embedding.output_size)
    if part.kind in RECURRENT and stream.kind == "last":
        refuse(
            f"{part.who} follows a layer that answers once, at the sequence's end "
            f"(return_sequences=False), which a stream never has; {SELECT}"
        )
    if stream.kind == "tokens" and part.kind in (*RECURRENT, *_BUILD, "TimeDistributed"):
        refuse(f"{part.who} takes the whole sequence as one vector, which a stream never has")
    if part.kind in RECURRENT:
        found: Layers = [recurrent(cell, file) for cell in cells(part)]
        kind = "sequence" if part.config.get("return_sequences") else "last"
    else:
        found, kind = _build(part, file, stream), stream.kind
    sizes = [m.output_size for m in found if isinstance(m, Layer)]
    return found, Stream(kind, sizes[-1] if sizes else stream.size)


def _build(part: Part, file: KerasFile, stream: Stream) -> Layers:
    inner = part
    if part.kind == "TimeDistributed" and stream.kind == "sequence":
        options(part, layer=None)
        inner, stream = wrapped(part), Stream("last", stream.size)
        if inner.kind in _IDLE:
            return []
    if inner.kind not in _BUILD:
        refuse(unsupported(part))
    return _BUILD[inner.kind](inner, file, stream)


def unsupported(part: Part) -> str:
    """The sentence about a layer that we do not have."""
    if part.kind in _UNABLE:
        return f"{part.who} {_UNABLE[part.kind]}"
    inside = f" of {wrapped(part).kind}" if part.kind == "TimeDistributed" else ""
    return f"{part.who}{inside} is not supported; {SELECT}"


def wrapped(part: Part) -> Part:
    """The layer in a TimeDistributed."""
    kind, config = layer_of(part.config.get("layer"), f"the layer in {part.who}")
    return Part(part.where, kind, config, replace(part.place, below="/layer"))


def _dense(part: Part, file: KerasFile, stream: Stream) -> Layers:  # noqa: ARG001
    activation, use_bias = options(part, activation=REQUIRED, use_bias=True)
    function = function_of(part, activation, file, FUNCTIONS)
    weights = file.variables(part.who, part.place, ("kernel", "bias")[: 2 if use_bias else 1])
    w = matrix(part, weights, "kernel").T
    b = weights.get("bias", np.zeros(len(w), w.dtype))
    check_shape(part, "bias", b, (len(w),))
    check_units(part, len(w))
    return [Dense(w, b, function)]


def _embedding(part: Part, file: KerasFile) -> Embedding:
    (mask_zero,) = options(part, mask_zero=False)
    if mask_zero:
        refuse(
            f"{part.who} has mask_zero, which leaves steps of 0 out; save the model without it and "
            "don't send such events"
        )
    weights = file.variables(part.who, part.place, ("embeddings",))
    return Embedding(matrix(part, weights, "embeddings"))


def _batch_norm(part: Part, file: KerasFile, stream: Stream) -> Layers:
    epsilon, axis, has_gamma, has_beta = options(
        part, epsilon=REQUIRED, axis=REQUIRED, scale=True, center=True
    )
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        refuse(f"{part.who} has epsilon = {str(epsilon)[:60]}; expected a small number above 0")
    _check_last_axis(part, axis, stream)
    flags = {"gamma": has_gamma, "beta": has_beta, "moving_mean": True, "moving_variance": True}
    weights = file.variables(part.who, part.place, [role for role, had in flags.items() if had])
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    for role, a in weights.items():
        check_shape(part, role, a, (mean.size,))
    _check_variance(part, "moving_variance", variance)
    gamma, beta = weights.get("gamma", 1.0), weights.get("beta", 0.0)
    return [Scale.batch_norm(mean, variance, gamma, beta, epsilon)]


def _normalization(part: Part, file: KerasFile, stream: Stream) -> Layers:
    """(x - mean) / max(sqrt(variance), 1e-7): keras/src/layers/preprocessing/normalization.py."""
    axis, *told = options(part, axis=REQUIRED, mean=None, variance=None)
    _check_last_axis(part, axis, stream)
    if told == [None, None]:
        weights = file.variables(part.who, part.place, ("mean", "variance", "count"))
        mean, variance = weights["mean"], weights["variance"]
        check_shape(part, "variance", variance, mean.shape)
    else:
        mean, variance = (_vector(part, value, stream) for value in told)
    _check_variance(part, "variance", variance)
    scale = 1 / np.maximum(np.sqrt(variance.astype(float)), 1e-7)
    return [Scale(scale, -mean * scale)]


def _rescaling(part: Part, file: KerasFile, stream: Stream) -> Layers:  # noqa: ARG001
    told = options(part, scale=REQUIRED, offset=0.0)
    return [Scale(*(_vector(part, value, stream) for value in told))]


def _vector(part: Part, value: Any, stream: Stream) -> Array:
    """A number, or one for each that flows, as a vector."""
    size = _size(part, stream)
    numbers = value if isinstance(value, list) else [value] * size
    if len(numbers) != size or not all(type(v) in (int, float) for v in numbers):
        refuse(
            f"{part.who} has {str(value)[:60]} for {counted(size, 'input')}; expected one number, "
            f"or {size}"
        )
    return np.array(numbers, float)


def _activation(part: Part, file: KerasFile, stream: Stream) -> Layers:
    (name,) = options(part, activation=REQUIRED)
    return _activated(part, function_of(part, name, file, FUNCTIONS), stream)


def _relu(part: Part, file: KerasFile, stream: Stream) -> Layers:  # noqa: ARG001
    limit, slope, threshold = options(part, max_value=None, negative_slope=0.0, threshold=0.0)
    if limit is not None or slope != 0 or threshold != 0:
        refuse(
            f"{part.who} has max_value, negative_slope or threshold; only max(x, 0) is supported"
        )
    return _activated(part, "relu", stream)


def _softmax(part: Part, file: KerasFile, stream: Stream) -> Layers:  # noqa: ARG001
    (axis,) = options(part, axis=-1)
    _check_last_axis(part, axis, stream)
    return _activated(part, "softmax", stream)


def _activated(part: Part, function: Function, stream: Stream) -> Layers:
    return [Activation(function, _size(part, stream))]


def _size(part: Part, stream: Stream) -> int:
    if stream.size is None:
        refuse(f"{part.who} comes first, and the file does not tell the number of inputs")
    return stream.size


def _check_variance(part: Part, role: str, a: Array) -> None:
    if not (a >= 0).all():
        refuse(f"{role} of {part.who} has numbers below 0; the file is damaged")


def _check_last_axis(part: Part, axis: Any, stream: Stream) -> None:
    """That it works on the numbers of one step, not on the steps."""
    last = 2 if stream.kind == "sequence" else 1
    if axis not in (-1, last, [-1], [last]):
        refuse(f"{part.who} has axis = {str(axis)[:60]}; the last one can be imported")


_BUILD: dict[str, Callable[[Part, KerasFile, Stream], Layers]] = {
    "Activation": _activation,
    "BatchNormalization": _batch_norm,
    "Dense": _dense,
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Softmax": _softmax,
}
