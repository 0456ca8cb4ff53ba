"""Store: rows and journal on a SQLite connection."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from streamlstm.errors import StoreDamagedError, StoreError, StoreMismatchError
from streamlstm.store.rows import (
    INVALID,
    ModelRow,
    SessionRow,
    SessionSummary,
    checksum,
    columns_of,
    name_checksum,
    record_checksum,
    session_of,
)

APPLICATION: Final = int.from_bytes(b"SLST", "big")
FORMAT: Final = 1
SYNCHRONOUS: Final = {"async": "NORMAL", "sync": "FULL"}

# Read at a time. No cursor stays open between, which would keep the log from beginning anew.
ROWS_AT_ONCE: Final = 1000
RECORDS_AT_ONCE: Final = 16

_TABLES: Final = (
    "CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT, fingerprint TEXT, dtype TEXT,"
    " state_size INTEGER, sizes TEXT, arithmetic TEXT, checksum INTEGER,"
    " UNIQUE (name, fingerprint))",
    "CREATE TABLE sessions (id INTEGER PRIMARY KEY, model INTEGER, name TEXT,"
    " name_checksum INTEGER, epoch INTEGER, token INTEGER, seq INTEGER, quarantined INTEGER,"
    " checksum INTEGER, answers BLOB, state BLOB, UNIQUE (model, name))",
    "CREATE TABLE journal (id INTEGER PRIMARY KEY, checksum INTEGER, record BLOB)",
    # One row: the last trimmed id, and whether --accept-loss gave sessions up since.
    "CREATE TABLE journal_start (trimmed INTEGER, incomplete INTEGER, checksum INTEGER)",
    f"INSERT INTO journal_start VALUES (0, 0, {checksum(0, 0)})",
    f"PRAGMA application_id={APPLICATION}",
    f"PRAGMA user_version={FORMAT}",
)
MODELS: Final = "SELECT * FROM models ORDER BY id"
_GET: Final = "SELECT * FROM sessions WHERE id=?"
_FIND: Final = "SELECT * FROM sessions WHERE model=? AND name=?"
_IDS: Final = f"SELECT id FROM sessions NOT INDEXED WHERE id>? ORDER BY id LIMIT {ROWS_AT_ONCE}"
_SUMMARIES: Final = (
    "SELECT id, model, name, epoch, seq, quarantined, length(answers) + length(state),"
    f" name_checksum FROM sessions NOT INDEXED WHERE id>? ORDER BY id LIMIT {ROWS_AT_ONCE}"
)
_PUT: Final = (
    "INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET"
    " epoch=excluded.epoch, token=excluded.token, seq=excluded.seq,"
    " quarantined=excluded.quarantined, checksum=excluded.checksum,"
    " answers=excluded.answers, state=excluded.state"
    # Another name or model would be another session: no row is changed then.
    " WHERE name_checksum=excluded.name_checksum"
)
_APPEND: Final = "INSERT INTO journal VALUES (?,?,?)"
_JOURNAL: Final = f"SELECT * FROM journal WHERE id>? ORDER BY id LIMIT {RECORDS_AT_ONCE}"


class Store:
    """Rows and journal in a database. One transaction at a time, one thread.

    connection: with isolation_level None. Tables are created if absent. The same connection
    may get another Store after connection.rollback(). durability: "async" or "sync".

    The first write begins a transaction, commit() ends it; reads see what it wrote. A write
    that fails raises StoreError, and the whole transaction is undone: the store then takes
    no more. Reads raise StoreDamagedError.

    trimmed: id of the last record dropped, 0 at first. incomplete: sessions were given up by
    --accept-loss since, so that the journal may hold records of sessions without a row.
    """

    def __init__(
        self, connection: sqlite3.Connection, durability: str, *, lock: int | None = None
    ) -> None:
        """lock: a file descriptor that close() closes."""
        if durability not in SYNCHRONOUS:
            raise StoreError(f"durability is {durability!r}; choose async or sync")
        if connection.isolation_level is not None:
            raise StoreError("a Store's connection needs isolation_level=None")
        self.durability = durability
        self._connection = connection
        self._lock = lock
        self._failure: StoreError | None = None
        self.running: Path | None = None  # a file that close() removes
        if is_empty(connection):
            for statement in _TABLES:
                self._write(statement)
            self.commit()
        self._fetch(f"PRAGMA synchronous={SYNCHRONOUS[durability]}")
        self._models = {model.id: model for model in self._read_models()}
        self.trimmed, self.incomplete = self._read_start()
        ((last,),) = self._fetch("SELECT max(id) FROM journal")
        self._last_record: int = self.trimmed if last is None else last

    # -- writing --------------------------------------------------------------------------

    def model(
        self,
        name: str,
        fingerprint: str,
        dtype: str,
        state_size: int,
        sizes: tuple[tuple[int, ...], ...] = (),
    ) -> int:
        """Id of the model; registered when new, which is a write.

        Raises StoreMismatchError when it is there with another dtype, size or layers.
        """
        id = max(self._models, default=0) + 1
        new = ModelRow(id, name, fingerprint, dtype, state_size, sizes, "")
        for row in self._models.values():
            if (row.name, row.fingerprint) == (name, fingerprint):
                if row != replace(new, id=row.id, arithmetic=row.arithmetic):
                    raise StoreMismatchError(
                        f"{self.path} has model {name} with a state of {row.state_size} "
                        f"{row.dtype}, in parts of {row.sizes}; expected {state_size} "
                        f"{dtype}, {sizes}: the same fingerprint means the same model"
                    )
                return row.id
        self.put_model(new)
        return id

    def arithmetic(self, model: int) -> str:
        """Class under which the journal's events of `model` were computed, "" at first."""
        return self._models[model].arithmetic

    def set_arithmetic(self, model: int, arithmetic: str) -> None:
        """Remember the class; a write."""
        self.put_model(replace(self._models[model], arithmetic=arithmetic))

    def put_model(self, model: ModelRow) -> None:
        """Insert a model, or replace the one of its id."""
        columns = (
            model.id,
            model.name,
            model.fingerprint,
            model.dtype,
            model.state_size,
            " ".join("+".join(map(str, sizes)) for sizes in model.sizes),
            model.arithmetic,
        )
        statement = "INSERT OR REPLACE INTO models VALUES (?,?,?,?,?,?,?,?)"
        self._write(statement, (*columns, checksum(*columns)))
        self._models[model.id] = model

    def append(self, record: bytes) -> int:
        """Add a record to the journal; its id, which is the last one's + 1."""
        id = self._last_record + 1
        connection = self._connection
        try:
            if not connection.in_transaction:
                self._begin()
            connection.execute(_APPEND, (id, record_checksum(id, record), record))
        except sqlite3.Error as error:
            self._fail(error)
        self._last_record = id
        return id

    def put(self, rows: Iterable[SessionRow]) -> None:
        """Insert rows, or replace those of the same ids, whose model and name must be equal.

        A name has one id in a model: delete an older row before.
        """
        columns = [columns_of(row) for row in rows]
        if self._write_many(_PUT, columns) != len(columns):
            self._fail(sqlite3.IntegrityError("an id was put with another name or model"))

    def delete(self, ids: Iterable[int]) -> int:
        """Delete the rows of these ids; unknown ones are passed over. How many there were."""
        return self._write_many("DELETE FROM sessions WHERE id=?", [(id,) for id in ids])

    def trim(self, through: int) -> None:
        """Drop the journal's records up to this id; the rows are complete then."""
        if not self.trimmed <= through <= self._last_record:
            raise StoreError(
                f"can't trim the journal through record {through}: "
                f"it holds {self.trimmed + 1} to {self._last_record}"
            )
        self._write("DELETE FROM journal WHERE id<=?", (through,))
        self.begin_journal(through, incomplete=False)

    def begin_journal(self, trimmed: int, *, incomplete: bool) -> None:
        """Say that the journal begins behind this id; of a new store, or in trim().

        A write. incomplete: see the class.
        """
        columns = (trimmed, int(incomplete), checksum(trimmed, int(incomplete)))
        self._write("UPDATE journal_start SET trimmed=?, incomplete=?, checksum=?", columns)
        self.trimmed, self.incomplete = trimmed, incomplete
        self._last_record = max(self._last_record, trimmed)

    def commit(self) -> None:
        """End the transaction, if there is one. In "sync" its data is on the disk then."""
        if self._failure is not None:
            raise self._failure
        connection = self._connection
        if connection.in_transaction:
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._fail(error)

    def checkpoint(self) -> None:
        """Write the whole log into the main file."""
        self._fetch("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Undo what is not committed, close the database, let its directory go."""
        with suppress(sqlite3.Error):
            self._connection.rollback()
        self._connection.close()
        if self.running is not None:
            self.running.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self) -> None:
        if self._failure is not None:
            raise StoreError(f"no write after a failed one ({self._failure})")
        self._connection.execute("BEGIN IMMEDIATE")

    def _write(self, statement: str, columns: tuple[Any, ...] = ()) -> None:
        try:
            if not self._connection.in_transaction:
                self._begin()
            self._connection.execute(statement, columns)
        except sqlite3.Error as error:
            self._fail(error)

    def _write_many(self, statement: str, columns: list[tuple[Any, ...]]) -> int:
        """Rows changed."""
        try:
            if columns and not self._connection.in_transaction:
                self._begin()
            return max(self._connection.executemany(statement, columns).rowcount, 0)
        except sqlite3.Error as error:
            self._fail(error)

    def _fail(self, error: sqlite3.Error) -> NoReturn:
        """Undo the transaction and take no more: the caller is ahead of the store now."""
        with suppress(sqlite3.Error):
            self._connection.rollback()
        self._failure = failure(self.path, error, "written")
        raise self._failure from error

    # -- reading --------------------------------------------------------------------------

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

    def ids(self, model: int) -> Iterator[int]:
        """Ids of a model's sessions, ascending. Rows may be written meanwhile."""
        return (s.id for s in self.summaries() if s.model == model)

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
