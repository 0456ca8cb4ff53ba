"""Ctrl-C and SIGTERM while rows are awaited: a row that is there is done, and then the end."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Final, Self, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class _StopError(BaseException):
    """Out of a wait; no `except Exception` on the way takes it."""


class Stops:
    """A context in which both signals end `rows`; `code` is then the exit code, else 0."""

    def __init__(self) -> None:
        self.code = 0
        self._waiting = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.code = 128 + number
        if self._waiting:
            self._waiting = False
            raise _StopError

    def rows(self, source: Iterable[T]) -> Iterator[T]:
        """What comes of a source until a signal does."""
        rows = iter(source)
        while not self.code:
            try:
                self._waiting = True
                row = next(rows)
                self._waiting = False
            except (StopIteration, _StopError):
                return
            finally:
                self._waiting = False
            yield row
