"""The journal: what was done to sessions, committed before anybody is told.

The changes of one turn of the server are one record of the store, committed in one transaction
before the turn's replies leave. What a change looks like is said in changes.py, when the
journal is cut short in checkpoint.py, how it is read back in recovery.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np

from streamlstm.errors import StoreMismatchError
from streamlstm.service.contract import ModelLike
from streamlstm.store import Store


class Journal:
    """Changes of the turn under way, and the store they go to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.replaying = False  # what is added now is there already
        self.appended = 0  # number of the last record since a checkpoint began; 0: none
        self._changes: list[tuple[Any, ...]] = []
        self._last_id = store.last_id
        self._pack = msgpack.Packer().pack
        self._arithmetics: dict[int, str] = {}  # of each model that is served

    def register(self, model: ModelLike, arithmetic: str) -> int:
        """The store's id of a model."""
        name, dtype = model.name, np.dtype(model.event_dtype).name
        model_id = self.store.model(
            name, model.fingerprint, dtype, model.state_size, model.state_sizes
        )
        self._arithmetics[model_id] = arithmetic
        return model_id

    def new_id(self) -> int:
        """For a new session."""
        self._last_id += 1
        return self._last_id

    def pass_id(self, session_id: int) -> None:
        """This id was given: never again."""
        self._last_id = max(self._last_id, session_id)

    # --- writing ---

    def add(self, change: tuple[Any, ...]) -> None:
        """Note a change; `commit` makes it last."""
        if not self.replaying:
            self._changes.append(change)

    def commit(self) -> None:
        """All that was added is in the store when this returns. Raises StoreError."""
        if self._changes:
            self.appended = self.store.append(self._pack(self._changes))
            self._changes = []
        self.store.commit()

    # --- reading ---

    def read(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Every change with the number of its record, oldest first. Raises StoreDamagedError."""
        for number, record in self.store.journal():
            for change in msgpack.unpackb(record, use_list=False):
                yield number, change

    def check_arithmetic(self, model_id: int) -> None:
        """Raise StoreMismatchError unless the journal's bits are those of this server."""
        here, there = self._arithmetics[model_id], self.store.arithmetic(model_id)
        if here != there:
            raise StoreMismatchError(
                f"the journal was written by arithmetic class {there}, this server computes "
                f"{here} and would get other bits: start once with a kernel of class {there} "
                "(STREAMLSTM_KERNEL, or the machine that wrote it) and stop it with SIGTERM; "
                "rows alone load under any class"
            )

    def own_arithmetic(self) -> None:
        """What is journaled from now on has this server's bits."""
        for model_id, arithmetic in self._arithmetics.items():
            self.store.set_arithmetic(model_id, arithmetic)

    def check(self) -> None:
        """What holds after a turn: nothing is told that is not committed."""
        assert not self._changes, "changes were left uncommitted"
