"""All sessions of an engine in a state directory, the same that `streamlstm serve --state` keeps.

A session is a row of the store (store.SessionRow): name, seq, state. save() writes in one
transaction, with an fsync, so that a crash leaves the sessions from before or the new ones.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np

from streamlstm.errors import CapacityError, StateMismatchError, StoreError
from streamlstm.layers import Array
from streamlstm.log import log
from streamlstm.model import Model
from streamlstm.state import State
from streamlstm.store import Reader, SessionRow, Store, open_store, read_store
from streamlstm.store.directory import server_of
from streamlstm.wording import counted


class Engine(Protocol):
    """What is asked of an engine."""

    model: Model
    arithmetic: str
    max_sessions: int

    def states(self) -> dict[str, State]:
        """Of all sessions, by name."""

    def adopt(self, name: str, numbers: Array | None, seq: int) -> object:
        """A session that goes on from there."""


def save(engine: Engine, directory: str | os.PathLike[str]) -> None:
    """Raises StoreError, EngineClosedError."""
    with closing(open_store(Path(directory), "sync")) as store:
        refuse_journal(store)
        write(engine, store)


def load(engine: Engine, directory: str | os.PathLike[str]) -> None:
    """Open the sessions of the engine's model. Raises StoreError, StateMismatchError,
    CapacityError."""
    model = engine.model
    with closing(read_store(Path(directory))) as store:
        if _model_id(engine, store) is None:
            there = ", ".join(f"{m.name} {m.fingerprint[:12]}" for m in store.models) or "none"
            raise StateMismatchError(
                f"{directory} has no sessions of model {model.name} {model.fingerprint[:12]}; "
                f"it has those of: {there}"
            )
        if store.records and (holder := server_of(Path(directory))):
            raise StoreError(f"{directory} is in use by process {holder}; stop that server first")
        refuse_journal(store)
        read(engine, store)


def write(engine: Engine, store: Store) -> None:
    """Make the store's sessions of the engine's model those that are open, and commit.

    Quarantined ones stay, for no engine has them. Raises StoreError, EngineClosedError.
    """
    model, states = engine.model, engine.states()
    dtype = np.dtype(model.event_dtype).name
    id = store.model(model.name, model.fingerprint, dtype, model.state_size, model.state_sizes)
    store.set_arithmetic(id, engine.arithmetic)
    rows = [row for row in store.summaries() if row.model == id]
    known = {row.name: row.id for row in rows}
    store.delete(row.id for row in rows if row.name not in states and not row.quarantined)
    first = store.last_id + 1
    store.put(
        SessionRow(
            known.get(name, first + k),
            id,
            name,
            1,
            0,
            state.seq,
            state.numbers.tobytes(),
            b"",
            False,
        )
        for k, (name, state) in enumerate(states.items())
    )
    store.commit()


def read(engine: Engine, store: Reader) -> None:
    """Open the store's sessions of the engine's model. Raises CapacityError, StoreDamagedError."""
    id = _model_id(engine, store)
    if id is None:
        return
    if store.count(id) > engine.max_sessions:
        raise CapacityError(
            f"{store.path} has {store.count(id):,} sessions; create the engine with a larger "
            f"max_sessions than {engine.max_sessions:,}"
        )
    for at, name in store.names(id):
        row = store.get(at)
        assert row is not None
        if row.quarantined:
            log.warning("session %r of %s is quarantined and left out", name, store.path)
            continue
        engine.adopt(name, np.frombuffer(row.state, engine.model.event_dtype).copy(), row.seq)


def _model_id(engine: Engine, store: Reader) -> int | None:
    key = engine.model.name, engine.model.fingerprint
    return next((m.id for m in store.models if (m.name, m.fingerprint) == key), None)


def refuse_journal(store: Reader) -> None:
    """Raise StoreError where a server has to replay its journal first."""
    if store.records:
        raise StoreError(
            f"the server of {Path(store.path).parent} did not end by itself, and its journal has "
            f"{counted(store.records, 'record')} to be replayed: start it once with this "
            "directory and stop it with SIGTERM"
        )
