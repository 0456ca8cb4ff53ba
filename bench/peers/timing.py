"""Interleaved timing: in every repetition each contestant gets one short turn.

A shared machine changes its speed for seconds at a time. Short turns in rotation meet the
same changes, and the median of a contestant's quietest repetition is what it can do.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

CHUNK_S = 100e-6  # timed as one, so that the clock's own cost doesn't count
WARM_SHARE = 0.2
CHUNKS_MIN = 3


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    repetitions: int = 12
    turn_s: float = 0.04


QUICK = Plan(repetitions=3, turn_s=0.005)


@dataclass
class Contestant:
    """loop(events) does one unit of work for each of `events`."""

    loop: Callable[[Sequence[Any]], Any]
    events: Sequence[Any] = range(1 << 16)
    context: Callable[[], Any] = contextlib.nullcontext
    turns: list[list[float]] = field(default_factory=list)  # seconds a unit, of each chunk

    def seconds(self, count: int) -> float:
        events = self.events[:count]
        start = perf_counter()
        self.loop(events)
        return perf_counter() - start

    def least_seconds(self, count: int) -> float:
        return min(self.seconds(count) for _ in range(2))

    def turn(self, turn_s: float) -> None:
        count = 1
        # Of two, because the first may meet a cold cache.
        while count < len(self.events) and self.least_seconds(count) < CHUNK_S:
            count = min(2 * count, len(self.events))
        warm = perf_counter() + WARM_SHARE * turn_s
        while perf_counter() < warm:
            self.seconds(count)
        chunks: list[float] = []
        end = perf_counter() + turn_s
        while perf_counter() < end or len(chunks) < CHUNKS_MIN:
            chunks.append(self.seconds(count) / count)
        self.turns.append(chunks)

    @property
    def best_us(self) -> float:
        """The median of the quietest repetition."""
        return min(float(np.median(turn)) for turn in self.turns) * 1e6

    @property
    def p50_us(self) -> float:
        """The median over all repetitions."""
        return float(np.median(np.concatenate(self.turns))) * 1e6


def interleave(contestants: Iterable[Contestant], plan: Plan) -> None:
    """Give each its turns, beginning with another one each time; the results are in them."""
    order = list(contestants)
    gc.collect()
    gc.disable()
    try:
        for k in range(plan.repetitions):
            first = k % max(len(order), 1)
            for contestant in order[first:] + order[:first]:
                with contestant.context():
                    contestant.turn(plan.turn_s)
    finally:
        gc.enable()
