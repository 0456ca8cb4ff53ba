"""Hostile messages to a server whose model has a head: refused, and nobody else's session moves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import msgpack
import numpy as np
import pytest

import streamlstm as sl
from campaigns.hostile import Hostile
from heads import FLOW, HOUR_S, headed, holed
from service.talk import Talk
from streamlstm import Head

HEAD = Head(FLOW, time="time", step_s=HOUR_S, horizon=2)
MESSAGES = 4000


@pytest.mark.parametrize("strict", [False, True])
def test_hostile_messages(strict: bool) -> None:
    model = headed(replace(HEAD, missing="reject", late="reject") if strict else HEAD)
    faults: list[tuple[str, Exception]] = []
    talk = Talk(
        sl.Engine(model),
        read_state=sl.State.from_bytes,
        report=lambda doing, error: faults.append((doing, error)),
    )
    victim = talk.open("victim", peer=b"V")
    x = holed()[:5]
    talk.ask("run", 0, *victim, None, None, x[~np.isnan(x).any(axis=1)].tobytes(), peer=b"V")
    before = talk.ask("state", 0, *victim, peer=b"V")
    own = [talk.open(f"own{k}", peer=b"H") for k in range(3)]
    hostile = Hostile(random.Random(7), 2, "victim", victim, own, before[3], number="d")
    told: Counter[str] = Counter()
    for k in range(MESSAGES):
        if k % 20 == 0:
            hostile.own = [talk.open(f"own{k}", resume=True, peer=b"H") for k in range(3)]
        talk.protocol.receive(b"H", hostile.draw())
        for peer, reply in talk.protocol.step(talk.now):
            _, status, _, code, *_ = msgpack.unpackb(reply, strict_map_key=False)
            told[code if status == "error" else status] += peer == b"H"
    talk.settle()
    assert faults == []
    assert "INTERNAL" not in told
    assert told["ok"] > MESSAGES / 20
    assert {"PROTOCOL", "SHAPE", "NON_FINITE", "INPUT", "FENCED"} <= told.keys()
    assert talk.ask("state", 0, *victim, peer=b"V") == before
