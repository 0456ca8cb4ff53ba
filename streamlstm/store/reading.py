"""Reader: rows and journal of a SQLite connection, checked as they are read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from streamlstm.errors import StoreDamagedError, StoreError
from streamlstm.store.rows import (
    INVALID,
    ModelRow,
    SessionRow,
    SessionSummary,
    checksum,
    name_checksum,
    record_checksum,
    session_of,
)

APPLICATION: Final = int.from_bytes(b"SLST", "big")
FORMAT: Final = 1

# Read at a time. No cursor stays open between, which would keep the log from beginning anew.
ROWS_AT_ONCE: Final = 1000
RECORDS_AT_ONCE: Final = 16

MODELS: Final = "SELECT * FROM models ORDER BY id"
_GET: Final = "SELECT * FROM sessions WHERE id=?"
_FIND: Final = "SELECT * FROM sessions WHERE model=? AND name=?"
_IDS: Final = f"SELECT id FROM sessions NOT INDEXED WHERE id>? ORDER BY id LIMIT {ROWS_AT_ONCE}"
_SUMMARIES: Final = (
    "SELECT id, model, name, epoch, seq, quarantined, length(answers) + length(state),"
    f" name_checksum FROM sessions NOT INDEXED WHERE id>? ORDER BY id LIMIT {ROWS_AT_ONCE}"
)
_JOURNAL: Final = f"SELECT * FROM journal WHERE id>? ORDER BY id LIMIT {RECORDS_AT_ONCE}"


class Reader:
    """What a database holds. Reads raise StoreDamagedError where it is damaged.

    connection: with isolation_level None.

    trimmed: id of the last record dropped, 0 at first. incomplete: sessions were given up by
    --accept-loss since, so that the journal may hold records of sessions without a row.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        if is_empty(connection):
            raise StoreError(f"{self.path} holds nothing yet: no server has used it")
        self._models = {model.id: model for model in self._read_models()}
        self.trimmed, self.incomplete = self._read_start()
        ((last,),) = self._fetch("SELECT max(id) FROM journal")
        self._last_record: int = self.trimmed if last is None else last

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    @property
    def path(self) -> str:
        """The database's file, "" in memory."""
        return path_of(self._connection)

    @property
    def last_id(self) -> int:
        """Greatest id of a session's row, 0 if there is none."""
        ((last,),) = self._fetch("SELECT max(id) FROM sessions")
        return last or 0

    @property
    def records(self) -> int:
        """Records in the journal."""
        return self._last_record - self.trimmed

    @property
    def models(self) -> list[ModelRow]:
        """All models, by id."""
        return [self._models[id] for id in sorted(self._models)]

    def find(self, model: int, name: str) -> SessionRow | None:
        """The session of that name, by the index."""
        try:
            return self._session(_FIND, (model, name))
        except UnicodeEncodeError:  # half a surrogate pair: what is no UTF-8 is not stored
            return None

    def get(self, id: int) -> SessionRow | None:
        """The session of that id."""
        return self._session(_GET, (id,))

    def find_other(self, model_name: str, name: str, model: int) -> str | None:
        """Fingerprint of another model called `model_name` that has a session called `name`."""
        for other in self.models:
            if other.name == model_name and other.id != model and self.find(other.id, name):
                return other.fingerprint
        return None

    def count(self, model: int) -> int:
        """Sessions of a model."""
        ((number,),) = self._fetch("SELECT count(*) FROM sessions WHERE model=?", (model,))
        return int(number)

    def names(self, model: int) -> Iterator[tuple[int, str]]:
        """(id, name) of a model's sessions by ascending id, without loading states."""
        return ((s.id, s.name) for s in self.summaries() if s.model == model)

    def summaries(self) -> Iterator[SessionSummary]:
        """All sessions by ascending id, without loading states; from the table, not the index.

        Ids, models and names are checked. Epoch, seq and the rest are not: that takes the state.
        """
        for columns in self._pages(_SUMMARIES):
            id, model, name, epoch, seq, quarantined, size, key = columns
            try:
                if name_checksum(id, model, name) != key:
                    raise ValueError("its checksum does not hold")
            except INVALID as error:
                raise self._damaged(f"session {id} ({name!r})", error) from error
            yield SessionSummary(id, model, name, epoch, seq, bool(quarantined), size)

    def journal(self) -> Iterator[tuple[int, bytes]]:
        """(id, record) of the journal, in order."""
        due = self.trimmed + 1
        for id, check, record in self._pages(_JOURNAL):
            try:
                if id != due:
                    raise ValueError(f"it is missing, the next is {id}")
                if record_checksum(id, record) != check:
                    raise ValueError("its checksum does not hold")
            except INVALID as error:
                raise self._damaged(f"journal record {due}", error) from error
            yield id, record
            due += 1
        if due <= self._last_record:
            raise self._damaged(f"journal record {due}", ValueError("it is missing"))

    def session_ids(self) -> Iterator[int]:
        """Ids of all sessions, ascending, also of damaged ones."""
        return (id for (id,) in self._pages(_IDS))

    def check_names(self) -> None:
        """Raise StoreDamagedError unless every row is found by its name, for find() trusts that.

        Some 3 s for a million rows.
        """
        for (problem,) in self._fetch("PRAGMA integrity_check('sessions')"):
            if problem != "ok":
                raise self._damaged("the index of names", ValueError(problem))

    def check(self) -> Iterator[str]:
        """All that is damaged, a sentence each; reads everything."""
        try:
            for (problem,) in self._fetch("PRAGMA integrity_check(20)"):
                if problem != "ok":
                    yield f"{self.path}: {problem}"
            for id in self.session_ids():
                try:
                    row = self.get(id)
                except StoreDamagedError as error:
                    yield str(error)
                else:
                    if row is None or row.model not in self._models:
                        yield f"{self.path}: session {id} is not there, or its model is not"
            for _ in self.journal():
                pass
        except StoreDamagedError as error:  # what can't be gone through any further
            yield str(error)

    def _read_models(self) -> Iterator[ModelRow]:
        return (self._model(columns) for columns in self._fetch(MODELS))

    def _model(self, columns: tuple[Any, ...]) -> ModelRow:
        id, name, fingerprint, dtype, state_size, sizes, arithmetic, check = columns
        try:
            if checksum(*columns[:-1]) != check:
                raise ValueError("its checksum does not hold")
            layers = tuple(tuple(int(n) for n in layer.split("+")) for layer in sizes.split())
        except INVALID as error:
            raise self._damaged(f"model {id} ({name!r})", error) from error
        return ModelRow(id, name, fingerprint, dtype, state_size, layers, arithmetic)

    def _read_start(self) -> tuple[int, bool]:
        rows = self._fetch("SELECT * FROM journal_start")
        try:
            ((trimmed, incomplete, check),) = rows
            if checksum(trimmed, incomplete) != check:
                raise ValueError("its checksum does not hold")
        except INVALID as error:
            raise self._damaged("the journal's start", error) from error
        return trimmed, bool(incomplete)

    def _session(self, select: str, key: tuple[int | str, ...]) -> SessionRow | None:
        rows = self._fetch(select, key)
        if not rows:
            return None
        try:
            return session_of(rows[0])
        except INVALID as error:
            raise self._damaged(f"session {rows[0][0]} ({rows[0][2]!r})", error) from error

    def _pages(self, select: str) -> Iterator[tuple[Any, ...]]:
        """Rows by their first column, the id, behind which `select` goes on."""
        last = -(2**63)
        while rows := self._fetch(select, (last,)):
            yield from rows
            last = rows[-1][0]

    def _fetch(self, select: str, key: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(select, key).fetchall()
        except sqlite3.Error as error:
            raise failure(self.path, error, "read") from error

    def _damaged(self, what: str, why: Exception) -> StoreDamagedError:
        return StoreDamagedError(f"{self.path}: {what} is damaged: {why}; {way_out(self.path)}")


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether it has no tables yet. Raises StoreError when it is not our database."""
    path = path_of(connection)
    try:
        ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if (application, version) == (APPLICATION, FORMAT):
            return False
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    except sqlite3.Error as error:
        raise failure(path, error, "read") from error
    if application == APPLICATION:
        raise StoreError(
            f"{path} was written in format {version}, this streamlstm reads format {FORMAT}; "
            "use the version that wrote it"
        )
    if application or tables:
        raise StoreError(f"{path} is a database of another program; give another directory")
    return True


def path_of(connection: sqlite3.Connection) -> str:
    """The database's file, "" in memory."""
    return str(connection.execute("PRAGMA database_list").fetchall()[0][2])


def failure(path: str, error: sqlite3.Error, what: str) -> StoreError:
    """The error to raise: SQLite could not have the database `what` (read, written)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # A text that is no UTF-8 has no code: it is Python that can't read it.
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "UTF-8" in str(error):
        return StoreDamagedError(f"{path} is damaged: {error}; {way_out(path)}")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(
            f"{path} can't be {what}: {error}; free disk space or look at the disk, then start "
            "again: all that was acknowledged is there"
        )
    return StoreError(f"{path} can't be {what}: {error}")


def way_out(path: str) -> str:
    """What to do about damage."""
    directory = Path(path).parent
    return (
        "bring back a copy of the directory, or go on with what is whole: "
        f"streamlstm sessions {directory} --accept-loss"
    )
