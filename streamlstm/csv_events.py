"""Events from CSV: a header row maps columns to inputs by name, or the columns are in order.

Cells stand between commas, semicolons or tabs; the first line tells which.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import BinaryIO, Final, TextIO, cast

from streamlstm.errors import InputError
from streamlstm.times import plain_float, seconds
from streamlstm.wording import counted

MISSING: Final = ("", "nan", "na", "n/a", "null", "none")  # cells without a value, in any case
NAMES_SHOWN: Final = 10  # of a header, in a sentence


@dataclass(frozen=True)
class Columns:
    """What an event's numbers are called.

    time: which of them, if any, is a time. gaps: the others may have no value (NaN).
    """

    names: Sequence[str]
    time: str | None = None
    gaps: bool = False


def open_csv(path: str) -> TextIO:
    """A CSV file, also one packed by gzip (.gz), or stdin for "-"; bytes that are not UTF-8 are no
    number, and so refused."""
    if path.endswith(".gz"):
        return io.TextIOWrapper(
            cast(BinaryIO, gzip.GzipFile(path)), "utf-8-sig", "surrogateescape", newline=""
        )
    file = sys.stdin.fileno() if path == "-" else path
    return open(
        file, newline="", encoding="utf-8-sig", errors="surrogateescape", closefd=path != "-"
    )


def table(source: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not empty. Raises InputError: the text is no CSV."""
    lines = _unpacked(source)
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


def _unpacked(source: Iterable[str]) -> Iterator[str]:
    """The lines of a source. Raises InputError where gzip can't unpack it."""
    line = 0
    try:
        for line, text in enumerate(source, 1):  # noqa: B007
            yield text
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(
            f"line {line + 1}: from here on the file, a .gz by its name, can't be unpacked"
        ) from None


def rows(source: Iterable[str], columns: Columns) -> Iterator[tuple[int, list[str]]]:
    """(line number, the columns' cells) of each row that is not empty; finds out about a header.

    Cells beyond the header follow them, for event() to refuse. Raises InputError where the header
    lacks a column or has it twice, or the text is no CSV.
    """
    at: list[int] | None = None
    width = None
    for line, row in table(source):
        if at is None:
            if not all(_is_data(cell, columns) for cell in row):
                at, width = places(row, columns.names, "the model's input"), len(row)
                continue
            at = list(range(len(columns.names)))
        yield line, cells_at(row, at, width)


def places(
    header: Sequence[str], wanted: Sequence[str], what: str, where: str = "the header"
) -> list[int]:
    """Where in a header the wanted columns stand. Raises InputError, which calls them `what`."""
    names = [cell.strip() for cell in header]
    absent = [name for name in wanted if name not in names]
    if absent and any(re.search("[\0\udc80-\udcff]", name) for name in names):
        raise InputError(
            f"the header lacks {what} {', '.join(absent)}, and it is not UTF-8; "
            "save the file as CSV in UTF-8"
        )
    if absent:
        shown = [name if len(name) <= 40 else f"{name[:40]}..." for name in names[:NAMES_SHOWN]]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        raise InputError(
            f"{where} lacks {what} {', '.join(absent)}; it has {', '.join(shown)}{more}"
        )
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise InputError(f"{names.count(twice[0])} columns are called {twice[0]}; rename them")
    again = [name for name in wanted if wanted.count(name) > 1]
    if again:
        raise InputError(f"column {again[0]} is asked for twice; each has one use")
    return [names.index(name) for name in wanted]


def cells_at(row: Sequence[str], at: Sequence[int], width: int | None) -> list[str]:
    """The cells at these places, "" where a row is short, and those beyond a header so wide."""
    beyond = () if width is None else row[width:]
    return [row[k] if k < len(row) else "" for k in at] + [cell for cell in beyond if cell.strip()]


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
        plain_float(text)
    except ValueError:
        return False
    return True


def event(cells: Sequence[str], columns: Columns) -> list[float]:
    """The numbers in one row's cells. Raises InputError."""
    if len(cells) > len(columns.names):
        raise InputError(
            f"the row has {counted(len(cells) - len(columns.names), 'cell')} more than the header; "
            "write decimal points, and quote text that has commas"
        )
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
    if is_number(text) and not math.isinf(plain_float(text)):
        return plain_float(text)
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
