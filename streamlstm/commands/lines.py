"""Lines for a person: wrapped at words, facts under each other, readers who have enough."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Final, TextIO

FACT: Final = 13
"""Where a fact's text begins."""

NAME_WIDTH: Final = 11
"""Of a table's columns, at which their names are broken."""


def wrapped(text: str, indent: int) -> str:
    """Text in lines as wide as the terminal, 80 where there is none; all but the first indented."""
    return textwrap.fill(
        text,
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fact(what: str, text: object) -> str:
    """What it is of, and under each other what it is."""
    return wrapped(f"{what:{FACT - 1}} {printable(str(text))}", FACT)


def say(what: str, text: object) -> None:
    print(fact(what, text))


def complain(sentence: str) -> None:
    """A sentence on stderr, in one line where a program reads it."""
    text = f"streamlstm: {sentence}"
    print(wrapped(text, 2) if sys.stderr.isatty() else text, file=sys.stderr)


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Rows of cells under their names, numbers to the right; long names go over several lines."""
    header = [textwrap.wrap(name, NAME_WIDTH) for name in table[0]]
    height = max(map(len, header))
    lines = [[""] * (height - len(words)) + words for words in header]
    rows = [*zip(*lines, strict=True), *table[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))


def printable(text: str) -> str:
    """What stands in a file may hold what would move the terminal's cursor."""
    return text if text.isprintable() else repr(text)


class Teller:
    """Lines for a human. A reader who has enough of them does not end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def fact(self, what: str, text: str) -> None:
        self(fact(what, text))
