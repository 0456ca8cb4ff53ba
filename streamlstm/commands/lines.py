"""Lines for a person: facts under each other, and readers who have enough."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TextIO


def say(what: str, text: object) -> None:
    print(f"{what:12} {printable(str(text))}")


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
        self(f"{what:12} {text}")
