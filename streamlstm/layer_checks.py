"""A layer as it was given, made one that nobody can change, or refused."""

from __future__ import annotations

from dataclasses import Field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from streamlstm.errors import ModelError
from streamlstm.layers import SATURATION, Array, Layer, is_tensor


def checked(k: int, layer: Layer, dtype: np.dtype[Any]) -> Layer:
    """A copy of layer k in `dtype` whose arrays nobody can change. Raises ModelError."""
    who = f"layer {k} ({layer.kind})"
    given = {f: getattr(layer, f.name) for f in fields(layer)}
    options = {f.name: _option(who, f, v) for f, v in given.items() if not is_tensor(f)}
    tensors = {
        f.name: _tensor(who, f, v) for f, v in given.items() if is_tensor(f) and v is not f.default
    }
    if any(a.ndim != 2 for name, a in tensors.items() if name in ("w", "w_x", "w_h")):
        raise ModelError(f"{who}: its weights must be matrices")
    layer = type(layer)(**options | tensors)
    if problem := layer.problem():
        raise ModelError(f"{who}: {problem}")
    for name, a in layer.tensors().items():
        if a.shape != layer.shapes()[name]:
            raise ModelError(f"{who}: {name} has shape {a.shape}, expected {layer.shapes()[name]}")
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            tensors[name] = np.array(a, dtype=dtype, order="C")
        if not a.size or not np.isfinite(tensors[name]).all():
            raise ModelError(f"{who}: {name} is empty or not finite in {dtype}")
        if name in ("h0", "c0") and np.abs(tensors[name]).max() > SATURATION:
            raise ModelError(f"{who}: {name} goes beyond {SATURATION:.0e}, which no cell reaches")
        tensors[name].flags.writeable = False
    return type(layer)(**options | tensors)


def _tensor(who: str, field: Field[Any], given: Any) -> Array:
    a = np.asarray(given)
    if a.dtype.kind not in "fiu":
        raise ModelError(f"{who}: {field.name} holds {a.dtype}; expected real numbers")
    return a


def _option(who: str, field: Field[Any], given: Any) -> Any:
    """An option as the very type that it is said to have, so that equal ones look equal."""
    wanted: type[bool | int | float | str]
    match str(field.type):
        case "bool":
            wanted, right = bool, isinstance(given, bool | np.bool_)
        case "int":
            wanted, right = int, isinstance(given, Integral) and not isinstance(given, bool)
        case "float | None":
            wanted, right = float, isinstance(given, Real) and not isinstance(given, bool)
            if given is None:
                return None
        case _:
            wanted, right = str, isinstance(given, str)
    if not right:
        raise ModelError(f"{who}: {field.name} is {given!r}; expected a {wanted.__name__}")
    try:
        return wanted(given)
    except OverflowError:
        raise ModelError(f"{who}: {field.name} is too large") from None
