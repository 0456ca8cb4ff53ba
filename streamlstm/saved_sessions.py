"""All sessions of an engine in a state directory, the same that `streamlstm serve --state` keeps.

A session is a row of the store (store.SessionRow): name, seq, state. save() writes in one
transaction, with an fsync, so that a crash leaves the sessions from before or the new ones.
"""

from __future__ import annotations

import logging
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamlstm.errors import CapacityError, StateMismatchError, StoreError
from streamlstm.store import Reader, SessionRow, open_store, read_store

if TYPE_CHECKING:
    from streamlstm.engine import Engine

_log = logging.getLogger("streamlstm")


def save(engine: Engine, directory: str | os.PathLike[str]) -> None:
    """Raises StoreError, EngineClosedError."""
    model, sessions = engine.model, list(engine)
    numbers = engine.group(sessions).numbers()
    seqs = [session.seq for session in sessions]
    with closing(open_store(Path(directory), "sync")) as store:
        _refuse_journal(store, directory)
        dtype = np.dtype(model.event_dtype).name
        sizes = model.state_sizes
        id = store.model(model.name, model.fingerprint, dtype, model.state_size, sizes)
        store.set_arithmetic(id, engine.arithmetic)
        first = store.last_id + 1
        store.delete(at for at, _ in list(store.names(id)))
        store.put(
            SessionRow(first + k, id, session.name, 1, 0, seqs[k], numbers[k].tobytes(), b"", False)
            for k, session in enumerate(sessions)
        )
        store.commit()


def load(engine: Engine, directory: str | os.PathLike[str]) -> None:
    """Open the sessions of the engine's model. Raises StoreError, StateMismatchError,
    CapacityError."""
    model = engine.model
    with closing(read_store(Path(directory))) as store:
        _refuse_journal(store, directory)
        key = model.name, model.fingerprint
        ids = [m.id for m in store.models if (m.name, m.fingerprint) == key]
        if not ids:
            there = ", ".join(f"{m.name} {m.fingerprint[:12]}" for m in store.models) or "none"
            raise StateMismatchError(
                f"{directory} has no sessions of model {model.name} {model.fingerprint[:12]}; "
                f"it has those of: {there}"
            )
        (id,) = ids
        if store.count(id) > engine.max_sessions:
            raise CapacityError(
                f"{directory} has {store.count(id):,} sessions; create the engine with a larger "
                f"max_sessions than {engine.max_sessions:,}"
            )
        for at, name in store.names(id):
            row = store.get(at)
            assert row is not None
            if row.quarantined:
                _log.warning("session %r of %s is quarantined and left out", name, directory)
                continue
            engine.adopt(name, np.frombuffer(row.state, model.event_dtype).copy(), row.seq)


def _refuse_journal(store: Reader, directory: str | os.PathLike[str]) -> None:
    if store.records:
        raise StoreError(
            f"the server of {directory} did not end by itself, and its journal has {store.records} "
            "records to be replayed: start it once with this directory and stop it with SIGTERM"
        )
