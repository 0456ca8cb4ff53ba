"""The moves of a session's residence, and the books that must agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from service.fake_engine import Engine
from service.talk import Talk, event
from streamlstm.service.server.connections import Peer
from streamlstm.service.server.protocol import ServerState
from streamlstm.service.server.table import CLOSED, Residence, SessionTable

MOVES = {
    "ENDED": {"FRESH"},
    "FRESH": {"ENDED", "RESIDENT", "SPILLED", "QUARANTINED"},
    "RESIDENT": {"ENDED", "RESIDENT", "SPILLED", "QUARANTINED"},
    "SPILLED": {"ENDED", "RESIDENT"},
    "QUARANTINED": {"ENDED", "RESIDENT"},
}


@pytest.mark.parametrize(("at", "to"), list(itertools.product(Residence, Residence)))
def test_a_residence_moves_as_it_may(at: Residence, to: Residence) -> None:
    table = SessionTable(0)
    table.residence[3] = at
    if to.name in MOVES[at.name]:
        table.move(3, to)
        assert table.residence[3] == to
    else:
        with pytest.raises(AssertionError, match="can't become"):
            table.move(3, to)
        assert table.residence[3] == at


def test_of_several_seats_all_move_or_none() -> None:
    table = SessionTable(0)
    table.residence[:3] = Residence.RESIDENT, Residence.SPILLED, Residence.RESIDENT
    with pytest.raises(AssertionError, match="can't become"):
        table.move(np.array([0, 1, 2]), Residence.SPILLED)
    assert table.residence[:3].tolist() == [2, 3, 2]
    table.move(np.array([0, 2]), Residence.SPILLED)
    assert table.residence[:3].tolist() == [3, 3, 3]


def test_a_seat_can_be_taken_again() -> None:
    table = SessionTable(0)
    seat = table.add("a", 0, epoch=0, token=0, seq=0, now=0.0)
    table.move(seat, Residence.RESIDENT)
    table.own(seat, Peer(b"A", 1), 0.0)
    table.check()
    table.remove(seat, CLOSED)
    table.check()
    assert table.add("b", 0, epoch=0, token=0, seq=0, now=0.0) == seat
    with pytest.raises(AssertionError, match="never came"):
        table.check()


SPOIL = {
    "an owner's number": lambda talk: talk.protocol.shard.tables[0].table.owners.fill(7),
    "more sessions sit here": lambda talk: setattr(
        talk.protocol.shard.tables[0].roster, "total", 0
    ),
    "nobody has": lambda talk: talk.engines[0].open("nobody's"),
    "seqs of": lambda talk: talk.engines[0].seqs.__setitem__(0, 5),
    "residence": lambda talk: talk.protocol.shard.tables[0].states.live.__setitem__(0, None),
    "not counted": lambda talk: setattr(talk.protocol.shard.rounds, "pending", 3),
}


@pytest.mark.parametrize("wrong", SPOIL)
def test_what_does_not_hold_is_found(wrong: str) -> None:
    talk = Talk(Engine())
    a = talk.open("a")
    talk.done(*event(a, 1, 1))
    talk.protocol.check()
    SPOIL[wrong](talk)
    with pytest.raises(AssertionError, match=wrong):
        talk.protocol.check()


def test_a_server_that_stopped_does_not_start_again() -> None:
    talk = Talk()
    talk.protocol.drain()
    talk.protocol.drain()  # it does already
    talk.protocol.stop()
    with pytest.raises(AssertionError, match="stopped can't be stopped"):
        talk.protocol.stop()
    talk.protocol.drain()
    assert talk.protocol.state is ServerState.STOPPED
