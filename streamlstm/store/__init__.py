"""Durable sessions: rows and a journal in one SQLite database.

    store = open_store(Path("state"), "async")
    store.append(record); store.commit()                   before a reply leaves
    store.put(rows); store.trim(last); store.commit()      every few seconds

A row is a session as it was; the journal holds, in order, what has changed sessions since.
To recover is to read the rows, then to apply the journal. A commit is whole or not there.

Modes. "async": commit() hands the data to the OS, so that it survives the process's end,
not a power cut (synchronous=NORMAL: the file stays consistent then too, but its last
commits may be gone). "sync": commit() returns after an fsync of the log (FULL).

Damage is found, never read. Each row and each record has a CRC-32 over all its columns,
journal ids have no gap and begin behind the last trimmed one, and SQLite's own log is judged
before SQLite opens it (wal). What no checksum can find is an index page that no longer leads
to a name, which `find` then does not know: `names` reads the table instead, `check` compares
both. Nobody repairs by himself: `streamlstm sessions DIR --accept-loss` (salvage) goes on
from what is whole, keeps the damaged files, and says what is gone.

    rows       what the tables hold, and its checksums
    reading    Reader: what a database holds, checked as it is read
    database   Store: a Reader that writes, in transactions
    directory  a Store's files: opening, the lock, damage refused
    wal        damage in SQLite's log
    salvage    a new database from what is whole of a damaged one
"""

from streamlstm.store.database import Store
from streamlstm.store.directory import open_store, read_store
from streamlstm.store.reading import Reader
from streamlstm.store.rows import ModelRow, SessionRow, SessionSummary

__all__ = [
    "ModelRow",
    "Reader",
    "SessionRow",
    "SessionSummary",
    "Store",
    "open_store",
    "read_store",
]
