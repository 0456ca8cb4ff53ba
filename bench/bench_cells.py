"""What the options of a cell cost: GFLOP/s of each against the plain LSTM, in one run.

python bench/bench_cells.py [--units H] [--inputs I] [--batch N] [--json PATH]

A batch of N sessions (default 32) takes one event each by step_into, at (I, H) = (32, 128). Two
floating-point operations a multiply-add of the matrices; the rest is what is paid for. The
fused ones are to reach 70 % of the plain cell; a cell with layer norm is not fused.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

import machine
import streamlstm as sl
from peers.timing import Contestant, Plan, interleave


def cells(inputs: int, units: int) -> dict[str, sl.LSTM | sl.GRU]:
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return rng.uniform(-(units**-0.5), units**-0.5, shape).astype(np.float32)

    def lstm(gates: int = 4, outputs: int = units, **options: Any) -> sl.LSTM:
        rows = gates * units
        return sl.LSTM(weights(rows, inputs), weights(rows, outputs), weights(rows), **options)

    def gru(*, reset_after: bool) -> sl.GRU:
        rows = 3 * units
        tensors = weights(rows, inputs), weights(rows, units), weights(rows)
        return sl.GRU(*tensors, reset_after=reset_after)

    return {
        "plain": lstm(),
        "peepholes": lstm(peep=weights(3 * units)),
        "projection to half": lstm(outputs=units // 2, w_p=weights(units // 2, units)),
        "coupled, i = 1 - f": lstm(3, coupled="i"),
        "coupled, f = 1 - i": lstm(3, coupled="f"),
        "clipped gates and c": lstm(clip_gates=3.0, clip_cell=5.0),
        "GRU, reset after": gru(reset_after=True),
        "GRU, reset before": gru(reset_after=False),
        "hard sigmoid": lstm(gate_function="hard_sigmoid"),
        "layer norm": lstm(norm=1 + weights(4 * units)),
    }


def contestant(engine: sl.Engine, batch: int) -> Contestant:
    group = engine.group([engine.open(f"s{k}") for k in range(batch)])
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, engine.model.input_size)).astype(np.float32)
    y = np.empty((batch, engine.model.output_size), np.float32)

    def loop(events: Any) -> None:
        for _ in events:
            group.step_into(x, y)

    return Contestant(loop)


def measure(inputs: int, units: int, batch: int, plan: Plan) -> dict[str, dict[str, float]]:
    """us a step of the batch, GFLOP/s and their share of the plain cell's, of each cell."""
    engines = {name: sl.Engine(sl.Model([cell])) for name, cell in cells(inputs, units).items()}
    contestants = {name: contestant(engine, batch) for name, engine in engines.items()}
    interleave(contestants.values(), plan)
    results = {}
    for name, engine in engines.items():
        us = contestants[name].best_us
        results[name] = {"us": us, "gflops": 2e-3 * engine.network.macs * batch / us}
    for result in results.values():
        result["share"] = result["gflops"] / results["plain"]["gflops"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--inputs", type=int, default=32)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    results = measure(args.inputs, args.units, args.batch, Plan())
    print(machine.sentence(machine.facts()))
    print(f"{'cell':24} {'us a step':>10} {'GFLOP/s':>8} {'of plain':>9}")
    for name, r in results.items():
        print(f"{name:24} {r['us']:10.2f} {r['gflops']:8.1f} {r['share']:9.2f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine.facts(), "cells": results}, file, indent=2)


if __name__ == "__main__":
    main()
