"""Events as a caller gives them, made an array: the same rules embedded and over a service.

Where numbers have names, they go by name, whatever their order: mappings, data frames (pandas,
polars, pyarrow and whatever narwhals reads), a pandas Series with names as its index, NumPy's
structured arrays, named tuples, rows of a database, lists of any of these. All others go by place;
so does a column, whose own name tells as often which sensor it is of.
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
    *("__dataframe__", "__arrow_c_stream__", "__narwhals_dataframe__", "collect", "index"),
)
"""What a data frame, or a Series with names, has one of."""

_NAMES_SHOWN: Final = 10  # of what is unknown, in a sentence


def as_events(
    x: Any, names: Sequence[str], ndim: int, dtype: np.dtype[Any], time: str | None = None
) -> Array:
    """x as a C-ordered array [..., inputs] of `ndim` axes (1, 2 or 3) and of `dtype`.

    x: see above; of one input the last axis may be left out, and a data frame of one row is also
    one event. time: which of the names, always the first, is a time. What `dtype` can't hold
    becomes infinite: refuse it after.
    Raises MissingInputError, DtypeError, ShapeError, InputError for what is no time.
    """
    a = _as_array(x, names, time)
    if a.dtype.kind not in "iuf":
        raise DtypeError(
            f"events must be real numbers; got dtype {a.dtype}: convert them to {dtype}"
        )
    if ndim == 1 and a.ndim == 2 and len(a) == 1 and not isinstance(x, _PLACED):
        a = a[0]
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
    """What to go through for one event after the other: of named columns their rows, as arrays."""
    columns = _columns(events, time)
    if columns is None or isinstance(events, (np.ndarray, tuple)):
        return events
    return as_events(columns, names, 2, np.dtype(np.float64), time)


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


def columns_of(frame: Any, time: str | None = None) -> dict[str, Any] | None:
    """The columns of a data frame by name, each an array; None for what is no data frame.

    time: where no column has this name, it is the index of a pandas frame that has it, or that is
    made of times.
    """
    import narwhals as nw  # noqa: PLC0415  (takes 30 ms, and most never need it)

    try:
        read = nw.from_native(frame, pass_through=True, allow_series=True)
    except ValueError as error:
        raise InputError(f"the data frame can't be read: {error}".replace("\n", " ")) from None
    if isinstance(read, nw.LazyFrame):
        raise InputError("the data frame is a lazy one: give its collect(), or the df() of DuckDB")
    if isinstance(read, nw.Series):
        return None
    if not isinstance(read, nw.DataFrame):
        if hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "__dataframe__"):
            raise InputError(
                f"a {type(frame).__name__} is not read here: make a table of pyarrow of it, or a "
                "data frame of polars or pandas"
            )
        return None
    columns = {str(column.name): _values(column) for column in read.iter_columns()}
    index: Any = nw.maybe_get_index(read)
    if time is None or time in columns or index is None:
        return columns
    column = nw.from_native(index.to_series(), series_only=True)
    if index.name == time or column.dtype == nw.Datetime:
        columns[time] = _values(column)
    return columns


def _values(column: Any) -> Array:
    """A narwhals Series as an array, NaN where it has no number; times with a zone in UTC."""
    return np.asarray(column.to_numpy())


def _columns(x: Any, time: str | None = None) -> Mapping[Any, Any] | None:
    """Names and what stands under each; None where there are no names."""
    if isinstance(x, Mapping):
        return x
    if isinstance(x, (np.ndarray, np.void)):
        return None if x.dtype.names is None else {name: x[name] for name in x.dtype.names}
    if hasattr(x, "_fields"):  # a named tuple
        return dict(zip(x._fields, x, strict=True))
    if isinstance(x, _PLACED):
        return None
    if any(hasattr(x, mark) for mark in _NAMED):
        return columns_of(x, time) or _labelled(x)
    return dict(x) if callable(getattr(x, "keys", None)) else None  # a database's row


def _labelled(series: Any) -> Mapping[str, Any] | None:
    """A pandas Series as a row of a frame is: names are its index; a Series of structs."""
    import narwhals as nw  # noqa: PLC0415

    read = nw.from_native(series, pass_through=True, series_only=True)
    if not isinstance(read, nw.Series):
        return None
    if isinstance(read.dtype, nw.Struct):
        return {f.name: _values(read.struct.field(f.name)) for f in read.dtype.fields}
    index = nw.maybe_get_index(read)
    if index is None or not len(index) or not all(isinstance(name, str) for name in index):
        return None
    if not index.is_unique:
        raise InputError("the Series has one name twice in its index: give each number its own")
    return dict(zip(index, series, strict=True))


def _as_array(x: Any, names: Sequence[str], time: str | None) -> Array:
    columns = _columns(x, time)
    if columns is not None:
        return _by_name(columns, names, time)
    if isinstance(x, (list, tuple)) and x and _columns(x[0], time) is not None:
        return _array([_as_array(row, names, time) for row in x])
    if time is None:
        return _array(x)
    a = x if isinstance(x, np.ndarray) else _array(x)
    if a.dtype.kind in "iuf" or a.ndim == 0 or not a.shape[-1]:
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


def _numbers(column: Array, whose: str = "got ") -> Array:
    """A column of objects as numbers; None, and pandas' NA and NaT, are no value."""
    try:
        return np.array([_number(value) for value in column.flat], np.float64).reshape(column.shape)
    except TypeError as error:
        raise DtypeError(f"events must be real numbers; {whose}{error}") from None


def _number(value: Any) -> float:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return np.nan
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, (bool, np.timedelta64)
    ):
        return float(value)
    raise TypeError(f"{value!r}, a {type(value).__name__}: convert it")


def _array(x: Any) -> Array:
    try:
        return np.asarray(x)
    except ValueError as e:
        raise ShapeError(f"the events' rows differ in length: {e}") from None


def _by_name(event: Mapping[Any, Any], names: Sequence[str], time: str | None) -> Array:
    missing = [n for n in names if n not in event]
    unknown = [str(n) for n in event if n not in names]
    if missing or unknown:
        more = counted(len(unknown) - _NAMES_SHOWN, "more name")
        unknown[_NAMES_SHOWN:] = [f"and {more}"] if len(unknown) > _NAMES_SHOWN else []
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has unknown {', '.join(unknown)}" if unknown else ""
        raise MissingInputError(
            f"the event {' and '.join(filter(None, (lacks, has)))}; the model's inputs are "
            f"{', '.join(names)}"
        )
    arrays = [as_seconds(event[n]) if n == time else column_of_numbers(event[n], n) for n in names]
    if len({a.shape for a in arrays}) > 1:
        shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True))
        raise ShapeError(f"the named inputs differ in shape: {shapes}")
    return np.stack(arrays, axis=-1)


def column_of_numbers(column: Any, name: str) -> Array:
    """What stands under a name as an array of numbers, None as NaN. Raises DtypeError, ShapeError.

    bool counts as 0 and 1, as it does in a list.
    """
    if not isinstance(column, _PLACED):
        import narwhals as nw  # noqa: PLC0415

        read = nw.from_native(column, pass_through=True, series_only=True)
        column = _values(read) if isinstance(read, nw.Series) else column
    a = _array(column)
    if a.dtype == object:
        return _numbers(a, f"{name} has ")
    if a.dtype.kind == "b":
        return a.astype(np.uint8)
    if a.dtype.kind not in "iuf":
        raise DtypeError(f"events must be real numbers; {name} has dtype {a.dtype}: convert it")
    return a
