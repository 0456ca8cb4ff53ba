"""Store: rows and journal written to a SQLite connection, in transactions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from streamlstm.errors import StoreError, StoreMismatchError
from streamlstm.store.reading import APPLICATION, FORMAT, Reader, failure, is_empty
from streamlstm.store.rows import ModelRow, SessionRow, checksum, columns_of, record_checksum

SYNCHRONOUS: Final = {"async": "NORMAL", "sync": "FULL"}

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
_PUT: Final = (
    "INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET"
    " epoch=excluded.epoch, token=excluded.token, seq=excluded.seq,"
    " quarantined=excluded.quarantined, checksum=excluded.checksum,"
    " answers=excluded.answers, state=excluded.state"
    # Another name or model would be another session: no row is changed then.
    " WHERE name_checksum=excluded.name_checksum"
)
_APPEND: Final = "INSERT INTO journal VALUES (?,?,?)"


class Store(Reader):
    """Rows and journal in a database. One transaction at a time, one thread.

    connection: with isolation_level None. Tables are created if absent. The same connection
    may get another Store after connection.rollback(). durability: "async" or "sync".

    The first write begins a transaction, commit() ends it; reads see what it wrote. A write
    that fails raises StoreError, and the whole transaction is undone: the store then takes
    no more.
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
        super().__init__(connection)

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

    def begin_log(self) -> None:
        """Commit a page as it is, so that the log is not empty."""
        # SQLite leaves out an UPDATE to the same values, but not this.
        self._write(f"PRAGMA user_version={FORMAT}")
        self.commit()

    def checkpoint(self) -> None:
        """Write the whole log into the main file."""
        self._fetch("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Undo what is not committed, close the database, let its directory go."""
        with suppress(sqlite3.Error):
            self._connection.rollback()
        # Before SQLite deletes the log: whoever is killed between leaves none to be missed.
        if self.running is not None:
            self.running.unlink(missing_ok=True)
        super().close()
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
