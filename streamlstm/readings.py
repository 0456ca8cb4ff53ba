"""Readings from a CSV file with a header, or a data frame: times, one column to forecast, others,
many series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streamlstm import csv_events
from streamlstm.errors import InputError
from streamlstm.events import column_of_numbers, columns_of
from streamlstm.times import as_seconds

Array = NDArray[Any]

TIME_NAMES: Final = ("timestamp", "time", "datetime", "date")


@dataclass(frozen=True, eq=False)
class Series:
    """One sensor's readings in the order they came in.

    times: seconds since 1970 UTC, float64 [T], None where there is no time; `time` is the name of
    their column. values: the column to forecast, then the others, float64 [T, 1 + others], NaN
    where there is no value. lines: of `file`, int64 [T].
    """

    name: str
    times: Array | None
    values: Array
    lines: Array
    time: str | None = None
    file: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def events(self) -> Array:
        """The readings as a model with a head takes them, float64 [T, inputs]."""
        return self.values if self.times is None else np.column_stack([self.times, self.values])

    def first(self, rows: int) -> Series:
        """The first `rows` readings."""
        times = None if self.times is None else self.times[:rows]
        return replace(self, times=times, values=self.values[:rows], lines=self.lines[:rows])


def read(
    path: str,
    target: str,
    *,
    time: str | None = None,
    others: Sequence[str] = (),
    series: str | None = None,
) -> list[Series]:
    """The series in a file, "-" for stdin, in the order they begin; at least one.

    time: the column of times; by default the one called timestamp, time, datetime or date, else
    the first one if it begins with an ISO 8601 time; else there is no time. series: the column
    that tells which sensor a row is of; without it the file is one series, named after its target.
    Raises OSError, and InputError naming the line, or the columns that there are.
    """
    with csv_events.open_csv(path) as source:
        table = csv_events.table(source)
        try:
            _, header = next(table, (0, []))
            first = next(table, None)
            if first is None:
                raise InputError("there are no rows below a header")
            wanted = [target, *others, *(name for name in (time, series) if name is not None)]
            csv_events.places(header, wanted, "column")
            if time is None:
                time = _time_column([cell.strip() for cell in header], first[1], wanted)
            inputs = [target, *others] if time is None else [time, target, *others]
            # Which sensor a row is of stands before its numbers.
            at = csv_events.places(
                header, inputs if series is None else [series, *inputs], "column"
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        columns = csv_events.Columns(inputs, time, gaps=True)
        found: dict[str, list[tuple[int, list[float]]]] = {}
        line = 0
        try:
            for line, row in chain([first], table):
                cells = csv_events.cells_at(row, at, len(header))
                whose = target if series is None else cells.pop(0).strip()
                found.setdefault(whose, []).append((line, csv_events.event(cells, columns)))
        except InputError as error:
            where = "" if str(error).startswith("line ") else f"line {line}: "
            raise InputError(f"{path}, {where}{error}") from None
    return [_series(name, time, rows, path) for name, rows in found.items()]


def from_frame(
    frame: Any,
    target: str,
    *,
    time: str | None = None,
    others: Sequence[str] = (),
    series: str | None = None,
) -> list[Series]:
    """The series in a data frame (pandas, polars, pyarrow), as `read` finds them in a file.

    time: the column of times, or the name of a pandas index. By default it is found as in a file;
    an index made of times is a last column called time. lines: row numbers from 1.
    Raises InputError naming the column.
    """
    columns = columns_of(frame, time or "time")
    if columns is None:
        raise InputError(f"readings.from_frame takes a data frame, got {type(frame).__name__}")
    header = list(columns)
    wanted = [target, *others, *(name for name in (time, series) if name is not None)]
    csv_events.places(header, wanted, "column", "the data frame")
    columns = {name.strip(): column for name, column in columns.items()}
    if not len(columns[target]):
        raise InputError("the data frame has no rows")
    if time is None:
        time = _time_column([*columns], [str(next(iter(columns.values()))[0])], wanted)
    times = None if time is None else _times(columns[time])
    values = [column_of_numbers(columns[name], f"column {name}") for name in (target, *others)]
    numbers = np.stack(values, axis=-1).astype(np.float64)
    if np.isinf(numbers).any():
        row, column = np.argwhere(np.isinf(numbers))[0].tolist()
        raise InputError(
            f"row {row + 1} of column {(target, *others)[column]} holds "
            f"{numbers[row, column]}, expected a number"
        )
    whose = np.full(len(numbers), target) if series is None else columns[series].astype(str)
    lines = np.arange(1, len(numbers) + 1)
    return [
        Series(name, None if times is None else times[at], numbers[at], lines[at], time)
        for name in dict.fromkeys(whose.tolist())
        for at in [whose == name]
    ]


def _times(column: Array) -> Array:
    """A column of a data frame as seconds. Numbers must mean the same in a file."""
    if column.dtype.kind not in "iuf":
        return as_seconds(column)
    times = as_seconds(column.astype(str))
    dates = column[times != column]
    if dates.size:
        raise InputError(f"a time is {dates[0]}, a date as a number: make it text or a datetime")
    return times


def _time_column(names: list[str], first: list[str], taken: Sequence[str]) -> str | None:
    """The column of times, by its name or by what stands in the first row."""
    free = [name for name in names if name not in taken]
    named = _named_time(free)
    if named is not None:
        return named
    text = first[0]
    if names[0] in free and csv_events.is_time(text) and not csv_events.is_number(text):
        return names[0]
    return None


def _named_time(names: Iterable[str]) -> str | None:
    called = {name.lower(): name for name in reversed([*names])}
    return next((called[name] for name in TIME_NAMES if name in called), None)


def _series(name: str, time: str | None, rows: list[tuple[int, list[float]]], file: str) -> Series:
    lines = np.array([line for line, _ in rows], dtype=np.int64)
    events = np.array([numbers for _, numbers in rows], dtype=np.float64)
    if time is None:
        return Series(name, None, events, lines, file=file)
    return Series(name, events[:, 0].copy(), events[:, 1:].copy(), lines, time, file)
