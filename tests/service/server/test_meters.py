"""Meters: each is declared once, and stats tells them all."""

from __future__ import annotations

import pytest

from service.talk import Talk
from streamlstm.service.server.meters import Kind, ModelMeters, ServerMeters, declared


@pytest.mark.parametrize("record", [ServerMeters, ModelMeters])
def test_each_has_a_unit_and_a_meaning(record: type[ServerMeters | ModelMeters]) -> None:
    meters = declared(record)
    assert len({meter.name for meter in meters}) == len(meters)
    for meter in meters:
        assert meter.help, meter
        assert bool(meter.unit) == (meter.kind is not Kind.FACT), meter


def test_stats_are_the_meters() -> None:
    stats = Talk().protocol.stats(0)
    models = stats.pop("models")
    assert list(stats) == [meter.name for meter in declared(ServerMeters)]
    assert list(models["fold"]) == [meter.name for meter in declared(ModelMeters)]


def test_counters_never_fall() -> None:
    talk = Talk()

    def counters() -> dict[str, int]:
        stats = talk.protocol.stats(0)
        names = [m.name for m in declared(ServerMeters) if m.kind is Kind.COUNTER]
        return {name: stats[name] for name in names if name != "errors"}

    before = counters()
    a = talk.open("a")
    for seq in (1, 9):
        talk.ask("step", 0, *a, seq, None, [1, 1])
    after = counters()
    assert all(after[name] >= before[name] for name in before)
    assert after["messages"] == before["messages"] + 3
