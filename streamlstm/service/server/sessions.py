"""The sessions of one engine, and every way in which one changes.

A session is what its slot says (SessionTable: owner, epoch, seq), its last
answers (Answers), and its state: in a row of the engine while it is resident,
else in the store. With a journal every change is recorded there in the order
it was made; a session's row in the store may be older than its state, never
newer than its journal.

A session whose output turns non-finite is quarantined: the event has taken its
number, the state is put back to the last good one (the stored row and the
journal behind it, replayed), and only reset and restore bring it back.

Callers have checked who may; nothing here knows of peers or messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from streamlstm.errors import (
    CapacityError,
    NonFiniteError,
    ShapeError,
    StateMismatchError,
    StoreDamagedError,
)
from streamlstm.events import acceptable
from streamlstm.head import AHEAD_MAX, FILL_MAX, Head
from streamlstm.service.contract import EngineLike, ModelLike
from streamlstm.service.server.answers import (
    RESET,
    RUN,
    STEP,
    Answers,
    QuarantinedError,
    all_finite,
    digest,
)
from streamlstm.service.server.table import SessionTable
from streamlstm.store import SessionRow

if TYPE_CHECKING:
    from streamlstm.service.server.journal import Journal

Array = npt.NDArray[Any]
T = TypeVar("T")

RUN_WORK_MAX: Final = 200_000_000
"""Parameters times steps of one run or forecast: some 0.1 s in which nobody else is served."""
FORECAST_BYTES_MAX: Final = 65_536
"""Of an answer to a request of 21 bytes: many of them may wait for a client that does not read."""
HEAD_WORK: Final = 1_500
"""What a head does in a step, in parameters."""

SPILL_SHARE: Final = 16
"""Of the resident sessions one in so many is spilled when room is needed, so that it is rare."""


def _steps_max(head: Head | None) -> int:
    """Steps of the network that one event may make: with some heads it fills a gap."""
    if head is None or head.time is None or head.spacing == "gap":
        return 1
    return 1 + FILL_MAX if head.missing in ("hold", "predict") else 1


class Sessions:
    """All sessions of one engine, at most `max_resident` of them with their state in it."""

    def __init__(
        self, engine: EngineLike[Any], index: int, journal: Journal | None, max_resident: int | None
    ) -> None:
        self.engine = engine
        self.model: ModelLike = engine.model
        self.name = self.model.name
        self.dtype = np.dtype(self.model.event_dtype)
        self.inputs = len(self.model.inputs)
        self.event_size = self.inputs * self.dtype.itemsize
        self.parameters: int = self.model.parameters  # a step multiplies and adds about as often
        self.run_rows = max(1, RUN_WORK_MAX // (self.parameters * _steps_max(self.model.head)))
        head = self.model.head
        self.forecast_steps = 0  # that one message may ask for
        if head is not None:
            quantiles = len(head.quantiles)
            by_bytes = FORECAST_BYTES_MAX // (8 * quantiles)
            by_work = head.horizon + RUN_WORK_MAX // self._ahead_work(head)
            self.forecast_steps = max(1, min(AHEAD_MAX, by_bytes, by_work))
        self._refuses = head is not None and "reject" in (head.missing, head.late)
        self.max_resident = min(max_resident or engine.max_sessions, engine.max_sessions)
        self.table = SessionTable(index)
        self.answers = Answers(len(self.model.outputs), self.dtype)
        self.live: list[Any] = []  # by slot: the engine's session, while it can be stepped
        self.quarantined: dict[int, Array | None] = {}  # its last good state, if it is known
        self.events = self.micro_batches = self.evicted = self.spilled = 0
        self.journal = journal
        self.model_id = 0
        self._replayed: dict[str, int] = {}  # the engine's counters at the start
        self.total = 0  # sessions here or in the store
        self._stored: Iterator[tuple[int, str]] | None = None  # not yet swept
        if journal is not None:
            self.model_id = journal.register(self.model, engine.arithmetic)
            self.total = journal.store.count(self.model_id)
        # Replay is exact where a stream's bits are its own; elsewhere each is stepped alone.
        self.alone = journal is not None and not engine.same_bits
        self._x = np.zeros(self.inputs, self.dtype)  # one event and its output, and their bytes
        self._y = np.zeros(len(self.model.outputs), self.dtype)
        self._x_bytes, self._y_bytes = self._x.data.cast("B"), self._y.data.cast("B")
        self._rows = np.zeros(0, np.uint32)  # the engine's handle and epoch, by slot
        self._row_epochs = np.zeros(0, np.uint32)
        self._resident = np.zeros(0, np.bool_)
        self._grow()

    def _grow(self) -> None:
        slots = self.table.slots
        self.answers.grow(slots)
        extra = slots - len(self.live)
        self.live.extend([None] * extra)
        for name in ("_rows", "_row_epochs", "_resident"):
            old: Array = getattr(self, name)
            setattr(self, name, np.append(old, np.zeros(extra, old.dtype)))

    # --- coming and going ---

    def find(self, name: str, now: float) -> int | None:
        """The slot of a session, live or stored; None where there is none of that name."""
        slot = self.table.by_name.get(name)
        if slot is None and self.journal is not None:
            row = self.journal.store.find(self.model_id, name)
            return None if row is None else self.load(row, now)
        return slot

    def open(
        self, name: str, token: int, now: float, numbers: Array | None = None, epoch: int = 0
    ) -> int:
        """A session of a new name, in its initial state or that of `numbers`; nobody's yet.

        Raises CapacityError, StateMismatchError (the store has it under another model).
        """
        replaying = self.journal is not None and self.journal.replaying
        if self.total >= self.engine.max_sessions and not replaying:
            raise CapacityError(
                f"all {self.engine.max_sessions} sessions are open; close some, or start the "
                "server with a larger --max-sessions"
            )
        self.check_model(name)
        self._make_room(1, ())
        session = self.engine.adopt(name, numbers, 0)
        session_id = self.journal.new_id() if self.journal is not None else 0
        slot = self._add(name, session_id, epoch=epoch, token=token, seq=0, now=now)
        self._settle(slot, session)
        self.answers.clear(slot, 0)
        self.total += 1
        self.table.dirty[slot] = True
        if self.journal is not None:
            blob = None if numbers is None else numbers.tobytes()
            begun = int(self.table.epochs[slot])
            self.journal.add("open", self.model_id, session_id, name, begun, token, blob)
        return slot

    def check_model(self, name: str) -> None:
        """Raise StateMismatchError if the store has the session under another model."""
        if self.journal is None:
            return
        other = self.journal.store.find_other(self.name, name, self.model_id)
        if other is not None:
            raise StateMismatchError(
                f"the store has session {name!r} of model {self.name!r} {other[:12]}, this "
                f"server has {self.model.fingerprint[:12]}: serve that model, or remove the "
                "session with `streamlstm sessions DIR NAME --remove`"
            )

    def load(self, row: SessionRow, now: float) -> int:
        """A slot for a stored session; its state stays in the store until it is needed."""
        slot = self._add(row.name, row.id, epoch=row.epoch, token=row.token, seq=row.seq, now=now)
        self.answers.load(slot, row.answers, row.seq)
        if row.quarantined:
            good = np.frombuffer(row.state, self.dtype) if row.state else None
            self.quarantined[slot] = good
        return slot

    def begin_epoch(self, slot: int, token: int) -> None:
        """A new owner, or the old one come back."""
        self.table.begin_epoch(slot, token)
        if self.journal is not None:
            self.table.dirty[slot] = True
            epoch = int(self.table.epochs[slot])
            self.journal.add("own", int(self.table.ids[slot]), epoch, token)

    def fork(self, slot: int, name: str, token: int, now: float) -> int:
        """A new session that starts from a copy of this one's state, with seq 0."""
        if self.live[slot] is None:
            self._load_state(slot)
        return self.open(name, token, now, self._numbers([slot])[0])

    def end(self, slot: int, cause: int) -> None:
        """Close or evict a session."""
        session, self.live[slot] = self.live[slot], None
        if session is not None:
            session.close()
        self.quarantined.pop(slot, None)
        self._resident[slot] = False
        if self.journal is not None:
            self.journal.end(int(self.table.ids[slot]))
        self.answers.clear(slot, 0)
        self.table.remove(slot, cause)
        self.total -= 1

    def begin_counting(self) -> None:
        """What was counted until now is of events that were replayed."""
        self.events = self.micro_batches = 0
        self._replayed = self.engine.counters()

    def readings(self) -> dict[str, int]:
        """What happened to readings since; {} without a head."""
        counts = self.engine.counters()
        return {name: count - self._replayed.get(name, 0) for name, count in counts.items()}

    def sweep(self, at_most: int) -> int:
        """Evict those of the next stored sessions that have no slot; how many it looked at."""
        assert self.journal is not None
        if self._stored is None:
            self._stored = self.journal.store.names(self.model_id)
        seen: list[tuple[int, str]] = []
        with suppress(StoreDamagedError):  # those behind it stay, as `sessions --check` tells
            seen.extend(islice(self._stored, at_most))
        idle = [session_id for session_id, name in seen if name not in self.table.by_name]
        evicted = self.journal.store.delete(idle)  # some may have been opened and closed since
        self.total -= evicted
        self.evicted += evicted
        return len(seen)

    def _add(self, name: str, session_id: int, **facts: Any) -> int:
        if self.table.full:
            self.table.grow(2 * self.table.slots)
            self._grow()
        return self.table.add(name, session_id, **facts)

    def _settle(self, slot: int, session: Any) -> None:
        """The engine's session of a slot can be stepped from now on."""
        self.live[slot] = session
        self._rows[slot], self._row_epochs[slot] = session.handle, session.epoch
        self._resident[slot] = True
        self.table.version += 1

    # --- changes ---

    def step(self, slot: int, x: Any) -> memoryview:
        """Apply one event, bytes of [inputs]; the answer's bytes are good until the next call.

        Raises NonFiniteError, SessionQuarantinedError.
        """
        session = self.live[slot] or self._load_state(slot)
        self._x_bytes[:] = x
        session.step_into(self._x, self._y)
        known_by = digest(STEP, x)
        table = self.table
        seq = table.row_seqs[slot] + 1
        table.row_seqs[slot] = seq
        self.answers.keep(slot, seq, known_by, self._y_bytes)
        self.events += 1
        self.micro_batches += 1
        if not all_finite(self._y.data):
            self._quarantine([slot])
            raise QuarantinedError(seq)
        if self.journal is not None:
            table.row_dirty[slot] = True
            session_id = int(table.ids[slot]).to_bytes(8, "little")
            changed = session_id, seq.to_bytes(8, "little"), bytes(x), None
            self.journal.add("step", self.model_id, *changed)
        return self._y_bytes

    def step_many(
        self, slots: Array, X: Array, known_by: Array, op: str, group: Any = None
    ) -> tuple[Array, Array]:
        """One event each: slots [n], X [n, inputs] -> (seqs [n], Y [n, outputs]).

        known_by: the digest of each event [n]. A row of NaN in Y is a session that is quarantined
        now. Raises InputError (nothing was stepped), CapacityError.
        """
        if self._refuses and (op == "step" or self.alone):
            self._check_policies(group or self.group(slots), X, op)
        if self.alone:
            self._check_events(X)
            Y = np.stack([self.live[slot].step(x) for slot, x in zip(slots, X, strict=True)])
        else:
            Y = (group or self.group(slots)).step(X)
        bad = None
        if not np.isfinite(Y).all():
            bad = ~np.isfinite(Y).all(axis=1)
            Y[bad] = np.nan
        table = self.table
        seqs = table.seqs[slots] + 1
        table.seqs[slots] = seqs
        self.answers.keep_many(slots, seqs, known_by, Y)
        self.events += len(slots)
        self.micro_batches += 1
        if self.journal is not None:
            table.dirty[slots] = True
            good = slots if bad is None else slots[~bad]
            events = X if bad is None else X[~bad]
            if len(good):
                digests = known_by if bad is None else known_by[~bad]
                kept = None if op == "step" else digests.tobytes()
                self.journal.add(op, self.model_id, *self._names(good), events.tobytes(), kept)
        if bad is not None:
            self._quarantine(slots[bad].tolist())
        return seqs, Y

    def _check_policies(self, group: Any, X: Array, op: str) -> None:
        """Raise what a policy refuses; of a micro-batch, each is then stepped and counted alone."""
        for refusal in group.refusals(X).values():
            if op == "steps":
                self.engine.count_refused()
            raise refusal

    def _check_events(self, X: Array) -> None:
        """As the engine does: all of X [n, inputs] is good, or nothing is stepped."""
        good = self._acceptable(X)
        if not good.all():
            wrong = "no whole number" if self.model.vocabulary else "NaN, infinity"
            index = int(np.argmin(good))
            raise NonFiniteError(f"event {index} holds {wrong} or a number that is too large")

    def _acceptable(self, X: Array) -> Array:
        """Which events of X [n, inputs] the engine takes, whatever the session: bool [n]."""
        told = self.engine.largest_event
        largest = np.finfo(self.dtype).max if told is None else told
        good = acceptable(X, largest, self.model.head, self.model.vocabulary)
        return np.asarray(good.all(axis=1))

    def refused(self, slots: Array, X: Array) -> list[int]:
        """Indices of the events X [n, inputs] that the resident sessions of slots [n] refuse."""
        good = self._acceptable(X)
        some = np.flatnonzero(good)
        by_policy: list[int] = list(self.group(slots[some]).refusals(X[some]))
        good[some[by_policy]] = False
        found: list[int] = np.flatnonzero(~good).tolist()
        return found

    def run(self, slot: int, X: Array) -> bytes:
        """Apply events in order, X [n, inputs] with n at least 1; the answers' bytes.

        Raises NonFiniteError, SessionQuarantinedError.
        """
        session = self.live[slot] or self._load_state(slot)
        Y = session.run(X)
        table = self.table
        first = table.row_seqs[slot] + 1
        last = first + len(X) - 1
        payload = X.tobytes()
        fine = bool(np.isfinite(Y).all())
        answer: bytes = Y.tobytes() if fine else b""
        table.row_seqs[slot] = last
        self.answers.keep_run(slot, first, last, digest(RUN, payload), answer)
        self.events += len(X)
        self.micro_batches += 1
        if not fine:
            self._quarantine([slot])
            raise QuarantinedError(last)
        if self.journal is not None:
            table.row_dirty[slot] = True
            self.journal.add("run", int(table.ids[slot]), first, payload)
        return answer

    def reset(self, slot: int) -> None:
        """Back to the initial state; takes a seq of its own."""
        session = self._changeable(slot)
        session.reset()
        self._changed(slot, session, digest(RESET, b""))
        if self.journal is not None:
            seq = self.table.row_seqs[slot]
            self.journal.add("reset", int(self.table.ids[slot]), seq)

    def restore(self, slot: int, state: Any, known_by: int) -> None:
        """Put back a saved state; takes a seq of its own. Raises StateMismatchError."""
        session = self._changeable(slot)
        try:
            session.restore(state)
        except BaseException:
            if slot in self.quarantined:
                session.close()
            raise
        self._changed(slot, session, known_by)
        if self.journal is not None:
            seq, numbers = self.table.row_seqs[slot], self._numbers([slot])[0]
            session_id = int(self.table.ids[slot])
            self.journal.add("restore", session_id, seq, numbers.tobytes(), known_by)

    def put_back(self, slot: int, numbers: Array, known_by: int) -> None:
        """`restore` from the journal: numbers [state_size]."""
        session = self._changeable(slot)
        seq = self.table.row_seqs[slot]
        session.close()
        self._changed(slot, self.engine.adopt(self.table.names[slot], numbers, seq + 1), known_by)

    def _changeable(self, slot: int) -> Any:
        """The engine's session; of a quarantined slot one with its last good state."""
        if slot not in self.quarantined:
            return self.live[slot] or self._load_state(slot)
        self._make_room(1, ())
        table = self.table
        return self.engine.adopt(table.names[slot], self.quarantined[slot], table.row_seqs[slot])

    def _changed(self, slot: int, session: Any, known_by: int) -> None:
        self.quarantined.pop(slot, None)
        self._settle(slot, session)
        table = self.table
        seq = table.row_seqs[slot] + 1
        table.row_seqs[slot] = seq
        table.row_dirty[slot] = True
        self.answers.keep(slot, seq, known_by, bytes(self.answers.size))

    # --- looking ---

    def state(self, slot: int) -> Any:
        """The engine's State of a session."""
        return self._look(slot, lambda session: session.state())

    def forecast(self, slot: int, steps: int) -> Array:
        """Quantiles of the next steps [steps, quantiles]. Raises ShapeError, InputError,
        EngineError for a model without a head."""
        if 0 < self.forecast_steps < steps <= AHEAD_MAX:
            raise ShapeError(
                f"a forecast of {steps} steps; of model {self.name!r} {self.forecast_steps} can be "
                "had in one message (forecast_steps)"
            )
        found: Array = self._look(slot, lambda session: session.forecast(steps))
        return found

    def forecast_work(self, steps: int) -> int:
        """Of a forecast, unless it is refused: the network makes the steps beyond the horizon."""
        head = self.model.head
        if head is None or steps > self.forecast_steps:
            return 0
        quantiles = steps * len(head.quantiles)
        return max(0, steps - head.horizon) * self._ahead_work(head) + quantiles

    def _ahead_work(self, head: Head) -> int:
        """Of a step beyond the horizon: the network, the head, its quantiles and their sorting."""
        quantiles = len(head.quantiles)
        sorting = head.horizon * quantiles * (8 + quantiles) // 8
        return self.parameters + HEAD_WORK + sorting

    def counters(self, slot: int) -> dict[str, int]:
        """What happened to a session's readings; {} without a head."""
        found: dict[str, int] = self._look(slot, lambda session: session.counters())
        return found

    def _look(self, slot: int, ask: Callable[[Any], T]) -> T:
        """What an engine's session says; of a quarantined one with its last good state."""
        if slot not in self.quarantined:
            return ask(self.live[slot] or self._load_state(slot))
        if self.quarantined[slot] is None:
            raise QuarantinedError(self.table.row_seqs[slot], kept=False)
        session = self._changeable(slot)
        try:
            return ask(session)
        finally:
            session.close()

    # --- places ---

    def group(self, slots: Array) -> Any:
        """The engine's group of resident slots [n]. Raises RepeatedSessionError."""
        return self.engine.group_by_handle(self._rows[slots], self._row_epochs[slots])

    def bring(self, slots: Array) -> None:
        """Have the states of slots [n] in the engine.

        Raises SessionQuarantinedError by index, CapacityError.
        """
        if self._resident[slots].all():
            return
        for index, slot in enumerate(slots):
            if int(slot) in self.quarantined:
                raise QuarantinedError(int(self.table.seqs[slot]), index)
        away = slots[~self._resident[slots]]
        self._make_room(len(np.unique(away)), slots)
        for slot in away:
            if self.live[slot] is None:
                self._load_state(int(slot), slots)

    def _load_state(self, slot: int, keep: Any = ()) -> Any:
        """The engine's session of a slot whose state is in the store; `keep` stay resident."""
        table = self.table
        if slot in self.quarantined:
            raise QuarantinedError(table.row_seqs[slot])
        assert self.journal is not None
        row = self.journal.store.get(int(table.ids[slot]))
        assert row is not None
        assert row.seq == table.row_seqs[slot]
        self._make_room(1, keep)
        session = self.engine.adopt(row.name, np.frombuffer(row.state, self.dtype), row.seq)
        self._settle(slot, session)
        return session

    def _make_room(self, wanted: int, keep: Iterable[int]) -> None:
        """Spill sessions that were not used for longest until `wanted` more fit."""
        over = len(self.engine) + wanted - self.max_resident
        if over <= 0:
            return
        movable = self._resident.copy()
        movable[list(keep)] = False
        slots = np.flatnonzero(movable)
        if self.journal is None or len(slots) < over:
            raise CapacityError(
                f"only {self.max_resident} sessions may be resident at a time; start the server "
                "with a larger --max-resident, or step fewer together"
            )
        some = min(len(slots), max(over, self.max_resident // SPILL_SHARE))
        oldest = np.argpartition(self.table.active_s[slots], some - 1)[:some]
        self.spill(slots[oldest])

    def spill(self, slots: Array) -> None:
        """Move states from the engine to the store."""
        assert self.journal is not None
        self.write(slots[self.table.dirty[slots]])
        slots = slots[~self.table.dirty[slots]]
        for slot in slots:
            session, self.live[slot] = self.live[slot], None
            if session is not None:  # else quarantined by `write`
                session.close()
                self.spilled += 1
        self._resident[slots] = False
        self.table.version += 1

    # --- rows of the store ---

    def write(self, slots: Array) -> int:
        """Put the sessions of slots [n] into the store as they are now.

        Those whose state is not finite are quarantined; while the journal is replayed they are
        left dirty instead, for more of their changes may follow. Returns the bytes written.
        """
        assert self.journal is not None
        resident = slots[self._resident[slots]]
        numbers = self._numbers(resident)
        fine = np.isfinite(numbers).all(axis=1)
        bad = resident[~fine]
        if self.journal.replaying:
            slots = slots[~np.isin(slots, bad)]
        elif len(bad):
            self._quarantine(bad.tolist())
        pairs = zip(resident[fine], numbers[fine], strict=True)
        rows = [self._row(int(slot), state.tobytes()) for slot, state in pairs]
        self.journal.store.put(rows)
        held = [int(slot) for slot in slots if int(slot) in self.quarantined]
        self.journal.store.put(self._quarantined_rows(held))
        for slot in slots[~self._resident[slots]]:  # spilled: all but the state is here
            if int(slot) not in self.quarantined:
                with suppress(StoreDamagedError):  # said when somebody asks for it
                    row = self.journal.store.get(int(self.table.ids[slot]))
                    assert row is not None
                    self.journal.store.put([self._row(int(slot), row.state)])
        self.table.dirty[slots] = False
        return sum(len(row.state) + len(row.answers) for row in rows)

    def _row(self, slot: int, state: bytes, quarantined: bool = False) -> SessionRow:
        table = self.table
        return SessionRow(
            int(table.ids[slot]),
            self.model_id,
            table.names[slot],
            int(table.epochs[slot]),
            int(table.tokens[slot]),
            table.row_seqs[slot],
            state,
            self.answers.dump(slot),
            quarantined,
        )

    def _quarantined_rows(self, slots: Sequence[int]) -> Iterator[SessionRow]:
        for slot in slots:
            good = self.quarantined[slot]
            yield self._row(slot, b"" if good is None else good.tobytes(), True)

    def _numbers(self, slots: Any) -> Array:
        """States [n, state_size] of resident slots."""
        found: Array = self.group(slots).numbers()
        return found

    def read(self, session: Any) -> Array:
        """The state [state_size] of an engine's session."""
        handle, epoch = (np.array([n], np.uint32) for n in (session.handle, session.epoch))
        found: Array = self.engine.group_by_handle(handle, epoch).numbers()[0]
        return found

    def _names(self, slots: Array) -> tuple[bytes, bytes]:
        """What the journal calls changes of slots [n]: ids and seqs."""
        return self.table.ids[slots].tobytes(), self.table.seqs[slots].tobytes()

    def _quarantine(self, slots: list[int]) -> None:
        """The sessions' states are not finite: hold their last good ones."""
        for slot in slots:
            bad, self.live[slot] = self.live[slot], None
            bad.close()
        self._resident[slots] = False
        self.table.version += 1
        self.quarantined.update(dict.fromkeys(slots))
        if self.journal is not None:
            with suppress(StoreDamagedError):  # then none is known
                good = self.journal.last_good(self, slots)
                self.quarantined.update(zip(slots, good, strict=True))
            self.table.dirty[slots] = False
            self.journal.store.put(self._quarantined_rows(slots))
