"""Allocations of a step, memory over many steps, and a million live sessions.

A part of limits.py's report. Run by itself, it counts: python memory.py STEPS prints how many
allocations so many calls of step_into made; malloc_count.c must be preloaded.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import numpy as np

import streamlstm as sl
from peers.cells import Array, Cell
from peers.native import compiled
from peers.peer_streamlstm import StreamLSTM
from peers.table import markdown
from peers.timing import Contestant, Plan, interleave

COUNTED_STEPS = 1_000_000
FLAT_STEPS = 10_000_000
TRACED_STEPS = 100_000

FEW, MANY = 1_000, 1_000_000
BATCH, GROUPS = 512, 256
COLD_TARGET = 2.0
STATE_TARGET, REST_TARGET = 1.1, 300  # RSS of a session: times its h and c, plus bytes


class HeapInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = HeapInfo


def heap_bytes() -> int:
    """Bytes that malloc has given out and not got back."""
    info = LIBC.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# ---- no allocation ---------------------------------------------------------------------


def stepper() -> Callable[[int], Any]:
    """step(n): n calls of step_into, in a loop that allocates nothing."""
    cell = Cell(8, 16)
    ours = StreamLSTM(cell)
    x = ours.event(cell.events[0])
    return lambda n: ours.loop(repeat(x, n))


def counted(folder: Path, steps: int) -> int:
    """Calls of malloc, calloc and realloc, Python's objects included, in so many steps."""
    library = compiled("malloc_count.c", folder)
    env = os.environ | {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]])
    child = [sys.executable, "-m", "peers.memory", str(steps)]
    return int(subprocess.run(child, env=env, check=True, capture_output=True).stdout)


def count_here(steps: int) -> int:
    """What counted() asks a child for: this process has malloc_count.c preloaded."""
    step, allocations = stepper(), ctypes.CDLL(None).allocations
    allocations.restype = ctypes.c_long

    def made(n: int) -> int:
        before: int = allocations()
        step(n)
        return int(allocations()) - before

    made(1000)
    return made(steps) - made(0)  # less what counting itself costs


def traced(steps: int) -> int:
    """Most bytes held at any moment of so many steps, above those before, by tracemalloc."""
    step = stepper()

    def peak(n: int) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step(n)
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        peak(1000)
        return peak(steps) - peak(0)
    finally:
        tracemalloc.stop()


def grown(steps: int) -> tuple[int, int]:
    """Growth of RSS and of the heap over so many steps, bytes."""
    step = stepper()

    def growth(n: int) -> tuple[int, int]:
        rss, heap = rss_bytes(), heap_bytes()
        step(n)
        return rss_bytes() - rss, heap_bytes() - heap

    growth(1000)
    idle_rss, idle_heap = growth(0)  # what measuring itself costs
    rss, heap = growth(steps)
    return rss - idle_rss, heap - idle_heap


def report(folder: Path, *, quick: bool) -> str:
    """Allocations and memory of step_into, as Markdown."""
    fewer = 100 if quick else 1
    rss, heap = grown(FLAT_STEPS // fewer)
    found: list[tuple[str, int, str]] = [
        ("allocations counted", COUNTED_STEPS, f"{counted(folder, COUNTED_STEPS // fewer):,}"),
        ("peak by tracemalloc", TRACED_STEPS, f"{traced(TRACED_STEPS // fewer):,} bytes"),
        ("growth of the heap (mallinfo2)", FLAT_STEPS, f"{heap:,} bytes"),
        ("growth of RSS", FLAT_STEPS, f"{rss:,} bytes"),
    ]
    lines = [[what, f"{steps // fewer:,}", number] for what, steps, number in found]
    return "## Memory of step_into\n\n" + markdown(["8,16,1", "steps", "found"], lines)


# ---- a million sessions ----------------------------------------------------------------


class Population:
    """`count` live sessions, and random groups of them."""

    def __init__(self, cell: Cell, count: int) -> None:
        before = rss_bytes()
        self.engine = sl.Engine(cell.model, max_sessions=count)
        for k in range(count):
            self.engine.open(f"stream-{k}")
        self.bytes = (rss_bytes() - before) / count
        self.rows, self.epochs = (
            np.fromiter((getattr(s, name) for s in self.engine), np.uint32, count)
            for name in ("row", "epoch")
        )
        rng = np.random.default_rng(count)
        picks = [rng.choice(count, BATCH, replace=False) for _ in range(GROUPS)]
        self.groups = cycle([self.group(pick) for pick in picks])
        self.picks = cycle(picks)
        self.X = rng.standard_normal((BATCH, cell.inputs)).astype(np.float32)
        self.out = np.empty((BATCH, cell.units), np.float32)

    def group(self, pick: Array) -> sl.Group:
        return self.engine.group_by_row(self.rows[pick], self.epochs[pick])

    def step(self, events: Iterable[Any]) -> None:
        """Each time the next group, made beforehand."""
        for _ in events:
            next(self.groups).step_into(self.X, self.out)

    def group_and_step(self, events: Iterable[Any]) -> None:
        """The same with the group made from rows on the spot."""
        for _ in events:
            self.group(next(self.picks)).step_into(self.X, self.out)


def million(plan: Plan) -> str:
    """Time per event and memory per session of a million sessions beside a thousand."""
    cell = Cell(16, 64)
    many, few = Population(cell, MANY), Population(cell, FEW)
    ways = {"step": "step_into", "group_and_step": "group_by_row and step_into"}
    pairs = [[Contestant(getattr(of, way)) for of in (few, many)] for way in ways]
    interleave(chain(*pairs), plan)
    lines = []
    for what, pair in zip(ways.values(), pairs, strict=True):
        small, large = (contestant.best_us / BATCH for contestant in pair)
        times = (f"{small:.3f}", f"{large:.3f}", f"{large / small:.2f}")
        lines.append([what, *times, str(COLD_TARGET)])
    raw = 4 * cell.model.state_size
    head = [f"us per event; {cell.size}, random groups of {BATCH}"]
    head += [f"{FEW:,} sessions", f"{MANY:,} sessions", "ratio", "at most"]
    return (
        "## A million sessions\n\n"
        + markdown(head, lines)
        + (
            f"\n\nRSS of a session: {many.bytes:.0f} bytes, of which h and c are {raw} "
            f"(target: at most {STATE_TARGET * raw + REST_TARGET:.0f})."
        )
    )


if __name__ == "__main__":
    print(count_here(int(sys.argv[1])))
