"""Payload columns: the numbers of a message as arrays, from bin or from plain lists."""

from __future__ import annotations

from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamlstm.errors import InputError, ProtocolError, ShapeError
from streamlstm.service.operations import Payload, Vector

Array: TypeAlias = npt.NDArray[Any]


def event_bytes(payload: Payload, dtype: np.dtype[Any], inputs: int) -> bytes:
    """One event as raw numbers: bin of `inputs` numbers of `dtype`, or a list of them."""
    if isinstance(payload, bytes):
        if len(payload) != inputs * dtype.itemsize:
            raise ShapeError(
                f"an event is {inputs} {dtype.name} numbers ({inputs * dtype.itemsize} bytes), "
                f"got {len(payload)} bytes"
            )
        return payload
    if len(payload) != inputs:
        raise ShapeError(f"an event is {inputs} numbers, got a list of {len(payload)}")
    return _numbers(payload, dtype).tobytes()


def matrix(payload: Payload, dtype: np.dtype[Any], inputs: int) -> Array:
    """Rows of events as an array [rows, inputs] of `dtype`; read-only when it came as bin."""
    if isinstance(payload, bytes):
        if len(payload) % (inputs * dtype.itemsize):
            raise ShapeError(
                f"rows of {inputs} {dtype.name} numbers are {inputs * dtype.itemsize} bytes each, "
                f"{len(payload)} bytes are not whole rows"
            )
        return np.frombuffer(payload, dtype).reshape(-1, inputs)
    for index, row in enumerate(payload):
        if type(row) is not tuple or len(row) != inputs:
            raise ShapeError(f"row {index} must be a list of {inputs} numbers")
    return _numbers(tuple(chain.from_iterable(payload)), dtype).reshape(-1, inputs)


def _numbers(values: tuple[Any, ...], dtype: np.dtype[Any]) -> Array:
    if not set(map(type, values)) <= {int, float}:
        raise InputError("a list payload may hold numbers only")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which the engine refuses
        return np.array(values, np.float64).astype(dtype)


def integers(value: Vector, dtype: str, name: str) -> Array:
    """A vector of handles ('<u8'), epochs ('<u4') or seqs ('<i8') from bin or a list."""
    if isinstance(value, bytes):
        if len(value) % np.dtype(dtype).itemsize:
            raise ProtocolError(f"{name}: {len(value)} bytes are not whole {dtype} numbers")
        return np.frombuffer(value, dtype)
    try:
        return np.array(value, dtype)
    except OverflowError:
        raise ProtocolError(f"{name}: a number does not fit {dtype}") from None
