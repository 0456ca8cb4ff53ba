"""Ten thousand schedules of the whole service: real client, server and store, all else simulated.

A failing seed is named with the command that replays it.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from simulation import schedule
from simulation.chunk import CHUNK, run_chunk
from simulation.engine import CRASH_PLACES
from simulation.world import World

SEEDS = 10_000

FAULTS = (
    "drop",
    "duplicate",
    "reorder",
    "delay",
    "partition that holds",
    "partition that loses",
    "came back as another peer",
    "sent to no server",
    *(f"crash: {place}" for place in CRASH_PLACES),
    "crash: the disk is full",
    *(f"crash: recovery: {place}" for place in ("commit", "put", "trim", "engine")),
    "client crash",
    "graceful stop",
    "memory lost",
    "power loss",
    "overrun",
    "evicted",
    "spilled",
    "timed out",
    *(f"action {kind}" for kind in schedule.ACTIONS),
    *(
        f"error {code}"
        for code in ("BUSY", "DEADLINE", "FENCED", "SEQUENCE", "STOPPING", "QUARANTINED", "EVICTED")
    ),
    "fate lost",
    "fate rolled back",
    "fate unknown",
)
"""What the schedules must have met, each at least once."""


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("untraced_processes")  # it would take five times as long
def test_every_schedule_is_as_if_uninterrupted() -> None:
    seen: Counter[str] = Counter()
    failed: list[str] = []
    workers = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for chunk_seen, chunk_failed in pool.map(run_chunk, range(0, SEEDS, CHUNK)):
            seen += chunk_seen
            failed += chunk_failed
    print(*(f"{times:9d}  {what}" for what, times in sorted(seen.items())), sep="\n")
    assert not failed, f"{len(failed)} of {SEEDS} schedules:\n" + "\n".join(failed[:10])
    assert [what for what in FAULTS if not seen[what]] == []


@pytest.mark.parametrize("seed", range(0, 100, 7))
def test_a_seed_is_the_same_schedule_every_time(seed: int) -> None:
    traces = []
    for _ in range(2):
        world = World(seed, frames=True)
        world.run()
        traces.append(list(world.lines()))
    assert traces[0] == traces[1]
