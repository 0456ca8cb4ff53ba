"""Events from CSV: a header row maps columns to inputs by name, or the columns are in order."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TextIO

from streamlstm.errors import InputError


def open_csv(path: str) -> TextIO:
    """A CSV file, or stdin for "-"; bytes that are not UTF-8 are no number, and so refused."""
    file = sys.stdin.fileno() if path == "-" else path
    return open(
        file, newline="", encoding="utf-8-sig", errors="surrogateescape", closefd=path != "-"
    )


def rows(source: Iterable[str], inputs: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, the inputs' cells) of each row that is not empty; finds out about a header.

    Raises InputError where the header lacks an input, or the text is no CSV.
    """
    reader = csv.reader(source)
    columns: list[int] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if columns is None:
                header = not all(_is_number(cell) for cell in row)
                columns = _columns(row, inputs) if header else list(range(len(inputs)))
                if header:
                    continue
            yield reader.line_num, [row[i] if i < len(row) else "" for i in columns]
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: {error}") from None


def _columns(header: list[str], inputs: Sequence[str]) -> list[int]:
    names = [cell.strip() for cell in header]
    missing = [name for name in inputs if name not in names]
    if missing:
        raise InputError(
            f"the header lacks the model's input(s) {', '.join(missing)}; it has {', '.join(names)}"
        )
    return [names.index(name) for name in inputs]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def event(cells: Sequence[str], inputs: Sequence[str]) -> list[float]:
    """The numbers in one row's cells. Raises InputError."""
    numbers = []
    for cell, name in zip(cells, inputs, strict=True):
        if not _is_number(cell):
            raise InputError(f"column {name} holds {cell!r}, expected a number")
        numbers.append(float(cell))
    return numbers


def read_events(path: str, inputs: Sequence[str], most: int) -> list[list[float]]:
    """The first `most` events of a file. Raises OSError, InputError naming the line."""
    events = []
    with open_csv(path) as source:
        for line, cells in islice(rows(source, inputs), most):
            try:
                events.append(event(cells, inputs))
            except InputError as error:
                raise InputError(f"{path}, line {line}: {error}") from None
    if not events:
        raise InputError(f"{path} holds no events")
    return events
