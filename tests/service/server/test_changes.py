"""Changes: one function keeps them, and what is written of them is read back as it was."""

from __future__ import annotations

import ast
from pathlib import Path

import msgpack
import numpy as np
import pytest

from streamlstm.service.operations import OPERATIONS
from streamlstm.service.server import changes
from streamlstm.service.server.answers import Answers
from streamlstm.service.server.changes import (
    Changes,
    Ended,
    Opened,
    Owned,
    Ran,
    Restored,
    Stepped,
    SteppedTogether,
    WasReset,
    as_read,
)
from streamlstm.service.server.table import SessionTable

RECORDS = {
    "open": Opened(1, 7, "a", 3, 9, None),
    "own": Owned(7, 4, 10),
    "step": Stepped(1, b"ids", b"seqs", b"X"),
    "steps": SteppedTogether(1, b"ids", b"seqs", b"X", b"digests"),
    "run": Ran(7, 5, b"X"),
    "reset": WasReset(7, 6),
    "restore": Restored(7, 7, b"state", 8),
    "end": Ended(7),
}


class Log:
    """What a journal is to changes."""

    def __init__(self) -> None:
        self.written: list[tuple[object, ...]] = []

    def add(self, change: tuple[object, ...]) -> None:
        self.written.append(change)


def books(journal: Log | None = None) -> Changes:
    table = SessionTable(0)
    answers = Answers(1, np.dtype(np.float32))
    answers.grow(table.seats)
    return Changes(table, answers, journal)  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", RECORDS)
def test_records_come_back_as_written(verb: str) -> None:
    log = Log()
    books(log).note(RECORDS[verb])
    written = msgpack.unpackb(msgpack.packb(log.written[0]), use_list=False)
    assert written[0] == verb
    assert as_read(written) == RECORDS[verb]
    assert type(as_read(written)) is type(RECORDS[verb])


def test_every_operation_that_changes_a_session_has_a_record() -> None:
    verbs = {op.verb for op in OPERATIONS.values() if op.changes}
    assert None not in verbs
    assert verbs <= RECORDS.keys()
    marks = [op.mark for op in OPERATIONS.values() if op.changes]
    assert len(set(marks)) == len(marks)  # else another operation's message were a repeat


def test_a_change_of_one() -> None:
    log = Log()
    kept = books(log)
    table, y = kept.table, np.float32(3).tobytes()
    table.ids[5] = 70
    assert kept.commit_change(5, 99, y, WasReset) == 1
    assert (table.seqs[5], bool(table.dirty[5])) == (1, True)
    assert kept.answers.find(5, 1, 99, 1) == y
    assert kept.commit_change(5, 98, y, None) == 2  # not finite: no record
    assert kept.commit_change(5, 97, b"Y", lambda id, first: Ran(id, first, b"X"), 4) == 6
    assert kept.answers.find_run(5, 3, 4, 97, 6) == b"Y"
    assert log.written == [("reset", 70, 1), ("run", 70, 3, b"X")]


def test_a_change_of_many() -> None:
    log = Log()
    kept = books(log)
    seats = np.array([2, 0])
    kept.table.ids[seats], kept.table.seqs[seats] = [20, 10], [4, 0]
    Y = np.array([[1], [2]], np.float32)

    def record(ids: np.ndarray, seqs: np.ndarray) -> Stepped:
        return Stepped(1, ids.tobytes(), seqs.tobytes(), b"X")

    assert kept.commit_change(seats, np.array([8, 9], np.uint32), Y, record).tolist() == [5, 1]
    assert kept.table.seqs[:3].tolist() == [1, 0, 5]
    assert kept.table.dirty[:3].tolist() == [True, False, True]
    assert kept.answers.find(2, 5, 8, 5) == Y[0].tobytes()
    ids, seqs = (np.array(each, np.int64).tobytes() for each in ([20, 10], [5, 1]))
    assert log.written == [("step", 1, ids, seqs, b"X", None)]


def test_in_memory_nothing_is_written() -> None:
    kept = books()
    assert kept.commit_change(0, 1, np.float32(1).tobytes(), WasReset) == 1
    assert not kept.table.dirty[0]


def test_nothing_else_moves_a_seq() -> None:
    """No assignment to seqs but in commit_change, and where a session comes to its seat."""
    places = []
    for path in sorted(Path(changes.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef,)):
                for inner in ast.walk(node):
                    targets = inner.targets if isinstance(inner, ast.Assign) else []
                    written = [ast.unparse(t) for t in targets if isinstance(t, ast.Subscript)]
                    if any("seqs[" in t or t.startswith("numbers[seats") for t in written):
                        places.append((path.stem, node.name))
    assert places == [("changes", "commit_change"), ("table", "add")]
