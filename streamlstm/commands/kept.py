"""An engine whose sessions last in a directory, where `detect --state` names one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, Self

from streamlstm.engine import Engine, Session

SAVE_S: Final = 1.0
"""Between two savings: what a killed command does again."""


class Kept:
    """An engine whose sessions last in a directory, where there is one to keep them in."""

    def __init__(self, engine: Engine, directory: str | None) -> None:
        self.engine = engine
        self._store = None
        self._saved_s = time.monotonic()
        self._took_s = 0.0
        if directory is None:
            return
        from streamlstm import saved_sessions, store  # noqa: PLC0415  (brings in SQLite)

        self._write = saved_sessions.write
        self._store = store.open_store(Path(directory), "async")
        try:
            saved_sessions.refuse_journal(self._store)
            saved_sessions.read(engine, self._store)
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._store is not None:
            self._write(self.engine, self._store)
            self._store.close()

    def open(self, name: str) -> Session:
        return self.engine[name] if name in self.engine else self.engine.open(name)

    def save(self, *, every_s: float = 0.0) -> None:
        """Keep what the sessions remember now, unless that was done within so many seconds, or
        would take more than a twentieth of the time."""
        if self._store is None:
            return
        began_s = time.monotonic()
        if began_s >= self._saved_s + max(every_s, 20 * self._took_s):
            self._write(self.engine, self._store)
            self._saved_s = time.monotonic()
            self._took_s = self._saved_s - began_s
