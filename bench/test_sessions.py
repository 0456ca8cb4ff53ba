"""What sessions cost: to open and close, to save and restore, and in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import session_cost
import streamlstm as sl
from networks import events, stacked

SESSIONS = 1000


def test_open_close(benchmark):
    """1,000 sessions opened, then closed, in an engine that holds 10,000 others."""
    names = [f"sensor-{k}" for k in range(SESSIONS)]
    with sl.Engine(stacked(16, 64)) as engine:
        others = [engine.open(f"other-{k}") for k in range(10_000)]

        def open_close() -> None:
            for session in [engine.open(name) for name in names]:
                session.close()

        benchmark(open_close)
        assert len(engine) == len(others)
    if benchmark.stats:
        benchmark.extra_info["session_us"] = 1e6 * benchmark.stats.stats.min / SESSIONS


def test_state_restore(benchmark):
    model = stacked(16, 64)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.run(events(model, 10))
        benchmark(lambda: session.restore(sl.State.from_bytes(session.state().to_bytes())))


def test_fork(benchmark):
    model = stacked(16, 64)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        session.run(events(model, 10))
        benchmark(lambda: session.fork("what-if").close())


def test_memory(benchmark, tmp_path):
    """Resident bytes a session at (16, 64, 1), in a process of its own."""
    stacked(16, 64).save(tmp_path / "model.safetensors")
    command = [sys.executable, Path(session_cost.__file__), tmp_path / "model.safetensors"]

    def cost() -> dict[str, dict[str, float]]:
        return json.loads(subprocess.check_output(command))

    figures = benchmark.pedantic(cost, rounds=1)
    benchmark.extra_info |= {"raw_bytes": 2 * 64 * 4, **figures["first"]}
