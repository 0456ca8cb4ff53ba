"""JSON that someone else wrote: read, and its lists of numbers as arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import UnsupportedModelError


def load(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UnsupportedModelError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:  # not UTF-8, not JSON, or nested too deep
        raise UnsupportedModelError(
            f"{path} is not JSON ({e}); is the file complete and of the format its name says?"
        ) from e
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object; expected a network's file")
    return content


def numbers(value: Any, who: str) -> NDArray[np.float32]:
    """Nested lists of finite numbers, of any shape, as float32. Raises UnsupportedModelError."""
    try:
        a = np.asarray(value)
    except (ValueError, RecursionError):  # lists of unequal lengths, or nested too deep
        a = np.asarray(None)
    if a.dtype.kind not in "iuf":
        raise UnsupportedModelError(f"{who} is not numbers in lists of equal lengths")
    with np.errstate(over="ignore"):
        a = a.astype(np.float32)
    if not np.isfinite(a).all():
        raise UnsupportedModelError(f"{who} holds a number that is not finite in float32")
    return a


def size(value: Any, who: str) -> int:
    """A whole number of 1 or more. Raises UnsupportedModelError."""
    if type(value) is not int or value < 1:
        raise UnsupportedModelError(f"{who} is {value!r}; expected a whole number of 1 or more")
    return value
