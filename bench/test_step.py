"""Steps of one stream, of many, and whole sequences; float32, weights at PyTorch's scale.

Times in the table are of one round; extra_info["event_us"] in the JSON is the time of one
event of one stream, in us: the least of all rounds over the events in a round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import streamlstm as sl
from networks import events, stacked

EVENTS = 64  # different ones in a round, so that no input is in a register or a branch's memory


def measure(benchmark: Any, events_in_round: int, call: Callable[..., object], *args: Any) -> None:
    benchmark(call, *args)
    if benchmark.stats:  # not with --benchmark-disable
        benchmark.extra_info["event_us"] = 1e6 * benchmark.stats.stats.min / events_in_round


def step_all(step_into: Callable[..., None], x: np.ndarray, out: np.ndarray) -> None:
    for event in x:
        step_into(event, out)


def test_step(benchmark, size):
    """Session.step_into, one event after the other."""
    model = stacked(*size)
    with sl.Engine(model) as engine:
        x, out = events(model, EVENTS), np.empty(model.output_size, model.dtype)
        measure(benchmark, EVENTS, step_all, engine.open("a").step_into, x, out)


def test_step_fresh_array(benchmark):
    """Session.step at (16, 64, 1): what checking, allocating and returning cost more."""
    model = stacked(16, 64)
    with sl.Engine(model) as engine:
        step = engine.open("a").step
        measure(benchmark, EVENTS, lambda x: [step(event) for event in x], events(model, EVENTS))


@pytest.mark.parametrize("streams", [8, 32, 128, 512])
def test_batch(benchmark, size, streams):
    """Group.step_into: one event each of many streams."""
    model = stacked(*size)
    rounds = 4
    with sl.Engine(model) as engine:
        group = engine.group([engine.open(f"s{k}") for k in range(streams)])
        x = events(model, rounds, streams)
        out = np.empty((streams, model.output_size), model.dtype)
        measure(benchmark, rounds * streams, step_all, group.step_into, x, out)


def test_sequence(benchmark, size):
    """Session.run over 256 events."""
    model = stacked(*size)
    with sl.Engine(model) as engine:
        measure(benchmark, 256, engine.open("a").run, events(model, 256))


def test_group_sequence(benchmark):
    """Group.run at (16, 64, 1): 64 streams warmed up over 256 events."""
    model = stacked(16, 64)
    with sl.Engine(model) as engine:
        group = engine.group([engine.open(f"s{k}") for k in range(64)])
        measure(benchmark, 64 * 256, group.run, events(model, 64, 256))
