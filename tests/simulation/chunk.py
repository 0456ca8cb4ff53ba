"""A part of the schedules, for a process of its own."""

from __future__ import annotations

from collections import Counter

from simulation import schedule
from simulation.world import World

CHUNK = 250
REPLAY = "cd tests && python -m simulation --seed {}"


def run_chunk(first: int) -> tuple[Counter[str], list[str]]:
    """What a chunk of seeds met, and the seeds that failed."""
    seen: Counter[str] = Counter()
    failed = []
    for seed in range(first, first + CHUNK):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            failed.append(f"{REPLAY.format(seed)}\n    {type(error).__name__}: {error}")
        assert len(world.plan.events) >= schedule.EVENTS_MIN
        assert world.plan.faults
        seen += world.seen
    return seen, failed
