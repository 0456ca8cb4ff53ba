"""Where each session's state is: in a row of the engine, in the store, or held back.

At most `max_resident` are in the engine; those not used for longest are spilled to the store. A
session whose state turned non-finite is quarantined: the last good one is held until a reset or
restore. A row of the store may be older than its session's state, never newer than its journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import CapacityError, StoreDamagedError
from streamlstm.service.contract import EngineLike, GroupLike, SessionLike
from streamlstm.service.server import last_good
from streamlstm.service.server.answers import QuarantinedError
from streamlstm.service.server.bounds import Bounds
from streamlstm.service.server.changes import Changes
from streamlstm.service.server.meters import ModelMeters
from streamlstm.service.server.table import QUARANTINED, RESIDENT, SPILLED, Residence
from streamlstm.store import SessionRow

Array = npt.NDArray[Any]

SPILL_SHARE: Final = 16
"""Of the resident sessions one in so many is spilled when room is needed, so that it is rare."""


class Place:
    """One seat's session while it changes; of one in quarantine a copy of its last good state."""

    def __init__(self, states: States, seat: int, read_state: Callable[[bytes], Any]) -> None:
        self._states = states
        self._seat = seat
        self.bounds = states.bounds
        self.read_state = read_state

    @cached_property
    def session(self) -> SessionLike[Any]:
        return self._states.good_at(self._seat)

    def numbers(self) -> Array:
        return last_good.state_of(self._states.engine, self.session)

    def put(self, state: bytes) -> None:
        table, states = self._states.table, self._states
        self.session.close()
        numbers = np.frombuffer(state, states.dtype)
        seq = table.row_seqs[self._seat] + 1
        self.session = states.engine.adopt(table.names[self._seat], numbers, seq)

    def give_up(self) -> None:
        """Nothing was changed."""
        if self._seat in self._states.held and "session" in self.__dict__:
            self.session.close()


class States:
    """The states of one model's sessions, by seat."""

    def __init__(
        self,
        engine: EngineLike[Any],
        books: Changes,
        meters: ModelMeters,
        model_id: int,
        *,
        bounds: Bounds,
        max_resident: int | None,
    ) -> None:
        self.engine = engine
        self.bounds = bounds
        self.table, self.answers, self.journal = books.table, books.answers, books.journal
        self.meters = meters
        self.model_id = model_id
        self.max_resident = min(max_resident or engine.max_sessions, engine.max_sessions)
        self.dtype = np.dtype(engine.model.event_dtype)
        self.live: list[SessionLike[Any] | None] = []  # the engine's sessions that can be stepped
        self.held: dict[int, Array | None] = {}  # last good states of those in quarantine
        self._rows = np.zeros(0, np.uint32)  # the engine's row and its epoch, by seat
        self._row_epochs = np.zeros(0, np.uint32)
        self.grow()

    def grow(self) -> None:
        """Have as many seats as the table."""
        extra = self.table.seats - len(self.live)
        self.live.extend([None] * extra)
        for name in ("_rows", "_row_epochs"):
            old: Array = getattr(self, name)
            setattr(self, name, np.append(old, np.zeros(extra, old.dtype)))

    # --- in and out of the engine ---

    def settle(self, seat: int, session: SessionLike[Any]) -> None:
        """The engine's session of a seat can be stepped from now on."""
        self.held.pop(seat, None)
        self.live[seat] = session
        self._rows[seat], self._row_epochs[seat] = session.row, session.epoch
        self.table.move(seat, Residence.RESIDENT)

    def load(self, seat: int, row: SessionRow) -> None:
        """A stored session has its seat; the state stays in the store until it is needed."""
        self.answers.load(seat, row.answers, row.seq)
        if row.quarantined:
            self.held[seat] = np.frombuffer(row.state, self.dtype) if row.state else None
            self.table.move(seat, Residence.QUARANTINED)
        else:
            self.table.move(seat, Residence.SPILLED)

    def drop(self, seat: int) -> None:
        """The session ends."""
        session, self.live[seat] = self.live[seat], None
        if session is not None:
            session.close()
        self.held.pop(seat, None)
        self.answers.clear(seat, 0)

    def at(self, seat: int) -> SessionLike[Any]:
        """The engine's session, brought back if need be. Raises SessionQuarantinedError."""
        return self.live[seat] or self._bring_back(seat, ())

    def place(self, seat: int, read_state: Callable[[bytes], Any]) -> Place:
        """For a change of one session; `settle` or `give_up` it after."""
        return Place(self, seat, read_state)

    def good_at(self, seat: int) -> SessionLike[Any]:
        """`at`; for one in quarantine a session with its last good state, not settled yet."""
        if seat not in self.held:
            return self.at(seat)
        self.make_room(1, ())
        table = self.table
        return self.engine.adopt(table.names[seat], self.held[seat], table.row_seqs[seat])

    def bring(self, seats: Array) -> None:
        """Have the states of seats [n] in the engine.

        Raises SessionQuarantinedError by index, CapacityError.
        """
        residence = self.table.residence[seats]
        if (residence == RESIDENT).all():
            return
        if (residence == QUARANTINED).any():
            index = int(np.argmax(residence == QUARANTINED))
            raise QuarantinedError(int(self.table.seqs[seats[index]]), index)
        away = seats[residence != RESIDENT]
        self.make_room(len(np.unique(away)), seats)
        for seat in away:
            if self.live[seat] is None:
                self._bring_back(int(seat), seats)

    def _bring_back(self, seat: int, keep: Any) -> SessionLike[Any]:
        """The engine's session of a seat whose state is in the store; `keep` stay resident."""
        table = self.table
        if seat in self.held:
            raise QuarantinedError(table.row_seqs[seat])
        assert self.journal is not None
        row = self.journal.store.get(int(table.ids[seat]))
        assert row is not None
        assert row.seq == table.row_seqs[seat]
        self.make_room(1, keep)
        session = self.engine.adopt(row.name, np.frombuffer(row.state, self.dtype), row.seq)
        self.settle(seat, session)
        return session

    def make_room(self, wanted: int, keep: Iterable[int]) -> None:
        """Spill sessions that were not used for longest until `wanted` more fit."""
        over = len(self.engine) + wanted - self.max_resident
        if over <= 0:
            return
        movable = self.table.residence == RESIDENT
        movable[list(keep)] = False
        seats = np.flatnonzero(movable)
        if self.journal is None or len(seats) < over:
            raise CapacityError(
                f"only {self.max_resident} sessions may be resident at a time; start the server "
                "with a larger --max-resident, or step fewer together"
            )
        some = min(len(seats), max(over, self.max_resident // SPILL_SHARE))
        oldest = np.argpartition(self.table.active_s[seats], some - 1)[:some]
        self._spill(seats[oldest])

    def _spill(self, seats: Array) -> None:
        """Move states from the engine to the store."""
        self.write(seats[self.table.dirty[seats]])
        seats = seats[~self.table.dirty[seats]]
        seats = seats[self.table.residence[seats] == RESIDENT]  # others `write` quarantined
        for seat in seats:
            session, self.live[seat] = self.live[seat], None
            assert session is not None
            session.close()
        self.meters.spilled += len(seats)
        self.table.move(seats, Residence.SPILLED)

    def quarantine(self, seats: Sequence[int]) -> None:
        """The sessions' states are not finite: hold their last good ones."""
        table = self.table
        for seat in seats:
            bad, self.live[seat] = self.live[seat], None
            assert bad is not None
            bad.close()
        table.move(seats, Residence.QUARANTINED)
        self.held.update(dict.fromkeys(seats))
        if self.journal is not None:
            names = {int(table.ids[seat]): table.names[seat] for seat in seats}
            with suppress(StoreDamagedError):  # then none is known
                good = last_good.last_good(self.engine, self.journal, names)
                self.held.update({seat: good[int(table.ids[seat])] for seat in seats})
            table.dirty[seats] = False
            self.journal.store.put(self._held_rows(seats))

    # --- as they are ---

    def group(self, seats: Any) -> GroupLike:
        """The engine's group of resident seats [n]. Raises RepeatedSessionError."""
        return self.engine.group_by_row(self._rows[seats], self._row_epochs[seats])

    def numbers(self, seats: Any) -> Array:
        """States [n, state_size] of resident seats."""
        return self.group(seats).numbers()

    # --- rows of the store ---

    def write(self, seats: Array) -> int:
        """Put the sessions of seats [n] into the store as they are now.

        Those whose state is not finite are quarantined; while the journal is replayed they are
        left dirty instead, for more of their changes may follow. Returns the bytes written.
        """
        assert self.journal is not None
        resident = seats[self.table.residence[seats] == RESIDENT]
        numbers = self.numbers(resident)
        fine = np.isfinite(numbers).all(axis=1)
        bad = resident[~fine]
        if self.journal.replaying:
            seats = seats[~np.isin(seats, bad)]
        elif len(bad):
            self.quarantine(bad.tolist())
        pairs = zip(resident[fine], numbers[fine], strict=True)
        rows = [self.row(int(seat), state.tobytes()) for seat, state in pairs]
        self.journal.store.put(rows)
        residence = self.table.residence[seats]
        self.journal.store.put(self._held_rows(seats[residence == QUARANTINED].tolist()))
        for seat in seats[residence == SPILLED].tolist():  # all but the state is here
            with suppress(StoreDamagedError):  # said when somebody asks for it
                row = self.journal.store.get(int(self.table.ids[seat]))
                assert row is not None
                self.journal.store.put([self.row(seat, row.state)])
        self.table.dirty[seats] = False
        return sum(len(row.state) + len(row.answers) for row in rows)

    def row(self, seat: int, state: bytes, quarantined: bool = False) -> SessionRow:
        """What the store keeps of a session."""
        table = self.table
        return SessionRow(
            int(table.ids[seat]),
            self.model_id,
            table.names[seat],
            int(table.epochs[seat]),
            int(table.tokens[seat]),
            table.row_seqs[seat],
            state,
            self.answers.dump(seat),
            quarantined,
        )

    def _held_rows(self, seats: Sequence[int]) -> Iterator[SessionRow]:
        for seat in seats:
            good = self.held[seat]
            yield self.row(seat, b"" if good is None else good.tobytes(), True)

    def check(self) -> None:
        """What holds between two turns. Raises AssertionError."""
        table = self.table
        resident = held = 0
        for name, seat in table.by_name.items():
            residence, session = table.residence[seat], self.live[seat]
            assert (residence == RESIDENT) == (session is not None), f"no residence of {name!r}"
            assert (residence == QUARANTINED) == (seat in self.held)
            assert residence != SPILLED or self.journal is not None, "a state is nowhere"
            held += residence == QUARANTINED
            if session is not None:
                resident += 1
                assert session.name == name
                assert session.seq == table.row_seqs[seat], f"seqs of {name!r} differ"
        assert len(self.held) == held, "a state is held for nobody"
        assert len(self.engine) == resident, "the engine has a session that nobody has"
