"""Keras' own word: its layers, made anew of what was read and checked, run one after the other.

No file is given to Keras. Its load_model makes every layer that a file names, also one that leads
nowhere, and some run code as they are made (Lambda, TFOpLambda; HDF5 knows no safe mode). Here
there are only the classes and options below, with the arrays as Keras keeps them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.fold import Scale
from streamlstm.importers.keras.cells import RECURRENT, cells
from streamlstm.importers.keras.files import KerasFile, refuse, role_of
from streamlstm.importers.keras.flow import Config, Part
from streamlstm.importers.keras.layers import Layers, wrapped
from streamlstm.importers.keras.options import renamed
from streamlstm.layers import Embedding, Layer

Array = NDArray[Any]
Pair = tuple[Part, Layer | Scale]

# What changes the numbers; axes are checked to be the last one, which is Keras' default.
_CELL = ("activation", "recurrent_activation", "use_bias")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "Activation": ("activation",),
    "BatchNormalization": ("epsilon", "scale", "center"),
    "Dense": ("activation", "use_bias"),
    "Embedding": (),
    "GRU": (*_CELL, "reset_after"),
    "GRUCell": (*_CELL, "reset_after"),
    "LSTM": _CELL,
    "LSTMCell": _CELL,
    "Normalization": ("mean", "variance"),
    "ReLU": (),
    "Rescaling": ("scale", "offset"),
    "Softmax": (),
}


def imported(name: str) -> Any:
    """Keras, on whatever backend there is; None without it."""
    if importlib.util.find_spec(name) is None:
        return None
    variable = "KERAS_BACKEND"
    chosen = variable in os.environ or name in sys.modules
    backends = ("tensorflow", "jax", "torch")  # the first is Keras' default
    had = next((b for b in backends if importlib.util.find_spec(b) is not None), None)
    if not chosen and had is not None:
        os.environ[variable] = had
    try:
        keras = importlib.import_module(name)
    except Exception:  # a backend that does not start is one that is not there
        return None
    finally:
        if not chosen:
            os.environ.pop(variable, None)
    return keras if name == "tf_keras" or keras.__version__.startswith("3.") else None


def paired(part: Part, layers: Layers) -> Iterator[Pair]:
    """Our layers of a part beside those that they are of: its cells, what it wraps, itself."""
    if part.kind in RECURRENT:
        yield from zip(cells(part), layers, strict=True)
    elif layers:  # else it does nothing
        inner = wrapped(part) if part.kind == "TimeDistributed" else part
        yield from zip([inner], layers, strict=True)


def answers(keras: Any, file: KerasFile, pairs: Iterable[Pair], x: Array) -> Array:
    """What Keras' layers answer to x [steps, inputs] in every step: [steps, outputs].

    In single precision (double where the weights are), as in what we import. Of ours only the
    sizes are used. Raises UnsupportedModelError for what this Keras does not have.
    """
    double = any(a.dtype == np.float64 for a in file.weights.values())
    dtype = "float64" if double else "float32"
    a = np.asarray(x, dtype)[None]
    for part, ours in pairs:
        layer = _layer(keras, file, part, ours, dtype)
        a = a[..., 0] if part.kind == "Embedding" else a
        layer(a[:, :1])  # which makes its weights
        if layer.weights:
            roles = [role_of(weight.name) for weight in layer.weights]
            arrays = file.variables(part.who, part.place, roles)
            layer.set_weights([arrays[role] for role in roles])
        if part.kind == "Normalization":
            layer.finalize_state()
        y = layer(a)
        a = np.asarray(y.detach() if hasattr(y, "detach") else y)  # torch's
    return a.reshape(len(x), -1)


def _layer(keras: Any, file: KerasFile, part: Part, ours: Layer | Scale, dtype: str) -> Any:
    """Keras' layer of a part, without weights."""
    if part.kind.startswith("CuDNN"):
        refuse(f"{part.who} runs on GPUs alone; compare with outputs that you kept")
    config: Config = {"reset_after": False}  # the default of files without it
    config |= renamed(part.config)
    options = {name: config[name] for name in _OPTIONS[part.kind] if name in config}
    if "hard_sigmoid" in options.values() and file.major != 3 and keras.__name__ == "keras":
        refuse(f"{part.who} has hard_sigmoid, which Keras 3 changed: pip install tf_keras")
    make = getattr(keras.layers, part.kind)
    if isinstance(ours, Embedding):
        return make(ours.vocabulary, ours.output_size, dtype=dtype)
    if part.kind == "Dense":
        return make(ours.output_size, dtype=dtype, **options)
    if part.kind in ("LSTM", "GRU"):
        return make(ours.output_size, dtype=dtype, return_sequences=True, **options)
    if part.kind in RECURRENT:
        cell = make(ours.output_size, dtype=dtype, **options)
        return keras.layers.RNN(cell, dtype=dtype, return_sequences=True)
    return make(dtype=dtype, **options)
