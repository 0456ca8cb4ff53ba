"""What a head costs: forecast and score of a batch against its bare network's step, in one run.

python bench/bench_head.py [--units H] [--batch N] [--ahead N]

A batch of N sessions (default 512). "step" is one reading each: its place in time, the network,
quantiles of the next step and the score; it is to make at least 0.30 of the bare network's steps a
second. "forecast" is --ahead steps of forked states (horizon 1: all but the first are steps of the
network), and is to make at least 0.8 / (steps + 1) as many.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import machine
import streamlstm as sl
from peers.timing import Contestant, Plan, interleave


def model(units: int, horizon: int, *, with_head: bool) -> sl.Model:
    head = sl.Head(
        sl.Feature("flow", "l/s", 100.0, 5.0),
        time="time",
        step_s=3600.0,
        calendar=("day",),
        horizon=horizon,
    )
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return rng.uniform(-(units**-0.5), units**-0.5, shape).astype(np.float32)

    rows = 4 * units
    layers = [
        sl.LSTM(weights(rows, head.network_inputs), weights(rows, units), weights(rows)),
        sl.Dense(weights(head.network_outputs, units), weights(head.network_outputs)),
    ]
    return sl.Model(layers, head=head if with_head else None)


def group_of(network: sl.Model, batch: int) -> Any:
    engine = sl.Engine(network, max_sessions=batch)
    return engine.group([engine.open(f"s{k}") for k in range(batch)])


def bare(network: sl.Model, batch: int) -> Contestant:
    group = group_of(network, batch)
    x = np.random.default_rng(1).standard_normal((batch, network.input_size)).astype(np.float32)
    y = np.empty((batch, network.output_size), np.float32)

    def loop(events: Any) -> None:
        for _ in events:
            group.step_into(x, y)

    return Contestant(loop)


def headed(network: sl.Model, batch: int) -> tuple[Contestant, Any]:
    group = group_of(network, batch)
    rng = np.random.default_rng(2)
    values = 100 + 5 * rng.standard_normal((1000, batch))
    x = np.zeros((batch, 2))
    y = np.empty((batch, network.output_size))
    x[:, 0] = 1e9
    k = 0

    def loop(events: Any) -> None:
        nonlocal k
        for _ in events:
            k += 1
            x[:, 0] += 3600.0
            x[:, 1] = values[k % len(values)]
            group.step_into(x, y)

    return Contestant(loop), group


def forecasts(group: Any, ahead: int) -> Contestant:
    def loop(events: Any) -> None:
        for _ in events:
            group.forecast(ahead)

    return Contestant(loop)


def measure(units: int, horizon: int, batch: int, ahead: int, plan: Plan) -> dict[str, float]:
    """us of the batch: the bare step, the step, the forecast."""
    step, group = headed(model(units, horizon, with_head=True), batch)
    step.loop(range(10))
    contestants = {
        "bare": bare(model(units, horizon, with_head=False), batch),
        "step": step,
        "forecast": forecasts(group, ahead),
    }
    interleave(contestants.values(), plan)
    return {name: contestant.best_us for name, contestant in contestants.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--units", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--ahead", type=int, default=24)
    args = parser.parse_args()
    print(machine.sentence(machine.facts()))
    print(f"us for {args.batch} sessions; forecast: {args.ahead} steps ahead, of forked states")
    title = f"{'units':>6} {'bare':>9} {'step':>9} {'of bare':>8} {'forecast':>9} {'of bare':>8}"
    print(f"{title}   asked: 0.30 and {0.8 / (args.ahead + 1):.3f}")
    for units in args.units:
        us = measure(units, 1, args.batch, args.ahead, Plan())
        step, ahead = us["bare"] / us["step"], us["bare"] / us["forecast"]
        print(
            f"{units:6} {us['bare']:9.1f} {us['step']:9.1f} {step:8.2f} "
            f"{us['forecast']:9.1f} {ahead:8.3f}"
        )


if __name__ == "__main__":
    main()
