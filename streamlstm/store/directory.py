"""A Store's files: opening them, for one process at a time, unless they are damaged.

DIR/sessions.db, sessions.db-wal, sessions.db-shm   SQLite's
DIR/lock                                            held by the server, with its process id
DIR/running                                         from a server's start to its clean end
DIR/accept-loss                                     while salvage has not come to its end
DIR/damaged-N/                                      what salvage was made from
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from streamlstm.errors import StoreDamagedError, StoreError
from streamlstm.store.database import Store
from streamlstm.store.reading import Reader, failure, is_empty, way_out
from streamlstm.store.wal import find_damage
from streamlstm.wording import reason

R = TypeVar("R", bound=Reader)

DATABASE: Final = "sessions.db"
LOCK: Final = "lock"
INTERRUPTED: Final = "accept-loss"
RUNNING: Final = "running"

PAGE_BYTES: Final = 4096
"""With 8192 commits of 10 kB take as long, with 1024 and 16,384 a quarter to a third longer."""

LOG_PAGES: Final = 4000
"""The commit that makes the log longer copies it into the main file, with an fsync of each.

Of 100,000 commits of 10 kB in "async", trimmed every 5,000, with a log of 1000, 4000, 16,000
pages: such a commit came every 250, 1000, 4000; the longest took 54, 72, 183 ms and the mean
one 1.4, 1.1, 1 times as long. The median is the same; with 100 bytes it is about the half.
"""

LOG_BYTES_KEPT: Final = 64 << 20
"""A log that one large commit made longer is cut back to this."""

CACHE_KIB: Final = 16 << 10
LOCK_TRIES: Final = 50
LOCK_PAUSE_S: Final = 0.01
BUSY_S: Final = 1.0

_SETTINGS: Final = (
    f"page_size={PAGE_BYTES}",
    "journal_mode=WAL",
    f"wal_autocheckpoint={LOG_PAGES}",
    f"journal_size_limit={LOG_BYTES_KEPT}",
    f"cache_size=-{CACHE_KIB}",
    "cell_size_check=ON",
    "secure_delete=OFF",  # else every trim writes zeros over what it drops
    # locking_mode stays NORMAL: without locks a commit is a fifth shorter, but nobody can look
    # at the sessions of a running server.
)


def open_store(directory: Path, durability: str) -> Store:
    """Open the store of a directory, for this process alone; created when absent.

    Raises StoreError (in use, not ours, not accessible), StoreDamagedError.
    """
    directory = Path(directory)
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True)
            sync_directory(directory.parent)
        lock = take_lock(directory)
    except OSError as error:
        raise StoreError(
            f"the state directory {directory} can't be used: {reason(error)}"
        ) from error
    try:
        refuse_damage(directory)
        # The log is here, and will be made empty: killed before it is begun anew, none is missed.
        (directory / RUNNING).unlink(missing_ok=True)
        store = create_store(directory / DATABASE, durability, lock)
        if not store.records:
            # Tables are in the main file before anything is only in the log.
            store.checkpoint()
        store.begin_log()  # it is there as long as the directory says that it is in use
        store.running = directory / RUNNING
        store.running.touch(mode=0o600)
        sync_directory(directory)
        return store
    except BaseException:
        os.close(lock)
        raise


def create_store(database: Path, durability: str, lock: int | None = None) -> Store:
    """A Store on the file `database`, created when absent. Raises StoreError."""
    try:
        # SQLite would let others read it.
        os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(database, isolation_level=None, timeout=BUSY_S)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{database} can't be opened: {reason(error)}") from error
    try:
        is_empty(connection)  # before anything is changed in a file that is not ours
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        store = Store(connection, durability, lock=lock)
        sync_directory(database.parent)
        return store
    except sqlite3.Error as error:
        connection.close()
        raise failure(str(database), error, "opened") from error
    except BaseException:
        connection.close()
        raise


def read_store(directory: Path) -> Reader:
    """What a directory holds, also beside a running server. Raises as open_store does."""
    directory = Path(directory)
    if not (directory / DATABASE).is_file():
        raise StoreError(f"{directory} is no state directory: it has no file {DATABASE}")
    if server_of(directory) is None:
        refuse_damage(directory)
    return read_database(directory / DATABASE, Reader)


def read_database(database: Path, kind: Callable[[sqlite3.Connection], R]) -> R:
    """A Reader, or one of another `kind`, of the file as it is now. Raises StoreError.

    All reads are one transaction, so that they fit together beside a server that writes.
    """
    address = f"{database.absolute().as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_S)
    except sqlite3.Error as error:
        raise failure(str(database), error, "opened") from error
    try:
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("BEGIN")
        return kind(connection)
    except BaseException:
        connection.close()
        raise


def take_lock(directory: Path) -> int:
    """Take the directory for this process; held until the descriptor returned is closed.

    Raises StoreError when another process has it, OSError.
    """
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for attempt in range(LOCK_TRIES):  # server_of() takes it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 == LOCK_TRIES:
                    raise StoreError(
                        f"the state directory {directory} is in use by process {_holder(lock)}; "
                        "stop that server, or give this one a directory of its own"
                    ) from None
                time.sleep(LOCK_PAUSE_S)
        if not _holder(lock).isdigit() and os.fstat(lock).st_size:
            raise StoreError(
                f"{directory / LOCK} is a file of another program: give a directory of its own"
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def server_of(directory: Path) -> str | None:
    """Process id of the server that has the directory, None if there is none."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(lock)
    finally:
        os.close(lock)
    return None


def _holder(lock: int) -> str:
    return os.pread(lock, 20, 0).decode(errors="replace") or "?"


def refuse_damage(directory: Path) -> None:
    """Raises StoreDamagedError when SQLite would pass over commits; StoreError."""
    database = directory / DATABASE
    wal = Path(f"{database}-wal")
    try:
        if (directory / INTERRUPTED).exists():
            raise StoreDamagedError(
                f"a --accept-loss of {directory} did not come to its end; run it again: "
                f"streamlstm sessions {directory} --accept-loss"
            )
        if not database.exists() or not database.stat().st_size:
            if wal.exists() and wal.stat().st_size:  # SQLite would delete it
                raise StoreDamagedError(
                    f"{database} is missing or empty, but its log is there; "
                    "bring back a copy of the directory, or move the log away to begin anew"
                )
            return
        if log_is_missing(directory):
            raise StoreDamagedError(
                f"{wal} is missing or empty, but the server that used it did not end by itself, "
                f"so its last commits are gone; {way_out(str(database))}"
            )
        damage = find_damage(database)
    except OSError as error:
        raise StoreError(
            f"the state directory {directory} can't be read: {reason(error)}"
        ) from error
    if damage is not None:
        raise StoreDamagedError(f"{wal} is damaged {damage}; {way_out(str(database))}")


def log_is_missing(directory: Path) -> bool:
    """Whether a server was killed and its log, with its last commits, is not there any more."""
    wal = directory / f"{DATABASE}-wal"
    return (directory / RUNNING).exists() and not (wal.exists() and wal.stat().st_size)


def sync_directory(directory: Path) -> None:
    """Its entries are on the disk then. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
