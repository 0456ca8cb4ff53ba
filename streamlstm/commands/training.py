"""Training within a command: PyTorch brought in, and how far it is."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from streamlstm.errors import StreamLSTMError

if TYPE_CHECKING:
    from streamlstm.training import Progress


EVERY_S: Final = 10.0  # between lines of progress that nobody overwrites


class ProgressLine:
    """How far training is, on stderr: one line in place on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._next_s = time.monotonic() + (0 if self._in_place else EVERY_S)
        self._width = 0

    def __call__(self, at: Progress) -> None:
        text = (
            f"training: {at.done:,} of {at.updates:,} updates at most, "
            f"loss {at.now:.1%} of the last value's"
        )
        if self._in_place:
            print(f"\r{text:{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)
        elif time.monotonic() >= self._next_s:
            print(text, file=sys.stderr, flush=True)
            self._next_s = time.monotonic() + EVERY_S

    def end(self) -> None:
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)


def training_of_torch() -> Any:
    """streamlstm.training. Raises StreamLSTMError where there is no torch."""
    try:
        with _interrupted_later():
            from streamlstm import training  # noqa: PLC0415  (an extra)

            importlib.import_module("torch._dynamo")  # else the first optimizer does it
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise StreamLSTMError(
            "training needs torch, which is not installed: pip install 'streamlstm[train]'"
        ) from None
    return training


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C takes effect at the end: within imports it becomes whatever they make of it."""
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
