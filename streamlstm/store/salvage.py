"""--accept-loss: a new database from what is whole of a damaged one.

Kept are the rows whose checksums hold, and the journal up to its first damaged record. The
damaged files stay, in DIR/damaged-N. Ended at any moment, it can be run again: the files are
linked there first, then DIR/accept-loss says where, so that no server takes the half of it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from streamlstm.errors import StoreDamagedError, StoreError
from streamlstm.store.database import Store
from streamlstm.store.directory import (
    DATABASE,
    INTERRUPTED,
    RUNNING,
    create_store,
    log_is_missing,
    read_database,
    sync_directory,
    take_lock,
)
from streamlstm.store.reading import MODELS, Reader
from streamlstm.store.rows import ModelRow
from streamlstm.store.wal import find_damage

_NEXT: Final = "SELECT id FROM sessions NOT INDEXED WHERE id>? ORDER BY id LIMIT 1"
_PREVIOUS: Final = "SELECT id FROM sessions NOT INDEXED WHERE id<? ORDER BY id DESC LIMIT 1"


def accept_loss(directory: Path) -> tuple[Path, list[str]] | None:
    """Go on from what is whole; where the damaged files are now, and what was lost.

    None when nothing is damaged: nothing is done then. Raises StoreError, OSError; and
    StoreDamagedError when nothing can be read.
    """
    if not (directory / DATABASE).is_file():
        raise StoreError(f"{directory} is no state directory: it has no file {DATABASE}")
    lock = take_lock(directory)
    try:
        marker = directory / INTERRUPTED
        if not marker.exists():
            if _is_whole(directory / DATABASE) and not log_is_missing(directory):
                return None
            _set_aside(directory, marker)
        kept = directory / marker.read_text()
        new = directory / f"{DATABASE}.new"
        _remove(new, "", "-wal", "-shm")
        lost = _copy(kept / DATABASE, new)
        _remove(directory / DATABASE, "-wal", "-shm")  # else it would be taken for the new one's
        sync_directory(directory)
        new.replace(directory / DATABASE)
        sync_directory(directory)
        (directory / RUNNING).unlink(missing_ok=True)
        marker.unlink()
        sync_directory(directory)
        return kept, lost
    finally:
        os.close(lock)


def _is_whole(database: Path) -> bool:
    if find_damage(database) is not None:
        return False
    try:
        with closing(read_database(database, Reader)) as store:
            return not any(True for _ in store.check())
    except StoreDamagedError:
        return False


def _set_aside(directory: Path, marker: Path) -> None:
    """Link the files in a new directory, named by the marker."""
    number = 1
    while (kept := directory / f"damaged-{number}").exists():
        number += 1
    kept.mkdir(mode=0o700)
    for name in (DATABASE, f"{DATABASE}-wal"):
        if (directory / name).exists():
            os.link(directory / name, kept / name)
    sync_directory(kept)
    partial = Path(f"{marker}.partial")
    with partial.open("w") as file:
        file.write(kept.name)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(marker)
    sync_directory(directory)


def _remove(database: Path, *endings: str) -> None:
    for ending in endings:
        Path(f"{database}{ending}").unlink(missing_ok=True)


def _copy(damaged: Path, new: Path) -> list[str]:
    """Copy what is whole; what is not, a sentence each."""
    log = find_damage(damaged)
    lost = [] if log is None else [f"the log was damaged {log}"]
    if not Path(f"{damaged}-wal").exists():
        lost.append("the log was not there: what was committed last")
    try:
        old = read_database(damaged, _DamagedReader)
    except StoreDamagedError as error:
        raise StoreDamagedError(
            f"nothing of {damaged} can be read; bring back a copy of {new.parent}, "
            "or move it away to begin anew"
        ) from error
    with closing(old), closing(create_store(new, "sync")) as store:
        for model in old.models:
            store.put_model(model)
        lost += _copy_sessions(old, store)
        store.begin_journal(old.trimmed, incomplete=True)
        try:
            for _, record in old.journal():
                store.append(record)
        except StoreDamagedError as error:
            gone = old.records - store.records
            lost.append(f"{gone} records of the journal, from the first that is damaged: {error}")
        store.commit()
    _remove(damaged, "-shm")
    return lost + old.lost


def _copy_sessions(old: _DamagedReader, store: Store) -> Iterator[str]:
    known = {model.id for model in old.models}
    for id in old.session_ids():
        try:
            row = old.get(id)
        except StoreDamagedError as error:
            yield str(error)
            continue
        if row is None or row.model not in known or store.find(row.model, row.name):
            yield f"session {id}: its model is lost, or another one has its name"
        else:
            store.put([row])


class _DamagedReader(Reader):
    """Goes on behind damage. lost: sentences on what only the way there can tell."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.lost: list[str] = []
        super().__init__(connection)

    def _read_models(self) -> Iterator[ModelRow]:
        for columns in self._fetch(MODELS):
            try:
                yield self._model(columns)
            except StoreDamagedError as error:
                self.lost.append(str(error))

    def _read_start(self) -> tuple[int, bool]:
        try:
            return super()._read_start()
        except StoreDamagedError as error:
            self.lost.append(str(error))
            ((first,),) = self._fetch("SELECT min(id) FROM journal")
            return (first or 1) - 1, True

    def session_ids(self) -> Iterator[int]:
        """From the lowest up as far as pages can be read, then from the highest down."""
        lowest, highest = -(2**63), 2**63 - 1
        try:
            while rows := self._fetch(_NEXT, (lowest,)):
                lowest = rows[0][0]
                yield lowest
            return
        except StoreDamagedError as error:
            self.lost.append(f"sessions above id {lowest}, as far as not found from above: {error}")
        try:
            while (rows := self._fetch(_PREVIOUS, (highest,))) and rows[0][0] > lowest:
                highest = rows[0][0]
                yield highest
        except StoreDamagedError:
            self.lost.append(f"sessions between ids {lowest} and {highest} can't be read")
