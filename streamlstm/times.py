"""Times as people write and keep them, made seconds since 1970 UTC; without an offset it is UTC."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streamlstm.errors import InputError
from streamlstm.head import LARGEST_TIME_S

NO_TIME: Final = "a time is NaT: leave that row out, a reading needs a time"
EXPECTED: Final = "expected a time like 2014-02-14 14:30:00"


def seconds(text: str) -> float:
    """A time as seconds since 1970 UTC, from ISO 8601 or from such a number.

    "2014-02-14 14:30:00", "2014-02-14T14:30Z", "2014-02-14"; without an offset it counts as UTC.
    Eight digits that are a date from 1900 to 2099 (20140214) are that date, not seconds.
    Raises ValueError, which tells what was expected.
    """
    text = text.strip()
    if re.fullmatch("(19|20)[0-9]{6}", text):
        with suppress(ValueError):
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    try:
        number = plain_float(text)
    except ValueError:
        try:
            return _of_datetime(datetime.fromisoformat(text))
        except ValueError:
            raise ValueError(EXPECTED) from None
    if LARGEST_TIME_S < abs(number) <= 1e3 * LARGEST_TIME_S:
        raise ValueError("expected seconds since 1970; divide milliseconds by 1000")
    if not abs(number) <= LARGEST_TIME_S:
        raise ValueError(f"{EXPECTED}, or seconds since 1970")
    return number


def plain_float(text: str) -> float:
    """float(), which takes more than people mean: "1_000", and digits of other scripts."""
    text = text.strip()
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is no number")
    return float(text)


def as_seconds(times: Any) -> NDArray[np.float64]:
    """Times of any shape as seconds since 1970 UTC, float64 of that shape.

    times: one or an array of datetime and date objects, pandas' Timestamps, NumPy's datetime64 of
    any unit, text as `seconds` takes it, or numbers, which are seconds already.
    Raises InputError.
    """
    array = times if isinstance(times, np.ndarray) else _array(times)
    if array.dtype.kind == "M":
        if np.isnat(array).any():
            raise InputError(NO_TIME)
        # Microseconds are exact in float64 up to the year 2255.
        return np.asarray(array.astype("datetime64[us]").astype(np.int64) / 1e6, np.float64)
    if array.dtype.kind in "iuf":
        return array.astype(np.float64)
    found = np.empty(array.shape, np.float64)
    for index, value in np.ndenumerate(array):
        found[index] = _one(value)
    return found


def _array(times: Any) -> NDArray[Any]:
    """Without a guess of NumPy's at what mixed things have in common."""
    if isinstance(times, (str, bytes, date)):
        array = np.empty((), object)
        array[()] = times
        return array
    array = np.asarray(times)
    return array if array.dtype.kind in "iufM" else np.asarray(times, object)


def _one(value: Any) -> float:
    if isinstance(value, str):
        try:
            return seconds(value)
        except ValueError as error:
            raise InputError(f"a time is {str(value)!r}; {error}") from None
    if isinstance(value, np.datetime64):
        return float(as_seconds(np.asarray(value)))
    if isinstance(value, datetime):
        if value != value:  # noqa: PLR0124  (pandas' NaT, a datetime that is not itself)
            raise InputError(NO_TIME)
        return _of_datetime(value)
    if isinstance(value, date):
        return _of_datetime(datetime.combine(value, time()))
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, (bool, np.timedelta64)
    ):
        return float(value)
    raise InputError(f"a time is {value!r}, a {type(value).__name__}; {EXPECTED}")


def _of_datetime(value: datetime) -> float:
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
