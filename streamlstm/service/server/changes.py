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
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy.typing as npt

from streamlstm.service import operations
from streamlstm.service.contract import SessionLike
from streamlstm.service.operations import Operation
from streamlstm.service.server.answers import Answers, digest
from streamlstm.service.server.bounds import Bounds
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


class Place(Protocol):
    """Where a session is while a change is made to it again."""

    @property
    def session(self) -> SessionLike[Any]: ...
    def numbers(self) -> Array: ...  # the state [state_size] as it is
    def put(self, state: bytes) -> None: ...  # another one instead


class AskedPlace(Place, Protocol):
    """And while a request asks for it."""

    bounds: Bounds
    read_state: Callable[[bytes], Any]


class WasReset(NamedTuple):
    session: int
    seq: int

    @staticmethod
    def payload(_fields: operations.Reset, _place: AskedPlace) -> bytes:
        return b""

    @staticmethod
    def do(_fields: operations.Reset, place: AskedPlace, _known_by: int) -> tuple[()]:
        place.session.reset()
        return ()

    def redo(self, place: Place) -> int:
        place.session.reset()
        return digest(operations.RESET, b"")


class Restored(NamedTuple):
    session: int
    seq: int
    state: bytes
    digest: int

    @staticmethod
    def payload(fields: operations.Restore, place: AskedPlace) -> bytes:
        place.bounds.check_state(fields.state)
        return fields.state

    @staticmethod
    def do(fields: operations.Restore, place: AskedPlace, known_by: int) -> tuple[bytes, int]:
        place.session.restore(place.read_state(fields.state))
        return place.numbers().tobytes(), known_by

    def redo(self, place: Place) -> int:
        place.put(self.state)
        return self.digest


OfOne: TypeAlias = WasReset | Restored
"""A change of one session that takes one number and answers it, one class for each operation.

payload: what a repeat is known by. do: makes the change, and gives the fields of its record that
follow the seq; raises StreamLSTMError, and has changed nothing. redo: makes it again from the
record, for recovery; gives its digest.
"""

OF_ONE: Final[dict[Operation, type[OfOne]]] = {
    operations.RESET: WasReset,
    operations.RESTORE: Restored,
}


class Ended(NamedTuple):
    session: int


Record: TypeAlias = Opened | Owned | Stepped | SteppedTogether | Ran | OfOne | Ended

_VERBS: Final[dict[type[Record], str | None]] = {
    Opened: operations.OPEN.verb,
    Owned: "own",
    Stepped: operations.STEP.verb,
    SteppedTogether: operations.STEPS.verb,
    Ran: operations.RUN.verb,
    Ended: operations.CLOSE.verb,
    **{record: operation.verb for operation, record in OF_ONE.items()},
}
_RECORDS: Final = {verb: record for record, verb in _VERBS.items()}


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
                change = record(int(table.ids[seats]) if one else table.ids[seats], first)
                self.journal.add((_VERBS[type(change)], *change))
        return last

    def note(self, record: Record) -> None:
        """Into the journal, if there is one, without a number."""
        if self.journal is not None:
            self.journal.add((_VERBS[type(record)], *record))
