"""The simulator finds what it is there to find: each of these faults in the code, every time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from simulation.world import World
from streamlstm.errors import DeadlineError
from streamlstm.service import operations
from streamlstm.service.client.attachments import Attachments
from streamlstm.service.client.outbox import Outbox
from streamlstm.service.client.refusals import Refusals
from streamlstm.service.server import acts, last_good, sessions, stepping
from streamlstm.service.server.answers import Answers
from streamlstm.service.server.changes import Changes, Owned
from streamlstm.service.server.journal import Journal
from streamlstm.service.server.states import States
from streamlstm.service.server.table import SessionTable
from streamlstm.store import Store

Patch = pytest.MonkeyPatch


def with_fields(request: Any, **changed: Any) -> Any:
    """A request with other fields."""
    request.fields = request.fields._replace(**changed)
    return request


def dedupe_off(patch: Patch) -> None:
    admitted = stepping.admitted

    def mutant(outcomes: Any, request: Any) -> Any:
        seq = request.fields.seq
        if seq is not None and seq <= request.sessions.table.row_seqs[request.seat]:
            with_fields(request, seq=None)
        return admitted(outcomes, request)

    patch.setattr(stepping, "admitted", mutant)


def gaps_let_through(patch: Patch) -> None:
    admitted = stepping.admitted

    def mutant(outcomes: Any, request: Any) -> Any:
        seq = request.fields.seq
        if seq is not None and seq > request.sessions.table.row_seqs[request.seat]:
            with_fields(request, seq=None)
        return admitted(outcomes, request)

    patch.setattr(stepping, "admitted", mutant)


def seq_check_off_for_bulks(patch: Patch) -> None:
    steps = stepping.steps

    def mutant(outcomes: Any, request: Any) -> Any:
        return steps(outcomes, with_fields(request, seqs=None))

    patch.setattr(stepping, "steps", mutant)


def epoch_check_off(patch: Patch) -> None:
    def check_owner(self: Any, seat: int, epoch: int, _: Any) -> None:
        if seat >= len(self.names) or not self.names[seat]:
            raise self.lost(seat, epoch)

    def check_owners(self: Any, seats: Any, epochs: Any, _: Any) -> None:
        for seat, epoch in zip(seats.tolist(), epochs.tolist(), strict=True):
            check_owner(self, seat, epoch, None)

    patch.setattr(SessionTable, "check_owner", check_owner)
    patch.setattr(SessionTable, "check_owners", check_owners)


def attach_without_epoch_check(patch: Patch) -> None:
    open_ = acts.ACTS[operations.OPEN]

    def mutant(around: Any, request: Any) -> Any:
        if request.fields.epoch is not None:
            seat = request.sessions.roster.find(request.fields.name, around.outcomes.now)
            if seat is not None:
                with_fields(request, epoch=request.sessions.table.row_epochs[seat])
        return open_(around, request)

    patch.setitem(acts.ACTS, operations.OPEN, mutant)


def attach_opens_afresh(patch: Patch) -> None:
    open_ = acts.ACTS[operations.OPEN]

    def mutant(around: Any, request: Any) -> Any:
        if request.sessions.roster.find(request.fields.name, around.outcomes.now) is None:
            with_fields(request, epoch=None)
        return open_(around, request)

    patch.setitem(acts.ACTS, operations.OPEN, mutant)


def repeated_open_not_known(patch: Patch) -> None:
    add, begin_epoch = SessionTable.add, SessionTable.begin_epoch

    def mutant_add(self: Any, *args: Any, **facts: Any) -> int:
        return add(self, *args, **(facts | {"token": 0}))

    patch.setattr(SessionTable, "add", mutant_add)
    patch.setattr(SessionTable, "begin_epoch", lambda self, seat, _: begin_epoch(self, seat, 0))


def journal_after_reply(patch: Patch) -> None:
    commit = Journal.commit

    def mutant(self: Any) -> None:
        store = self.store
        store.commit()  # of the last turn
        self.store = SimpleNamespace(append=store.append, commit=lambda: None)
        commit(self)
        self.store = store

    patch.setattr(Journal, "commit", mutant)


def ring_not_restored(patch: Patch) -> None:
    patch.setattr(Answers, "load", lambda self, seat, _, seq: self.clear(seat, seq))


def checkpoint_trims_too_far(patch: Patch) -> None:
    trim = Store.trim

    def mutant(self: Any, through: int) -> None:
        trim(self, max((number for number, _ in self.journal()), default=through))

    patch.setattr(Store, "trim", mutant)


def checkpoint_skips_a_row(patch: Patch) -> None:
    write = States.write

    def mutant(self: Any, seats: Any) -> int:
        size = write(self, seats[1:])
        self.table.dirty[seats] = False
        return size

    patch.setattr(States, "write", mutant)


def row_without_its_last_change(patch: Patch) -> None:
    row = States.row

    def mutant(self: Any, seat: int, *args: Any) -> Any:
        whole = row(self, seat, *args)
        return dataclasses.replace(whole, seq=max(0, whole.seq - 1))

    patch.setattr(States, "row", mutant)


def own_not_journaled(patch: Patch) -> None:
    note = Changes.note

    def mutant(self: Any, record: Any) -> None:
        if not isinstance(record, Owned):
            note(self, record)

    patch.setattr(Changes, "note", mutant)


def late_event_is_stepped(patch: Patch) -> None:
    admitted = stepping.admitted

    def mutant(outcomes: Any, request: Any) -> Any:
        try:
            return admitted(outcomes, request)
        except DeadlineError:
            request.sessions.step(request.seat, request.fields.payload)
            raise

    patch.setattr(stepping, "admitted", mutant)


def last_good_state_forgotten(patch: Patch) -> None:
    patch.setattr(last_good, "last_good", lambda _, __, names: dict.fromkeys(names))


def client_renumbers_on_resend(patch: Patch) -> None:
    renew = Outbox.renew

    def mutant(self: Any, call: Any) -> None:
        if call.session is not None and call.takes:
            call.seq = max(call.seq, call.session.remote_seq + 1)
            call.last = call.seq + call.takes - 1
        renew(self, call)

    patch.setattr(Outbox, "renew", mutant)


def client_overlooks_a_rollback(patch: Patch) -> None:
    attached = Attachments.attached

    def mutant(self: Any, session: Any, opened: tuple[int, int, int], *rest: Any) -> None:
        handle, epoch, seq = opened
        attached(self, session, (handle, epoch, max(seq, session.seq)), *rest)

    patch.setattr(Attachments, "attached", mutant)


def client_does_not_resend(patch: Patch) -> None:
    def resend(_: Any, call: Any, __: float) -> None:
        call.due_s = inf

    patch.setattr(Attachments, "resend", resend)


def client_uses_numbers_twice(patch: Patch) -> None:
    """And the server does not look whether a repeat has the same input."""
    refuse = Refusals.refuse

    def mutant(self: Any, call: Any, error: Any, now: float, late: bool = False) -> None:
        detach = self.attachments.detach
        self.attachments.detach = lambda *_: None
        try:
            refuse(self, call, error, now, late)
        finally:
            self.attachments.detach = detach

    patch.setattr(Refusals, "refuse", mutant)
    for module in (acts, sessions, stepping):
        patch.setattr(module, "digest", lambda *_: 0)


MUTANTS: dict[Callable[[Patch], None], int] = {
    dedupe_off: 100,
    gaps_let_through: 100,
    seq_check_off_for_bulks: 100,
    epoch_check_off: 100,
    attach_without_epoch_check: 100,
    attach_opens_afresh: 100,
    repeated_open_not_known: 100,
    journal_after_reply: 100,
    ring_not_restored: 200,
    checkpoint_trims_too_far: 1000,
    checkpoint_skips_a_row: 100,
    row_without_its_last_change: 100,
    own_not_journaled: 500,
    late_event_is_stepped: 100,
    last_good_state_forgotten: 100,
    client_renumbers_on_resend: 100,
    client_overlooks_a_rollback: 200,
    client_does_not_resend: 100,
    client_uses_numbers_twice: 200,
}
"""Each with the seeds among which it has to be caught."""


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("mutate", "seeds"), MUTANTS.items(), ids=[mutate.__name__ for mutate in MUTANTS]
)
def test_a_mutant_is_caught(mutate: Callable[[Patch], None], seeds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        for seed in range(seeds):
            try:
                World(seed).run()
            except AssertionError as violation:
                print(f"{mutate.__name__}: seed {seed}: {violation}")
                return
    pytest.fail(f"{seeds} schedules, and nothing was noticed")
