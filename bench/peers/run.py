"""One LSTM step of streamlstm beside other runtimes: same weights, one thread, one run.

python bench/compare.py run [--quick] [--cells I,H,L ...] [--batch B ...] [--out results.json]

Every peer is first checked against streamlstm.reference in float64, and refused when wrong.
Then each gets a short turn in every repetition; a figure is the median of a peer's quietest
repetition (p50: over all). The state is carried on by each runtime's cheapest way. Peers that
are not installed (pip install streamlstm[bench]) are skipped, and the output says so.

On a shared machine: taskset -c 1 python bench/compare.py run
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import machine
from peers import table
from peers.cells import BATCHED, ONE_STREAM, Cell
from peers.peer import TOLERANCE, Peer, error
from peers.timing import QUICK, Contestant, Plan, interleave

MODULES = ("streamlstm", "litert", "onnxruntime", "torch", "numpy")


def installed_peers() -> tuple[list[type[Peer]], dict[str, str]]:
    """Peers in order, and why the missing ones are missing."""
    peers: list[type[Peer]] = []
    skipped = {}
    for name in MODULES:
        try:
            peers += importlib.import_module(f"peers.peer_{name}").PEERS
        except ModuleNotFoundError as e:
            if name == "streamlstm":
                raise
            skipped[name] = str(e)
    return peers, skipped


def chosen_cells(sizes: list[str] | None, batches: list[int] | None) -> list[Cell]:
    """The whole grid; or these sizes, each with these batches (by default one stream)."""
    if sizes:
        parsed = [Cell.parse(size) for size in sizes]
        return [Cell(c.inputs, c.units, c.layers, b) for b in batches or [1] for c in parsed]
    return [c for c in ONE_STREAM + BATCHED if not batches or c.batch in batches]


def measure(cell: Cell, peers: list[type[Peer]], plan: Plan) -> dict[str, Any]:
    """{peer's name: its times and error, or why it was refused}."""
    results: dict[str, Any] = {}
    contestants = {}
    for make in peers:
        found = error(make(cell), cell)
        if not found <= TOLERANCE:  # NaN too
            results[make.name] = {"refused": f"off by {found:.1e} from float64"}
            continue
        results[make.name] = {"error": found}
        peer = make(cell)
        events = [peer.event(x) for x in cell.events] * 4
        contestants[make.name] = Contestant(peer.loop, events, peer.context)
    interleave(contestants.values(), plan)
    for name, contestant in contestants.items():
        results[name] |= {"best_us": contestant.best_us, "p50_us": contestant.p50_us}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short turns: a smoke test")
    parser.add_argument("--cells", nargs="+", metavar="I,H,L", help="sizes instead of the grid's")
    parser.add_argument("--batch", nargs="+", type=int, help="streams stepped together")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    peers, skipped = installed_peers()
    for name, why in skipped.items():
        print(f"skipped {name}: {why}", file=sys.stderr)
    plan = QUICK if args.quick else Plan()
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.facts(),
        "plan": vars(plan),
        "skipped": skipped,
        "cells": [],
    }
    for cell in chosen_cells(args.cells, args.batch):
        print(f"{cell.size} batch {cell.batch}", file=sys.stderr)
        row = {"size": cell.size, "batch": cell.batch, "peers": measure(cell, peers, plan)}
        results["cells"].append(row)
        if args.out:  # after each cell: a long run may be stopped
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table.report(results))
