"""Events as a caller gives them, made an array: the same rules embedded and over a service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm.errors import DtypeError, MissingInputError, ShapeError
from streamlstm.head import Head

Array = NDArray[Any]


def as_events(x: Any, names: Sequence[str], ndim: int, dtype: np.dtype[Any]) -> Array:
    """x as a C-ordered array [..., inputs] of `ndim` axes (1, 2 or 3) and of `dtype`.

    x: an array, nested lists, or a mapping from the inputs' `names` to their columns; for one
    input also a bare number. What `dtype` can't hold becomes infinite: refuse it after.
    Raises MissingInputError, DtypeError, ShapeError.
    """
    if isinstance(x, Mapping):
        x = _by_name(x, names)
    a = _array(x)
    if a.dtype.kind not in "iuf":
        raise DtypeError(
            f"events must be real numbers; got dtype {a.dtype}: convert them to {dtype}"
        )
    if a.ndim == ndim - 1 == 0 and len(names) == 1:
        a = a[None]
    if a.ndim != ndim or a.shape[-1] != len(names):
        axes = ", ".join(("sessions", "time", "inputs")[3 - ndim :])
        axes = "sessions or time, inputs" if ndim == 2 else axes
        raise ShapeError(
            f"events have shape {a.shape}; expected [{axes}] with "
            f"{len(names)} inputs: {', '.join(names)}"
        )
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(a, dtype=dtype)


def acceptable(X: Array, largest: ArrayLike, head: Head | None, vocabulary: int = 0) -> Array:
    """Which numbers of events X [..., inputs] a model can take: bool, of the same shape.

    largest: what each input may be at most, plus or minus [inputs], or one for all. With a head
    NaN is a missing value, but for the time; with a vocabulary events are whole numbers from 0.
    """
    good: Array = np.abs(X) <= largest  # NaN is not
    if head is not None:
        missing = np.isnan(X)
        missing[..., : head.time is not None] = False
        good |= missing
    if vocabulary:
        good &= (X >= 0) & (np.floor(X) == X)
    return good


def _array(x: Any) -> Array:
    try:
        return np.asarray(x)
    except ValueError as e:
        raise ShapeError(f"the events' rows differ in length: {e}") from None


def _by_name(event: Mapping[str, Any], names: Sequence[str]) -> Array:
    missing = [n for n in names if n not in event]
    unknown = [n for n in event if n not in names]
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has unknown {', '.join(map(str, unknown))}" if unknown else ""
        raise MissingInputError(
            f"the event {' and '.join(filter(None, (lacks, has)))}; the model's inputs are "
            f"{', '.join(names)}"
        )
    columns = [_array(event[n]) for n in names]
    if len({a.shape for a in columns}) > 1:
        shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, columns, strict=True))
        raise ShapeError(f"the named inputs differ in shape: {shapes}")
    return np.stack(columns, axis=-1)
