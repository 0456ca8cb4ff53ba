"""The simulator finds what it is there to find: each of these faults in the code, every time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from simulation.world import World
from streamlstm.errors import DeadlineError
from streamlstm.service.client.client_protocol import ClientProtocol
from streamlstm.service.server import protocol, sessions
from streamlstm.service.server.answers import Answers
from streamlstm.service.server.journal import Journal
from streamlstm.service.server.protocol import ServerProtocol
from streamlstm.service.server.sessions import Sessions
from streamlstm.service.server.table import SessionTable
from streamlstm.store import Store

Patch = pytest.MonkeyPatch


def with_fields(request: Any, **changed: Any) -> Any:
    """A request with other fields."""
    request.fields = request.fields._replace(**changed)
    return request


def dedupe_off(patch: Patch) -> None:
    event = ServerProtocol._event

    def mutant(self: Any, request: Any) -> Any:
        seq = request.fields.seq
        if seq is not None and seq <= request.sessions.table.row_seqs[request.slot]:
            with_fields(request, seq=None)
        return event(self, request)

    patch.setattr(ServerProtocol, "_event", mutant)


def gaps_let_through(patch: Patch) -> None:
    event = ServerProtocol._event

    def mutant(self: Any, request: Any) -> Any:
        seq = request.fields.seq
        if seq is not None and seq > request.sessions.table.row_seqs[request.slot]:
            with_fields(request, seq=None)
        return event(self, request)

    patch.setattr(ServerProtocol, "_event", mutant)


def seq_check_off_for_bulks(patch: Patch) -> None:
    steps = ServerProtocol._steps

    def mutant(self: Any, request: Any) -> Any:
        return steps(self, with_fields(request, seqs=None))

    patch.setattr(ServerProtocol, "_steps", mutant)


def epoch_check_off(patch: Patch) -> None:
    def check_owner(self: Any, slot: int, epoch: int, _: Any) -> None:
        if slot >= len(self.names) or not self.names[slot]:
            raise self.lost(slot, epoch)

    def check_owners(self: Any, slots: Any, epochs: Any, _: Any) -> None:
        for slot, epoch in zip(slots.tolist(), epochs.tolist(), strict=True):
            check_owner(self, slot, epoch, None)

    patch.setattr(SessionTable, "check_owner", check_owner)
    patch.setattr(SessionTable, "check_owners", check_owners)


def attach_without_epoch_check(patch: Patch) -> None:
    open_ = ServerProtocol._open

    def mutant(self: Any, request: Any) -> Any:
        if request.fields.epoch is not None:
            slot = request.sessions.find(request.fields.name, self._now)
            if slot is not None:
                with_fields(request, epoch=request.sessions.table.row_epochs[slot])
        return open_(self, request)

    patch.setattr(ServerProtocol, "_open", mutant)


def attach_opens_afresh(patch: Patch) -> None:
    open_ = ServerProtocol._open

    def mutant(self: Any, request: Any) -> Any:
        if request.sessions.find(request.fields.name, self._now) is None:
            with_fields(request, epoch=None)
        return open_(self, request)

    patch.setattr(ServerProtocol, "_open", mutant)


def repeated_open_not_known(patch: Patch) -> None:
    add, begin_epoch = SessionTable.add, SessionTable.begin_epoch

    def mutant_add(self: Any, *args: Any, **facts: Any) -> int:
        return add(self, *args, **(facts | {"token": 0}))

    patch.setattr(SessionTable, "add", mutant_add)
    patch.setattr(SessionTable, "begin_epoch", lambda self, slot, _: begin_epoch(self, slot, 0))


def journal_after_reply(patch: Patch) -> None:
    def commit(self: Any) -> None:
        self.store.commit()  # of the last turn
        if self._changes:
            self._appended = self.store.append(self._pack(self._changes))
            self._changes = []

    patch.setattr(Journal, "commit", commit)


def ring_not_restored(patch: Patch) -> None:
    patch.setattr(Answers, "load", lambda self, slot, _, seq: self.clear(slot, seq))


def checkpoint_trims_too_far(patch: Patch) -> None:
    trim = Store.trim
    patch.setattr(Store, "trim", lambda self, _: trim(self, self._last_record))


def checkpoint_skips_a_row(patch: Patch) -> None:
    write = Sessions.write

    def mutant(self: Any, slots: Any) -> int:
        size = write(self, slots[1:])
        self.table.dirty[slots] = False
        return size

    patch.setattr(Sessions, "write", mutant)


def row_without_its_last_change(patch: Patch) -> None:
    row = Sessions._row

    def mutant(self: Any, slot: int, *args: Any) -> Any:
        found = row(self, slot, *args)
        return dataclasses.replace(found, seq=max(0, found.seq - 1))

    patch.setattr(Sessions, "_row", mutant)


def own_not_journaled(patch: Patch) -> None:
    add = Journal.add

    def mutant(self: Any, *change: Any) -> None:
        if change[0] != "own":
            add(self, *change)

    patch.setattr(Journal, "add", mutant)


def late_event_is_stepped(patch: Patch) -> None:
    event = ServerProtocol._event

    def mutant(self: Any, request: Any) -> Any:
        try:
            return event(self, request)
        except DeadlineError:
            request.sessions.step(request.slot, request.fields.payload)
            raise

    patch.setattr(ServerProtocol, "_event", mutant)


def last_good_state_forgotten(patch: Patch) -> None:
    patch.setattr(Journal, "last_good", lambda _, __, slots: [None] * len(slots))


def client_renumbers_on_resend(patch: Patch) -> None:
    renew = ClientProtocol._renew

    def mutant(self: Any, call: Any) -> None:
        if call.session is not None and call.takes:
            call.seq = max(call.seq, call.session.remote_seq + 1)
            call.last = call.seq + call.takes - 1
        renew(self, call)

    patch.setattr(ClientProtocol, "_renew", mutant)


def client_overlooks_a_rollback(patch: Patch) -> None:
    attached = ClientProtocol._attached

    def mutant(self: Any, session: Any, opened: tuple[int, int, int], *rest: Any) -> None:
        handle, epoch, seq = opened
        attached(self, session, (handle, epoch, max(seq, session.seq)), *rest)

    patch.setattr(ClientProtocol, "_attached", mutant)


def client_does_not_resend(patch: Patch) -> None:
    def resend(_: Any, call: Any, __: float) -> None:
        call.due_s = inf

    patch.setattr(ClientProtocol, "_resend", resend)


def client_uses_numbers_twice(patch: Patch) -> None:
    """And the server does not look whether a repeat has the same input."""
    refuse = ClientProtocol._refuse

    def mutant(self: Any, call: Any, error: Any, now: float, late: bool = False) -> None:
        detach = self._detach
        self._detach = lambda *_: None
        try:
            refuse(self, call, error, now, late)
        finally:
            self._detach = detach

    patch.setattr(ClientProtocol, "_refuse", mutant)
    patch.setattr(protocol, "digest", lambda *_: 0)
    patch.setattr(sessions, "digest", lambda *_: 0)


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
