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

import streamlstm as sl
from networks import events, stacked

COST = """
import gc, json, sys
import streamlstm as sl

def resident():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

engine = sl.Engine(sl.load(sys.argv[1]))
sessions = [engine.open("warm")]
names = [f"sensor-{k:06d}" for k in range(100_000)]
figures = {}
for at in ("first", "second"):
    before = resident()
    sessions = [None] * len(names)
    for k, name in enumerate(names):
        sessions[k] = engine.open(name)
    opened = resident()
    for session in sessions:
        session.close()
    del sessions, session
    figures[at] = {"opened": opened - before, "kept": resident() - before}
figures["state_bytes"] = engine.state_bytes
print(json.dumps(figures))
"""


def test_resident_memory_of_100000_sessions(tmp_path, record_property):
    """(16, 64, 1): at most 1.1 times h and c, and 300 B; and it comes back."""
    stacked(inputs=16, units=64).save(tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", COST, "model.safetensors"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    figures = json.loads(done.stdout)
    for at in ("first", "second"):
        record_property(f"{at}: bytes a session", figures[at]["opened"] / 100_000)
        record_property(f"{at}: bytes kept after", figures[at]["kept"])
    raw = 2 * 64 * 4
    assert figures["first"]["opened"] / 100_000 <= 1.1 * raw + 300
    assert figures["first"]["kept"] <= 0.2 * figures["first"]["opened"]
    assert figures["second"]["kept"] <= 0.05 * figures["first"]["opened"]
    assert figures["state_bytes"] <= 1 << 20


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
