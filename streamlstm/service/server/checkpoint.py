"""Cutting the journal short: rows of what changed are written, then the records before them go.

Every few seconds a checkpoint begins: sessions that changed get their rows written, a slice a turn,
and when all that were dirty at its beginning are written the records up to there are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.service.server.journal import Journal
from streamlstm.service.server.sessions import Sessions

Array = npt.NDArray[Any]

CHECKPOINT_S: Final = 5.0
SLICE_BUSY: Final = 64 << 10
"""Bytes of rows that a checkpoint writes in a turn: about a millisecond."""
SLICE_IDLE: Final = 2 << 20
SLICE_ROWS: Final = 16
FINISH_ROWS: Final = 512
TRIM_RECORDS: Final = 200
"""Records dropped in a turn."""


class Checkpoint:
    """Of a journal and all sessions whose changes it has."""

    def __init__(self, journal: Journal, tables: Sequence[Sessions]) -> None:
        self._journal = journal
        self._store = journal.store
        self._tables = tables
        self._due: list[tuple[Sessions, Array]] = []  # of the checkpoint under way
        self._through = self._store.trimmed  # the journal's last record at its beginning
        self._begun_s = 0.0

    def turn(self, now: float, *, idle: bool) -> None:
        """A turn's share of the work; commit the journal after it."""
        under_way = self._due or self._store.trimmed < self._through
        if not under_way and (now < self._begun_s + CHECKPOINT_S or not self._begin(now)):
            return
        left = SLICE_IDLE if idle else SLICE_BUSY
        while self._due and left > 0:
            sessions, seats = self._due.pop()
            part, rest = seats[:SLICE_ROWS], seats[SLICE_ROWS:]
            left -= sessions.states.write(part[sessions.table.dirty[part]])
            if len(rest):
                self._due.append((sessions, rest))
        if not self._due:
            self._store.trim(min(self._through, self._store.trimmed + TRIM_RECORDS))

    def _begin(self, now: float) -> bool:
        self._begun_s = now
        if not self._journal.appended:
            return False
        self._through, self._journal.appended = self._journal.appended, 0
        self._due = [(each, np.flatnonzero(each.table.dirty)) for each in self._tables]
        return True

    def finish(self) -> None:
        """Write every row that is due: nothing is left to be replayed."""
        journal = self._journal
        journal.commit()
        for sessions in self._tables:
            seats = np.flatnonzero(sessions.table.dirty)
            for start in range(0, len(seats), FINISH_ROWS):
                sessions.states.write(seats[start : start + FINISH_ROWS])
                self._store.commit()
        last = max(journal.appended, self._through)
        self._due = []
        if last > self._store.trimmed:
            self._store.trim(last)
        journal.appended = 0
        self._store.commit()
