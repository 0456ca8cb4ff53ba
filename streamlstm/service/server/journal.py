"""The journal: what was done to sessions, committed before anybody is told.

The changes of one turn of the server are one record of the store, committed
in one transaction before the turn's replies leave. Every few seconds a
checkpoint begins: sessions that changed get their rows written, a slice a
turn, and when all that were dirty at its beginning are written the records up
to there are dropped. Recovery is rows, then records: a change whose seq the
row has already is skipped, a change that does not follow is damage.

Changes, each a msgpack array:

    open     model, id, name, epoch, token, state or nil    also a fork
    own      id, epoch, token                               a new epoch
    step     model, ids, seqs, X, nil                       each event a message
    steps    model, ids, seqs, X, digests                   one message
    run      id, first seq, X
    reset    id, seq
    restore  id, seq, state, digest
    end      id                                             closed or evicted

ids and seqs are bin of int64, X and states bin in the events' dtype. What puts
a row into the store itself (spilling, quarantine) needs no record: its seq tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from streamlstm.errors import NonFiniteError, StoreDamagedError, StoreMismatchError
from streamlstm.service.server.answers import STEP, digest

if TYPE_CHECKING:
    from streamlstm.service.contract import ModelLike
    from streamlstm.service.server.sessions import Sessions
    from streamlstm.store import Store

Array = npt.NDArray[Any]
Change = tuple[Any, ...]

CHECKPOINT_S: Final = 5.0
SLICE_BUSY: Final = 64 << 10
"""Bytes of rows that a checkpoint writes in a turn: about a millisecond."""
SLICE_IDLE: Final = 2 << 20
SLICE_ROWS: Final = 16
FINISH_ROWS: Final = 512
TRIM_RECORDS: Final = 200
"""Records dropped in a turn."""


class Journal:
    """Changes of the turn under way, and the store they go to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.recovered = 0  # events replayed at the start
        self._changes: list[Change] = []
        self._last_id = store.last_id
        self.replaying = False
        self._pack = msgpack.Packer().pack
        self._models: dict[int, str] = {}  # arithmetic class of each that is served
        self._due: list[tuple[Sessions, Array]] = []  # of the checkpoint under way
        self._through = store.trimmed  # the journal's last record at its beginning
        self._appended = 0
        self._begun_s = 0.0

    def register(self, model: ModelLike, arithmetic: str) -> int:
        """The store's id of a model."""
        name, dtype = model.name, np.dtype(model.event_dtype).name
        model_id = self.store.model(
            name, model.fingerprint, dtype, model.state_size, model.state_sizes
        )
        self._models[model_id] = arithmetic
        return model_id

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # --- writing ---

    def add(self, *change: Any) -> None:
        """Note a change; `commit` makes it last."""
        if not self.replaying:
            self._changes.append(change)

    def end(self, session_id: int) -> None:
        self.add("end", session_id)
        self.store.delete([session_id])

    def commit(self) -> None:
        """All that was added is in the store when this returns. Raises StoreError."""
        if self._changes:
            self._appended = self.store.append(self._pack(self._changes))
            self._changes = []
        self.store.commit()

    def checkpoint(self, sessions: Sequence[Sessions], now: float, *, idle: bool) -> None:
        """A turn's share of writing rows; `commit` after it."""
        under_way = self._due or self.store.trimmed < self._through
        if not under_way and (now < self._begun_s + CHECKPOINT_S or not self._begin(sessions, now)):
            return
        left = SLICE_IDLE if idle else SLICE_BUSY
        while self._due and left > 0:
            owner, slots = self._due.pop()
            part, rest = slots[:SLICE_ROWS], slots[SLICE_ROWS:]
            left -= owner.write(part[owner.table.dirty[part]])
            if len(rest):
                self._due.append((owner, rest))
        if not self._due:
            self.store.trim(min(self._through, self.store.trimmed + TRIM_RECORDS))

    def _begin(self, sessions: Sequence[Sessions], now: float) -> bool:
        self._begun_s = now
        if not self._appended:
            return False
        self._through, self._appended = self._appended, 0
        self._due = [(owner, np.flatnonzero(owner.table.dirty)) for owner in sessions]
        return True

    def finish(self, sessions: Sequence[Sessions]) -> None:
        """Write every row that is due: nothing is left to be replayed."""
        self.commit()
        for owner in sessions:
            slots = np.flatnonzero(owner.table.dirty)
            for start in range(0, len(slots), FINISH_ROWS):
                owner.write(slots[start : start + FINISH_ROWS])
                self.store.commit()
        last = max(self._appended, self._through)
        self._due = []
        if last > self.store.trimmed:
            self.store.trim(last)
        self._appended = 0
        self.store.commit()

    # --- reading ---

    def recover(self, sessions: Sequence[Sessions]) -> None:
        """Bring every session to where its last committed change left it.

        Raises StoreMismatchError when a record was written under another arithmetic class,
        StoreDamagedError when the records don't follow from the rows.
        """
        self.store.check_names()
        by_model = {owner.model_id: owner for owner in sessions}
        ended = {change[1] for _, change in self._read() if change[0] == "end"}
        self.replaying = True
        replay = _Replay(self, by_model, ended)
        last = 0
        for last, change in self._read():  # noqa: B007
            replay.apply(change)
        self.replaying = False
        self.recovered = replay.events
        for owner in sessions:
            owner.begin_counting()
        self._last_id = max(self._last_id, replay.last_id)
        self._appended = last
        self.finish(sessions)
        for model_id, arithmetic in self._models.items():
            self.store.set_arithmetic(model_id, arithmetic)
        self.store.commit()

    def check_arithmetic(self, model_id: int) -> None:
        """Raise StoreMismatchError unless the journal's bits are those of this server."""
        here, there = self._models[model_id], self.store.arithmetic(model_id)
        if here != there:
            raise StoreMismatchError(
                f"the journal was written by arithmetic class {there}, this server computes "
                f"{here} and would get other bits: start once with a kernel of class {there} "
                "(STREAMLSTM_KERNEL, or the machine that wrote it) and stop it with SIGTERM; "
                "rows alone load under any class"
            )

    def last_good(self, owner: Sessions, slots: Sequence[int]) -> list[Array | None]:
        """The last finite state of each session, from its row and the records behind it."""
        alone = {int(owner.table.ids[slot]): _Alone(owner, slot, self.store) for slot in slots}
        try:
            for _, change in self._read():
                kind, *fields = change
                if kind in ("step", "steps"):
                    for index, session_id in enumerate(np.frombuffer(fields[1], np.int64).tolist()):
                        if session_id in alone:
                            alone[session_id].step(fields, index)
                elif fields[kind == "open"] in alone:
                    alone[fields[kind == "open"]].apply(kind, fields)
        finally:
            for one in alone.values():
                one.session.close()
        return [one.numbers for one in alone.values()]

    def _read(self) -> Iterator[tuple[int, Change]]:
        for number, record in self.store.journal():
            for change in msgpack.unpackb(record, use_list=False):
                yield number, change


class _GivenUpError(Exception):
    """A change of a session that --accept-loss gave up."""


class _Replay:
    """Applies changes to sessions as the server did."""

    def __init__(self, journal: Journal, by_model: dict[int, Sessions], ended: set[int]) -> None:
        self._journal = journal
        self._by_model = by_model
        self._ended = ended
        self._places: dict[int, tuple[Sessions, int]] = {}  # by session id
        self._trusted: set[int] = set()
        # After --accept-loss: changes of sessions that were given up have nothing to follow.
        self._lenient = journal.store.incomplete
        self.events = 0
        self.last_id = 0

    def apply(self, change: Change) -> None:
        with suppress(_GivenUpError):
            getattr(self, f"_{change[0]}")(*change[1:])

    def _open(self, model: int, session_id: int, name: str, *begun: Any) -> None:
        epoch, token, state = begun
        self.last_id = max(self.last_id, session_id)
        owner = self._owner(model)
        if session_id in self._ended or self._journal.store.get(session_id) is not None:
            return
        numbers = None if state is None else np.frombuffer(state, owner.dtype)
        slot = owner.open(name, token, 0.0, numbers, epoch)
        owner.table.ids[slot] = session_id
        self._places[session_id] = owner, slot

    def _own(self, session_id: int, epoch: int, token: int) -> None:
        if session_id not in self._ended:
            owner, slot = self._place(session_id)
            table = owner.table
            table.epochs[slot], table.tokens[slot], table.dirty[slot] = epoch, token, True

    def _step(self, model: int, ids: bytes, seqs: bytes, X: bytes, known_by: bytes | None) -> None:
        owner = self._owner(model)
        if known_by is None and len(ids) == 8:
            self._step_one(owner, int.from_bytes(ids, "little"), int.from_bytes(seqs, "little"), X)
            return
        rows = np.frombuffer(X, owner.dtype).reshape(-1, owner.inputs)
        numbers = np.frombuffer(seqs, np.int64)
        new = []
        for index, session_id in enumerate(np.frombuffer(ids, np.int64).tolist()):
            if session_id not in self._ended:
                with suppress(_GivenUpError):
                    _, slot = self._place(session_id)
                    if self._is_next(owner, slot, int(numbers[index])):
                        new.append((index, slot))
        for start in range(0, len(new), owner.max_resident):
            part = new[start : start + owner.max_resident]
            at, slots = (np.array(column) for column in zip(*part, strict=True))
            events = np.ascontiguousarray(rows[at])
            owner.bring(slots)
            if known_by is None:
                digests = np.array([digest(STEP, x.tobytes()) for x in events], np.uint32)
            else:
                digests = np.frombuffer(known_by, np.uint32)[at]
            owner.step_many(slots, events, digests, "step")
        self.events += len(new)

    _steps = _step

    def _step_one(self, owner: Sessions, session_id: int, seq: int, x: bytes) -> None:
        if session_id not in self._ended:
            _, slot = self._place(session_id)
            if self._is_next(owner, slot, seq):
                owner.step(slot, x)
                self.events += 1

    def _run(self, session_id: int, first: int, X: bytes) -> None:
        if session_id not in self._ended:
            owner, slot = self._place(session_id)
            rows = np.frombuffer(X, owner.dtype).reshape(-1, owner.inputs)
            if self._is_next(owner, slot, first):
                owner.run(slot, rows)
                self.events += len(rows)

    def _reset(self, session_id: int, seq: int) -> None:
        if session_id not in self._ended:
            owner, slot = self._place(session_id)
            if self._is_next(owner, slot, seq):
                owner.reset(slot)

    def _restore(self, session_id: int, seq: int, state: bytes, known_by: int) -> None:
        if session_id not in self._ended:
            owner, slot = self._place(session_id)
            if self._is_next(owner, slot, seq):
                owner.put_back(slot, np.frombuffer(state, owner.dtype), known_by)

    def _end(self, session_id: int) -> None:
        self.last_id = max(self.last_id, session_id)

    def _owner(self, model: int) -> Sessions:
        if model not in self._by_model:
            raise StoreMismatchError(
                "the journal holds events of a model that is not served now: start once with the "
                "models it was written with, and stop the server with SIGTERM"
            )
        if model not in self._trusted:
            self._journal.check_arithmetic(model)
            self._trusted.add(model)
        return self._by_model[model]

    def _place(self, session_id: int) -> tuple[Sessions, int]:
        place = self._places.get(session_id)
        if place is None:
            row = self._journal.store.get(session_id)
            if row is None:
                if self._lenient:
                    raise _GivenUpError
                raise StoreDamagedError(
                    f"the journal has a change of session {session_id}, which was never opened"
                )
            owner = self._owner(row.model)
            slot = owner.find(row.name, 0.0)
            assert slot is not None
            place = self._places[session_id] = owner, slot
        return place

    def _is_next(self, owner: Sessions, slot: int, seq: int) -> bool:
        """Whether a change is new to its session; the row may have it."""
        last = owner.table.row_seqs[slot]
        if seq > last + 1:
            if self._lenient:
                raise _GivenUpError
            raise StoreDamagedError(
                f"session {owner.table.names[slot]!r} is at change {last}, and the journal goes "
                f"on with {seq}: those between are missing"
            )
        return bool(seq == last + 1)


class _Alone:
    """One session replayed by itself, as far as its state is finite."""

    session: Any  # the engine's

    def __init__(self, owner: Sessions, slot: int, store: Store) -> None:
        row = store.get(int(owner.table.ids[slot]))
        self._owner = owner
        self._good = True
        self._seq = 0 if row is None else row.seq
        self._name = owner.table.names[slot]
        self.numbers: Array | None = None
        self._put(None if row is None else row.state or None)

    def step(self, fields: list[Any], index: int) -> None:
        """The change of a step or steps record at that index."""
        _, _, seqs, X, _ = fields
        seq = int(np.frombuffer(seqs, np.int64)[index])
        x = np.frombuffer(X, self._owner.dtype).reshape(-1, self._owner.inputs)[index]
        self._move(seq, 1, lambda: self.session.step(x))

    def apply(self, kind: str, fields: list[Any]) -> None:
        """Any other change of this session."""
        if kind == "open" and not self._seq:
            self._put(fields[5])
        elif kind == "run":
            rows = np.frombuffer(fields[2], self._owner.dtype).reshape(-1, self._owner.inputs)
            self._move(fields[1], len(rows), lambda: self.session.run(rows))
        elif kind == "reset":
            self._move(fields[1], 1, self.session.reset)
        elif kind == "restore":
            self._move(fields[1], 1, lambda: self._put(fields[2]))

    def _put(self, state: bytes | None) -> None:
        if self.numbers is not None:
            self.session.close()
        numbers = None if state is None else np.frombuffer(state, self._owner.dtype)
        self.session = self._owner.engine.adopt(self._name, numbers, self._seq)
        self.numbers = self._owner.read(self.session)

    def _move(self, first: int, count: int, change: Any) -> None:
        if not self._good or first != self._seq + 1:
            return
        with suppress(NonFiniteError):
            change()
        numbers = self._owner.read(self.session)
        self._good = bool(np.isfinite(numbers).all())
        if self._good:
            self.numbers = numbers
            self._seq += count
