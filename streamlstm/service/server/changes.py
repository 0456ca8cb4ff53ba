"""Changes of sessions: as the journal has them, and the one way in which they are kept.

Each record is a msgpack array of its verb and its fields:

    open     model, session, name, epoch, token, state or nil   also a fork
    own      session, epoch, token                              a new epoch
    step     model, sessions, seqs, X, nil                      each event a message
    steps    model, sessions, seqs, X, digests                  one message
    run      session, first seq, X
    reset    session, seq
    restore  session, seq, state, digest
    end      session                                            closed or evicted

Sessions go by their id in the store. Several of them and seqs are bin of int64, X and states bin in
the events' dtype. What puts a row into the store itself (spilling, quarantine) needs no record: its
seq tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import numpy.typing as npt

from streamlstm.service import operations
from streamlstm.service.server.answers import Answers
from streamlstm.service.server.journal import Journal
from streamlstm.service.server.table import SessionTable

Array = npt.NDArray[Any]


class Opened(NamedTuple):
    model: int
    session: int
    name: str
    epoch: int
    token: int
    state: bytes | None


class Owned(NamedTuple):
    session: int
    epoch: int
    token: int


class Stepped(NamedTuple):
    model: int
    sessions: bytes
    seqs: bytes
    X: bytes
    digests: None = None


class SteppedTogether(NamedTuple):
    model: int
    sessions: bytes
    seqs: bytes
    X: bytes
    digests: bytes


class Ran(NamedTuple):
    session: int
    first: int
    X: bytes


class WasReset(NamedTuple):
    session: int
    seq: int


class Restored(NamedTuple):
    session: int
    seq: int
    state: bytes
    digest: int


class Ended(NamedTuple):
    session: int


Record: TypeAlias = Opened | Owned | Stepped | SteppedTogether | Ran | WasReset | Restored | Ended

_VERBS: Final[dict[type[Record], str | None]] = {
    Opened: operations.OPEN.verb,
    Owned: "own",
    Stepped: operations.STEP.verb,
    SteppedTogether: operations.STEPS.verb,
    Ran: operations.RUN.verb,
    WasReset: operations.RESET.verb,
    Restored: operations.RESTORE.verb,
    Ended: operations.CLOSE.verb,
}
_RECORDS: Final = {verb: record for record, verb in _VERBS.items()}


def as_written(record: Record) -> tuple[Any, ...]:
    return _VERBS[type(record)], *record


def as_read(written: tuple[Any, ...]) -> Record:
    return _RECORDS[written[0]]._make(written[1:])


class Changes:
    """The books of a model's sessions, into which every change goes.

    journal: None where nothing outlives the process.
    """

    def __init__(self, table: SessionTable, answers: Answers, journal: Journal | None) -> None:
        self.table = table
        self.answers = answers
        self.journal = journal

    def commit_change(
        self,
        seats: Any,
        known_by: Any,
        answer: Any,
        record: Callable[[Any, Any], Record] | None,
        rows: int | None = None,
    ) -> Any:
        """A change takes its number, keeps its answer, marks its session dirty and is journaled.

        That an event counts exactly once rests on these four being one: nothing else moves a seq.
        seats: one seat, or [n] that change together. known_by, answer: digest and answer, or [n]
        of each. record: makes the journal's record from ids and first numbers; None leaves it out,
        because the state is not finite and its row will be written. rows: events of a run, which
        has as many numbers and one answer. The last number, or numbers [n].
        """
        table, answers = self.table, self.answers
        one = type(seats) is int
        numbers, dirty = (table.row_seqs, table.row_dirty) if one else (table.seqs, table.dirty)
        first = last = numbers[seats] + 1
        if rows is not None:
            last = first + rows - 1
            answers.keep_run(seats, first, last, known_by, answer)
        elif one:
            answers.keep(seats, last, known_by, answer)
        else:
            answers.keep_many(seats, last, known_by, answer)
        numbers[seats] = last
        if self.journal is not None:
            dirty[seats] = True
            if record is not None:
                ids = int(table.ids[seats]) if one else table.ids[seats]
                self.note(record(ids, first))
        return last

    def note(self, record: Record) -> None:
        """Into the journal, if there is one, without a number."""
        if self.journal is not None:
            self.journal.add(as_written(record))
