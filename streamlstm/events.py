"""Events as a caller gives them, made an array: the same rules embedded and over a service.

Where numbers have names, they go by name, whatever their order: mappings, data frames (pandas,
polars, pyarrow and whatever narwhals reads), a pandas Series with names as its index, NumPy's
structured arrays, named tuples, lists of mappings and of named tuples. All others go by place.
Where an event has a time, it may be anything that times.as_seconds takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm.errors import (
    DtypeError,
    InputError,
    MissingInputError,
    NonFiniteError,
    ShapeError,
)
from streamlstm.head import Head
from streamlstm.times import as_seconds
from streamlstm.wording import counted

Array = NDArray[Any]

_PLACED: Final = (np.ndarray, list, tuple, int, float, str, bytes, np.generic)
"""What surely has no names, so that narwhals need not be asked, nor imported."""


_NAMED: Final = (
    "__dataframe__",
    "__arrow_c_stream__",
    "__narwhals_dataframe__",
    "collect",
    "index",
)
"""What a data frame, or a Series with names, has one of."""


def as_events(
    x: Any, names: Sequence[str], ndim: int, dtype: np.dtype[Any], time: str | None = None
) -> Array:
    """x as a C-ordered array [..., inputs] of `ndim` axes (1, 2 or 3) and of `dtype`.

    x: see above; of one input the last axis may be left out. time: which of the names, always the
    first, is a time. What `dtype` can't hold becomes infinite: refuse it after.
    Raises MissingInputError, DtypeError, ShapeError, InputError for what is no time.
    """
    a = _as_array(x, names, time)
    if a.dtype.kind not in "iuf":
        raise DtypeError(
            f"events must be real numbers; got dtype {a.dtype}: convert them to {dtype}"
        )
    if a.ndim == ndim - 1 and len(names) == 1:
        a = a[..., None]
    if a.ndim != ndim or a.shape[-1] != len(names):
        axes = ", ".join(("sessions", "time", "inputs")[3 - ndim :])
        axes = "sessions or time, inputs" if ndim == 2 else axes
        raise ShapeError(
            f"events have shape {a.shape}; expected [{axes}] with "
            f"{counted(len(names), 'input')}: {', '.join(names)}"
        )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.ascontiguousarray(a, dtype=dtype)


def rows_of(events: Any, names: Sequence[str], time: str | None = None) -> Any:
    """What to go through for one event after the other: of a data frame its rows, as arrays."""
    if isinstance(events, (*_PLACED, Mapping)) or _columns(events) is None:
        return events
    return as_events(events, names, 2, np.dtype(np.float64), time)


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


def unacceptable(
    X: Array, largest: ArrayLike, head: Head | None, vocabulary: int = 0
) -> NonFiniteError:
    """What to say of the first number that `acceptable` refuses; there must be one."""
    where = np.argwhere(~acceptable(X, largest, head, vocabulary))[0].tolist()
    number = f"input{where} is {X[tuple(where)]}"
    if vocabulary:
        return NonFiniteError(
            f"{number}; this model's embedding takes whole numbers from 0 to {vocabulary - 1}"
        )
    if head is None:
        remedy = "repair it or leave it out"
    elif head.time is not None and where[-1] == 0:
        remedy = "time is in seconds since 1970"
    else:
        remedy = "give NaN for a missing value"
    most = np.broadcast_to(largest, X.shape)[tuple(where)]
    return NonFiniteError(
        f"{number}; an event must be finite, and within {most:.1e} for this model: {remedy}"
    )


def columns_of(frame: Any) -> dict[str | None, Any] | None:
    """The columns of a data frame by name, each an array, a time as seconds since 1970 UTC.

    None for what is no data frame. Of a pandas frame with times as its index they are column None.
    """
    import narwhals as nw  # noqa: PLC0415  (takes 30 ms, and most never need it)

    read = nw.from_native(frame, pass_through=True)
    if isinstance(read, nw.LazyFrame):
        raise InputError("the data frame is a lazy one: give its collect()")
    if not isinstance(read, nw.DataFrame):
        return None
    columns: dict[str | None, Any] = {str(name): _values(read[name]) for name in read.columns}
    index: Any = nw.maybe_get_index(read)
    if hasattr(index, "tz"):  # of pandas, and made of times
        columns[None] = as_seconds((index.tz_convert(None) if index.tz else index).values)
    return columns


def _values(series: Any) -> Array:
    """The numbers of a narwhals Series, NaN where it has none; times as seconds."""
    import narwhals as nw  # noqa: PLC0415

    if series.dtype not in (nw.Datetime, nw.Date):
        return np.asarray(series.to_numpy())
    if series.is_null().any():
        raise InputError(f"column {series.name} holds a NaT: leave such rows out")
    if series.dtype == nw.Date:
        series = series.cast(nw.Datetime("us"))
    return np.asarray(series.dt.timestamp("us").to_numpy() / 1e6, np.float64)


def _columns(x: Any) -> Mapping[Any, Any] | None:
    """Names and what stands under each; None where there are no names."""
    if isinstance(x, Mapping):
        return x
    if isinstance(x, (np.ndarray, np.void)):
        return None if x.dtype.names is None else {name: x[name] for name in x.dtype.names}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return dict(zip(x._fields, x, strict=True))
    if isinstance(x, _PLACED) or not any(hasattr(x, mark) for mark in _NAMED):
        return None
    return columns_of(x) or _labelled(x)


def _labelled(series: Any) -> Mapping[str, Any] | None:
    """A pandas Series, as a row of a frame is: names are its index."""
    import narwhals as nw  # noqa: PLC0415

    read = nw.from_native(series, pass_through=True, series_only=True)
    index = nw.maybe_get_index(read) if isinstance(read, nw.Series) else None
    if index is None or not len(index) or not all(isinstance(name, str) for name in index):
        return None
    return dict(zip(index, series, strict=True))


def _as_array(x: Any, names: Sequence[str], time: str | None) -> Array:
    columns = _columns(x)
    if columns is not None:
        return _by_name(columns, names, time)
    if isinstance(x, (list, tuple)) and x and _columns(x[0]) is not None:
        rows = [_as_array(row, names, time) for row in x]
        return _array(rows)
    if time is None:
        return _array(x)
    a = x if isinstance(x, np.ndarray) else _array(x)
    if a.dtype.kind in "iuf" or a.ndim == 0:
        return a
    # Times among numbers: NumPy would make all of them text, or times.
    a = np.array(x, object)
    return np.stack(
        [
            as_seconds(a[..., k]) if names[k : k + 1] == [time] else _numbers(a[..., k])
            for k in range(a.shape[-1])
        ],
        axis=-1,
    )


def _numbers(column: Array) -> Array:
    """A column of objects as numbers; None is no value."""
    try:
        return np.array([_number(value) for value in column.flat], np.float64).reshape(column.shape)
    except TypeError as error:
        raise DtypeError(f"events must be real numbers; {error}") from None


def _number(value: Any) -> float:
    if value is None:
        return np.nan
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"got {value!r}, a {type(value).__name__}")


def _array(x: Any) -> Array:
    try:
        return np.asarray(x)
    except ValueError as e:
        raise ShapeError(f"the events' rows differ in length: {e}") from None


def _by_name(event: Mapping[Any, Any], names: Sequence[str], time: str | None) -> Array:
    columns = dict(event)
    index = columns.pop(None, None)
    if index is not None and time is not None:
        columns.setdefault(time, index)
    missing = [n for n in names if n not in columns]
    unknown = [n for n in columns if n not in names]
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has unknown {', '.join(map(str, unknown))}" if unknown else ""
        raise MissingInputError(
            f"the event {' and '.join(filter(None, (lacks, has)))}; the model's inputs are "
            f"{', '.join(names)}"
        )
    arrays = [as_seconds(columns[n]) if n == time else column_of_numbers(columns[n]) for n in names]
    if len({a.shape for a in arrays}) > 1:
        shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True))
        raise ShapeError(f"the named inputs differ in shape: {shapes}")
    return np.stack(arrays, axis=-1)


def column_of_numbers(column: Any) -> Array:
    """What stands under a name as an array, None as NaN. Raises DtypeError, ShapeError."""
    if not isinstance(column, _PLACED):
        import narwhals as nw  # noqa: PLC0415

        read = nw.from_native(column, pass_through=True, series_only=True)
        column = _values(read) if isinstance(read, nw.Series) else column
    a = _array(column)
    return _numbers(a) if a.dtype == object else a
