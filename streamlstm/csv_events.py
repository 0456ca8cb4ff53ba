"""Events from CSV: a header row maps columns to inputs by name, or the columns are in order.

Cells stand between commas, semicolons or tabs; the first line tells which.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Final, TextIO

from streamlstm.errors import InputError
from streamlstm.head import LARGEST_TIME_S

MISSING: Final = ("", "nan", "na", "n/a", "null", "none")  # cells without a value, in any case


@dataclass(frozen=True)
class Columns:
    """What an event's numbers are called.

    time: which of them, if any, is a time. gaps: the others may have no value (NaN).
    """

    names: Sequence[str]
    time: str | None = None
    gaps: bool = False


def open_csv(path: str) -> TextIO:
    """A CSV file, or stdin for "-"; bytes that are not UTF-8 are no number, and so refused."""
    file = sys.stdin.fileno() if path == "-" else path
    return open(
        file, newline="", encoding="utf-8-sig", errors="surrogateescape", closefd=path != "-"
    )


def table(source: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not empty. Raises InputError: the text is no CSV."""
    lines = iter(source)
    first: list[str] = []
    while not (first and first[-1].strip()) and (line := next(lines, "")):
        first.append(line)
    unquoted = re.sub('"[^"]*"', "", "".join(first))
    delimiter = next((mark for mark in ";\t" if mark in unquoted), ",")
    reader = csv.reader(chain(first, lines), delimiter=delimiter)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: {error}") from None


def rows(source: Iterable[str], columns: Columns) -> Iterator[tuple[int, list[str]]]:
    """(line number, the columns' cells) of each row that is not empty; finds out about a header.

    Raises InputError where the header lacks a column, or the text is no CSV.
    """
    places: list[int] | None = None
    for line, row in table(source):
        if places is None:
            header = not all(_is_data(cell, columns) for cell in row)
            places = _places(row, columns.names) if header else list(range(len(columns.names)))
            if header:
                continue
        yield line, [row[i] if i < len(row) else "" for i in places]


def _places(header: list[str], inputs: Sequence[str]) -> list[int]:
    names = [cell.strip() for cell in header]
    missing = [name for name in inputs if name not in names]
    if missing:
        raise InputError(
            f"the header lacks the model's input(s) {', '.join(missing)}; it has {', '.join(names)}"
        )
    return [names.index(name) for name in inputs]


def _is_data(cell: str, columns: Columns) -> bool:
    """Whether a cell of the first row may stand below a header."""
    gap = columns.gaps and cell.strip().lower() in MISSING
    return gap or is_number(cell) or (columns.time is not None and is_time(cell))


def is_time(text: str) -> bool:
    try:
        seconds(text)
    except ValueError:
        return False
    return True


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def seconds(text: str) -> float:
    """A time as seconds since 1970 UTC, from ISO 8601 or from such a number.

    "2014-02-14 14:30:00", "2014-02-14T14:30Z", "2014-02-14"; without an offset it counts as UTC.
    Raises ValueError, which tells what was expected.
    """
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("expected a time like 2014-02-14 14:30:00") from None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if not abs(number) <= LARGEST_TIME_S:
        raise ValueError("expected a time like 2014-02-14 14:30:00, or seconds since 1970")
    return number


def event(cells: Sequence[str], columns: Columns) -> list[float]:
    """The numbers in one row's cells. Raises InputError."""
    return [
        _time(cell, name) if name == columns.time else _number(cell, name, columns.gaps)
        for cell, name in zip(cells, columns.names, strict=True)
    ]


def _time(cell: str, name: str) -> float:
    try:
        return seconds(cell)
    except ValueError as error:
        raise InputError(f"column {name} holds {cell!r}, {error}") from None


def _number(cell: str, name: str, gaps: bool) -> float:
    text = cell.strip()
    if gaps and text.lower() in MISSING:
        return math.nan
    if is_number(text) and not math.isinf(float(text)):
        return float(text)
    comma = " with a decimal point" if re.fullmatch(r"[-+]?[\d.]*,\d+", text) else ""
    raise InputError(f"column {name} holds {cell!r}, expected a number{comma}")


def read_events(path: str, inputs: Sequence[str], most: int) -> list[list[float]]:
    """The first `most` events of a file. Raises OSError, InputError naming the line."""
    events, columns = [], Columns(inputs)
    with open_csv(path) as source:
        for line, cells in islice(rows(source, columns), most):
            try:
                events.append(event(cells, columns))
            except InputError as error:
                raise InputError(f"{path}, line {line}: {error}") from None
    if not events:
        raise InputError(f"{path} holds no events")
    return events
