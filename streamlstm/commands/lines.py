"""Lines for a person: wrapped at words, facts under each other, readers who have enough."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Final, TextIO

FACT: Final = 13
"""Where a fact's text begins."""


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


def printable(text: str) -> str:
    """What stands in a file may hold what would move the terminal's cursor."""
    return text if text.isprintable() else repr(text)


def while_read(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command whose reader, say `head`, may have enough."""
    try:
        code = run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


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
