"""The sessions of one engine, and every way in which one changes or is looked at.

A session is what its seat says (SessionTable: owner, epoch, seq), its last answers (Answers), and
its state (States); Roster has those that come and go. What the engine did to one becomes a change
in Changes.commit_change.

Callers have checked who may; nothing here knows of peers or messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from streamlstm.errors import ShapeError
from streamlstm.events import acceptable, unacceptable
from streamlstm.head import AHEAD_MAX
from streamlstm.service.contract import EngineLike, GroupLike, ModelLike, SessionLike
from streamlstm.service.operations import RUN, STEP, Operation
from streamlstm.service.server.answers import Answers, QuarantinedError, all_finite, digest
from streamlstm.service.server.bounds import Bounds
from streamlstm.service.server.changes import (
    OF_ONE,
    Changes,
    OfOne,
    Ran,
    Stepped,
    SteppedTogether,
)
from streamlstm.service.server.journal import Journal
from streamlstm.service.server.meters import ModelMeters
from streamlstm.service.server.roster import Roster
from streamlstm.service.server.states import States
from streamlstm.service.server.table import SessionTable

Array = npt.NDArray[Any]
T = TypeVar("T")


class Sessions:
    """All sessions of one engine, at most `max_resident` of them with their state in it."""

    def __init__(
        self,
        engine: EngineLike[Any],
        index: int,
        journal: Journal | None,
        max_resident: int | None,
    ) -> None:
        self.engine = engine
        self.model: ModelLike = engine.model
        self.name = self.model.name
        self.dtype = np.dtype(self.model.event_dtype)
        self.inputs = len(self.model.inputs)
        self.event_size = self.inputs * self.dtype.itemsize
        self.parameters = self.model.parameters
        self.bounds = Bounds(self.model)
        head = self.model.head
        largest = engine.largest_event
        self._largest: Any = np.finfo(self.dtype).max if largest is None else largest
        self._refuses = head is not None and "reject" in (head.missing, head.late)
        self.journal = journal
        self.model_id = 0 if journal is None else journal.register(self.model, engine.arithmetic)
        # Replay is exact where a stream's bits are its own; elsewhere each is stepped alone.
        self.one_by_one = journal is not None and not engine.same_bits
        self.meters = ModelMeters(
            max_sessions=engine.max_sessions,
            stepped_alone=self.one_by_one,
            fingerprint=self.model.fingerprint,
            arithmetic=engine.arithmetic,
        )
        self._counted: dict[str, int] = {}  # by the engine, before the first event
        self.table = SessionTable(index)
        self.answers = Answers(len(self.model.outputs), self.dtype)
        self.answers.grow(self.table.seats)
        self.changes = Changes(self.table, self.answers, journal)
        self.states = States(
            engine,
            self.changes,
            self.meters,
            self.model_id,
            bounds=self.bounds,
            max_resident=max_resident,
        )
        self.roster = Roster(engine, self.changes, self.states, self.model_id)
        self._live = self.states.live
        self._x = np.zeros(self.inputs, self.dtype)  # one event and its output, and their bytes
        self._y = np.zeros(len(self.model.outputs), self.dtype)
        self._y_numbers = self._y.data
        self._x_bytes, self._y_bytes = self._x.data.cast("B"), self._y.data.cast("B")

    # --- changes ---

    def step(self, seat: int, x: Any) -> memoryview:
        """Apply one event, bytes of [inputs]; the answer's bytes are good until the next call.

        Raises NonFiniteError, SessionQuarantinedError.
        """
        session = self._live[seat] or self.states.at(seat)
        self._x_bytes[:] = x
        session.step_into(self._x, self._y)
        meters = self.meters
        meters.events += 1
        meters.micro_batches += 1
        known_by = digest(STEP, x)
        if not all_finite(self._y_numbers):
            seq = self.changes.commit_change(seat, known_by, self._y_bytes, None)
            self.states.quarantine([seat])
            raise QuarantinedError(seq)
        self.changes.commit_change(
            seat,
            known_by,
            self._y_bytes,
            lambda id, seq: Stepped(
                self.model_id, id.to_bytes(8, "little"), seq.to_bytes(8, "little"), bytes(x)
            ),
        )
        return self._y_bytes

    def step_many(
        self,
        seats: Array,
        X: Array,
        known_by: Array,
        *,
        together: bool,
        group: GroupLike | None = None,
    ) -> tuple[Array, Array]:
        """One event each: seats [n], X [n, inputs] -> (seqs [n], Y [n, outputs]).

        known_by: the digest of each event [n]. together: they were one message. A row of NaN in Y
        is a session that is quarantined now. Raises InputError: nothing was stepped.
        """
        if self._refuses and (self.one_by_one or not together):
            self._check_policies(group or self.states.group(seats), X, together)
        if self.one_by_one:
            self._check_events(X)
            Y = np.stack([self._at(seat).step(x) for seat, x in zip(seats, X, strict=True)])
        else:
            Y = (group or self.states.group(seats)).step(X)
        good = np.isfinite(Y).all(axis=1)
        every = bool(good.all())
        if not every:
            Y[~good] = np.nan
        self.meters.events += len(seats)
        self.meters.micro_batches += 1

        def record(ids: Array, seqs: Array) -> Stepped | SteppedTogether:
            if every:
                which = ids.tobytes(), seqs.tobytes(), X.tobytes()
            else:
                which = ids[good].tobytes(), seqs[good].tobytes(), X[good].tobytes()
            if together:
                return SteppedTogether(self.model_id, *which, known_by[good].tobytes())
            return Stepped(self.model_id, *which)

        seqs = self.changes.commit_change(seats, known_by, Y, record if good.any() else None)
        if not every:
            self.states.quarantine(seats[~good].tolist())
        return seqs, Y

    def _at(self, seat: int) -> SessionLike[Any]:
        session = self._live[seat]
        assert session is not None
        return session

    def _check_policies(self, group: GroupLike, X: Array, together: bool) -> None:
        """Raise what a policy refuses; of a micro-batch, each is then stepped and counted alone."""
        for refusal in group.refusals(X).values():
            if together:
                self.engine.count_refused()
            raise refusal

    def _check_events(self, X: Array) -> None:
        """As the engine does: all of X [n, inputs] is good, or nothing is stepped."""
        if not self._acceptable(X).all():
            raise unacceptable(X, self._largest, self.model.head, self.model.vocabulary)

    def _acceptable(self, X: Array) -> Array:
        """Which events of X [n, inputs] the engine takes, whatever the session: bool [n]."""
        good = acceptable(X, self._largest, self.model.head, self.model.vocabulary)
        return np.asarray(good.all(axis=1))

    def refused(self, seats: Array, X: Array) -> list[int]:
        """Indices of the events X [n, inputs] that the resident sessions of seats [n] refuse."""
        good = self._acceptable(X)
        some = np.flatnonzero(good)
        by_policy = list(self.states.group(seats[some]).refusals(X[some]))
        good[some[by_policy]] = False
        bad: list[int] = np.flatnonzero(~good).tolist()
        return bad

    def run(self, seat: int, X: Array) -> bytes:
        """Apply events in order, X [n, inputs] with n at least 1; the answers' bytes.

        Raises NonFiniteError, SessionQuarantinedError.
        """
        Y = self.states.at(seat).run(X)
        payload = X.tobytes()
        known_by = digest(RUN, payload)
        self.meters.events += len(X)
        self.meters.micro_batches += 1
        if not np.isfinite(Y).all():
            last = self.changes.commit_change(seat, known_by, b"", None, len(X))
            self.states.quarantine([seat])
            raise QuarantinedError(last)
        answer = Y.tobytes()
        self.changes.commit_change(
            seat, known_by, answer, lambda id, first: Ran(id, first, payload), len(X)
        )
        return answer

    def change(
        self, seat: int, operation: Operation, fields: Any, read_state: Callable[[bytes], Any]
    ) -> int:
        """Make a change of one session that takes one number, unless it is a repeat; its number.

        fields: the operation's. Raises SequenceError, AnswerGoneError, and what the change raises:
        nothing was done.
        """
        record = OF_ONE[operation]
        place = self.states.place(seat, read_state)
        known_by = digest(operation, record.payload(fields, place))
        last, seq = self.table.row_seqs[seat], fields.seq
        if seq is not None and seq != last + 1:
            self.answers.find(seat, seq, known_by, last)
            return int(seq)
        try:
            rest = record.do(fields, place, known_by)
        except BaseException:
            place.give_up()
            raise
        self.states.settle(seat, place.session)
        seq = self.changes.commit_change(
            seat, known_by, self._no_answer, lambda id, seq: record(id, seq, *rest)
        )
        return int(seq)

    def redo(self, seat: int, change: OfOne) -> None:
        """`change` from the journal."""
        place = self.states.place(seat, bytes)
        known_by = change.redo(place)
        self.states.settle(seat, place.session)
        self.changes.commit_change(seat, known_by, self._no_answer, None)

    @property
    def _no_answer(self) -> bytes:
        return bytes(self.answers.size)

    # --- looking ---

    def state(self, seat: int) -> Any:
        """The engine's State of a session."""
        return self._look(seat, lambda session: session.state())

    def forecast(self, seat: int, steps: int) -> Array:
        """Quantiles of the next steps [steps, quantiles]. Raises ShapeError, InputError,
        EngineError for a model without a head."""
        most = self.bounds.forecast_steps
        if 0 < most < steps <= AHEAD_MAX:
            raise ShapeError(
                f"a forecast of {steps} steps; of model {self.name!r} {most} can be had in one "
                "message (forecast_steps)"
            )
        return self._look(seat, lambda session: session.forecast(steps))

    def counters(self, seat: int) -> dict[str, int]:
        """What happened to a session's readings; {} without a head."""
        return self._look(seat, lambda session: session.counters())

    def _look(self, seat: int, ask: Callable[[SessionLike[Any]], T]) -> T:
        """What an engine's session says; of a quarantined one with its last good state."""
        held = self.states.held
        if seat not in held:
            return ask(self.states.at(seat))
        if held[seat] is None:
            raise QuarantinedError(self.table.row_seqs[seat], kept=False)
        session = self.states.good_at(seat)
        try:
            return ask(session)
        finally:
            session.close()

    # --- counting ---

    def begin_counting(self) -> None:
        """What was counted until now is of events that were replayed."""
        self.meters.events = self.meters.micro_batches = 0
        self._counted = self.engine.counters()

    def measure(self) -> ModelMeters:
        """The meters, with gauges as they stand."""
        meters = self.meters
        meters.sessions = self.roster.total
        meters.resident = len(self.engine)
        meters.quarantined = len(self.states.held)
        meters.state_bytes = self.engine.state_bytes
        counts = self.engine.counters()
        meters.readings = Counter(
            {name: count - self._counted.get(name, 0) for name, count in counts.items()}
        )
        return meters

    def check(self) -> None:
        """What holds between two turns. Raises AssertionError."""
        self.table.check()
        self.states.check()
        self.roster.check()
