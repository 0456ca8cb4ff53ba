"""What one core can do at most, and how much of it streamlstm reaches.

python bench/compare.py limits [--quick] [--million]

One stream is bound by reading the weights, a large batch by multiply-adds: both limits are
measured here, in turns with the kernel alone (a loop in C) and with the calls from Python.
Then whole sequences, threads, allocations; with --million also a million live sessions.
Needs a C compiler, and the source folder for the kernels' header.

On a shared machine: taskset -c 1 python bench/compare.py limits, which leaves the threads out.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import machine
import streamlstm as sl
from peers import memory
from peers.cells import BATCHED, ONE_STREAM, Cell
from peers.native import KernelLoop, load_loops
from peers.peer_streamlstm import StreamLSTM
from peers.table import markdown, three_digits
from peers.timing import QUICK, Contestant, Plan, interleave
from streamlstm.kernels.pack import aligned

# A step of RTNeural's Eigen backend: a loop inside C++ with sizes fixed at compile time.
# Not measured here: us on an AMD EPYC of family 25, model 17 (Zen 4), two cores of a VM.
RTNEURAL_US = {
    "8,16,1": 0.08,
    "16,32,1": 0.19,
    "16,64,1": 0.83,
    "32,128,1": 3.24,
    "64,256,1": 14.5,
    "128,512,1": 56,
    "256,1024,1": 401,
    "32,128,2": 8.6,
    "40,256,3": 59,
}
KERNEL_TARGET, SMALL_KERNEL_TARGET, SMALL_UNITS = 1.05, 1.3, 64
CALL_TARGET_US = 0.12
RUN_TARGETS = {Cell(8, 16): 2.5, Cell(32, 128): 1.15}
RUN_STEPS = 1024
THREADS_TARGET = 1.7
IDLE_S = 0.5
LARGE_BATCH = 32  # from here on multiply-adds are the limit


def one_stream(loops: ctypes.CDLL, plan: Plan) -> str:
    """The step of one stream beside one reading of its weights."""
    lines = []
    for cell in ONE_STREAM:
        ours, kernel = StreamLSTM(cell), KernelLoop(loops, cell)
        events = [ours.event(x) for x in cell.events]
        kernel.loop(events)
        if not np.array_equal(ours.loop(events), kernel.y[0]):
            raise SystemExit(f"the kernel's loop and step_into differ at {cell.size}")
        weights = aligned((cell.macs,))
        weights[:] = 1
        read_weights = partial(loops.read_floats, weights.ctypes.data, weights.size)
        read, alone, call = trio = (
            Contestant(lambda events, read=read_weights: read(len(events))),
            Contestant(kernel.loop),
            Contestant(ours.loop, events * 4),
        )
        interleave(trio, plan)
        floor = max(read.best_us, RTNEURAL_US[cell.size])
        target = SMALL_KERNEL_TARGET if cell.units < SMALL_UNITS else KERNEL_TARGET
        times = (read.best_us, RTNEURAL_US[cell.size], alone.best_us, call.best_us)
        rate, limit = (weights.nbytes / c.best_us / 1e3 for c in (call, read))
        lines.append(
            [
                cell.size,
                f"{weights.nbytes / 1024:,.0f}",
                *(three_digits(us) for us in times),
                f"{alone.best_us / floor:.2f}",
                str(target),
                f"{call.best_us - alone.best_us:.2f}",
                f"{rate:.0f} of {limit:.0f}",
                f"{rate / limit:.0%}",
            ]
        )
    head = ["us per step; I,H,L", "weights, KiB", "packed read", "RTNeural", "kernel alone"]
    head += ["step_into", "kernel / larger of both", "at most", "step_into - kernel"]
    head += ["GB/s of weights", "share"]
    return (
        "## One stream\n\n"
        + markdown(head, lines)
        + (
            f"\n\nstep_into - kernel is the call from Python: at most {CALL_TARGET_US} us, where "
            "noise is less than that. RTNeural was not measured in this run."
        )
    )


def large_batch(loops: ctypes.CDLL, plan: Plan) -> str:
    """Multiply-adds of a batch beside those on registers alone (activations not counted)."""
    lines = []
    for cell in (c for c in BATCHED if c.batch >= LARGE_BATCH):
        ours = StreamLSTM(cell)
        trio = (
            Contestant(lambda events: loops.multiply_add(len(events))),
            Contestant(KernelLoop(loops, cell).loop),
            Contestant(ours.loop, [ours.event(x) for x in cell.events]),
        )
        interleave(trio, plan)
        work = loops.multiply_adds(), cell.macs * cell.batch, cell.macs * cell.batch
        gflops = [2 * macs / c.best_us / 1e3 for macs, c in zip(work, trio, strict=True)]
        figures = (f"{g:.1f}" for g in gflops)
        lines.append([f"{cell.size} x {cell.batch}", *figures, f"{gflops[2] / gflops[0]:.0%}"])
    head = ["GFLOP/s; I,H,L x batch", "multiply-add peak", "kernel alone", "step_into", "share"]
    return "## Large batches\n\n" + markdown(head, lines)


def sequences(loops: ctypes.CDLL, plan: Plan) -> str:
    """run() beside step_into(): only the input half of the gates can be blocked over time."""
    lines = []
    for cell, target in RUN_TARGETS.items():
        ours = StreamLSTM(cell)
        run = sl.Engine(cell.model).open("whole").run
        X = np.tile(cell.events[:, 0], (RUN_STEPS // len(cell.events), 1))
        recurrent = KernelLoop(loops, cell, steps=len(cell.events), without_inputs=True)
        trio = (
            Contestant(ours.loop, [ours.event(x) for x in cell.events] * 4),
            Contestant(lambda events, run=run, X=X: [run(X) for _ in events]),
            Contestant(recurrent.loop),
        )
        interleave(trio, plan)
        steps = 1, RUN_STEPS, len(cell.events)
        call, whole, half = (c.best_us / n for c, n in zip(trio, steps, strict=True))
        times = (f"{us:.3f}" for us in (call, whole, half))
        lines.append([cell.size, *times, f"{call / whole:.2f}", str(target), f"{call / half:.2f}"])
    head = ["us per step; I,H,L", "step_into", f"run, {RUN_STEPS} steps"]
    head += ["kernel, recurrent half alone", "step_into / run", "at least", "bound"]
    return (
        "## Whole sequences\n\n"
        + markdown(head, lines)
        + (
            "\n\nThe bound is step_into over the kernel's own sequence with no inputs: what run() "
            "would reach if their half of the gates cost nothing."
        )
    )


def threads(plan: Plan) -> str:
    """One thread beside two, and what the second one costs when there is nothing to do."""
    if len(os.sched_getaffinity(0)) < 2:
        return "## Threads\n\nSkipped: this process may use one core only."
    cell = Cell(32, 128, 1, 512)
    pair = [Contestant(StreamLSTM(cell, threads=count).loop, list(cell.events)) for count in (1, 2)]
    interleave(pair, plan)
    one, two = (c.best_us for c in pair)
    before = time.process_time()
    time.sleep(IDLE_S)  # idling is what is measured
    idle = (time.process_time() - before) / IDLE_S
    line = [f"{cell.size} x {cell.batch}", f"{one:.0f}", f"{two:.0f}", f"{one / two:.2f}"]
    line += [str(THREADS_TARGET), f"{idle:.1%}"]
    head = ["us per call; I,H,L x batch", "1 thread", "2 threads", "ratio", "at least"]
    head += ["CPU used when idle"]
    return "## Threads\n\n" + markdown(head, [line])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short turns: a smoke test")
    parser.add_argument("--million", action="store_true", help="a million sessions: 1 GB")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    print(f"# Limits\n\n{machine.sentence(machine.facts())}.")
    with tempfile.TemporaryDirectory() as folder:
        loops = load_loops(Path(folder))
        print("\n" + one_stream(loops, plan), flush=True)
        print("\n" + large_batch(loops, plan), flush=True)
        print("\n" + sequences(loops, plan), flush=True)
        print("\n" + threads(plan), flush=True)
        print("\n" + memory.report(Path(folder), quick=args.quick), flush=True)
    if args.million:
        print("\n" + memory.million(plan), flush=True)
