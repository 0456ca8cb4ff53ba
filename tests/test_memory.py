"""Memory: what a session costs, that it comes back, and the calls that allocate nothing.

Resident memory is measured in a process of its own, which holds nothing else.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import session_cost
import streamlstm as sl
from networks import events, stacked


def test_resident_memory_of_100000_sessions(tmp_path):
    """(16, 64, 1): at most 1.1 times h and c, and 300 B; and it comes back."""
    stacked(inputs=16, units=64).save(tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, session_cost.__file__, tmp_path / "model.safetensors"],
        check=True,
        capture_output=True,
        text=True,
    )
    figures = json.loads(done.stdout)
    first, second = figures["first"], figures["second"]
    raw = 2 * 64 * 4
    assert raw <= first["session_bytes"] <= 1.1 * raw + 300
    assert first["kept_bytes"] <= 0.2 * 100_000 * first["session_bytes"]
    assert second["kept_bytes"] <= 0.05 * 100_000 * first["session_bytes"]
    assert figures["state_bytes"] <= 1 << 20  # the last slab stays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_step_into_allocates_nothing(dtype):
    """Neither a session's nor a group's; as Python's allocator and NumPy's see it."""
    model = stacked(inputs=4, units=8, layers=2, outputs=2, dtype=dtype)
    x = events(model, 16)
    one, many = np.empty(2, dtype), np.empty((16, 2), dtype)
    with sl.Engine(model) as engine:
        sessions = [engine.open(f"s{k}") for k in range(16)]
        group = engine.group(sessions)
        event = x[0]
        for call, given, out in ((sessions[0].step_into, event, one), (group.step_into, x, many)):
            call(given, out)
            hundred = itertools.repeat(None, 100)
            tracemalloc.start()
            try:
                for _ in hundred:
                    call(given, out)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak == 0


def test_a_call_that_raises_keeps_nothing():
    model = stacked()
    bad = np.full((64, 3), np.nan, "f4")
    with sl.Engine(model) as engine:
        session = engine.open("a")
        group = engine.group([engine.open(f"s{k}") for k in range(64)])

        def refused() -> None:
            for call, x in ((session.step, bad[0]), (session.run, bad), (group.step, bad)):
                with pytest.raises(sl.errors.NonFiniteError):
                    call(x)

        refused()
        tracemalloc.start()
        try:
            refused()
            held = tracemalloc.get_traced_memory()[0]
            for _ in range(20):
                refused()
            assert tracemalloc.get_traced_memory()[0] - held < 4096
        finally:
            tracemalloc.stop()
