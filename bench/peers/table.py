"""The results of run.py as Markdown tables, with our ratio to the best peer and its target.

python bench/compare.py table results.json [--p50]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import machine

OURS = "streamlstm"

# Our time over the best peer's, at most.
TIME_TARGETS = {
    "8,16,1": 0.2,
    "16,32,1": 0.2,
    "16,64,1": 0.45,
    "32,128,1": 0.7,
    "64,256,1": 0.95,
    "128,512,1": 1.05,
    "256,1024,1": 1.05,
    "32,128,2": 0.8,
    "40,256,3": 1.0,
}
# Our throughput over the best peer's, at least; in the geometric mean of all cells too.
SPEED_TARGETS = {("16,64,1", 8): 1.7, ("32,128,1", 8): 1.3}
SPEED_TARGET = 0.95
SPEED_MEAN_TARGET = 1.15

Row = dict[str, Any]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def names(rows: list[Row]) -> list[str]:
    """All peers that have a figure or were refused, in the order of the run."""
    return list(dict.fromkeys(name for row in rows for name in row["peers"]))


def best_peer(row: Row, stat: str) -> float:
    """The least time of any peer but us; NaN when there is none."""
    others = [p[stat] for name, p in row["peers"].items() if name != OURS and stat in p]
    return float(min(others, default=float("nan")))


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def figures(row: Row, peers: list[str], stat: str, of_time: Callable[[float], float]) -> list[str]:
    """One row's figure for each peer."""
    cells = []
    for name in peers:
        got = row["peers"].get(name, {})
        figure = three_digits(of_time(got[stat])) if stat in got else "wrong" if got else "-"
        cells.append(f"**{figure}**" if name == OURS else figure)
    return cells


def speedup(row: Row, stat: str) -> float:
    """The best peer's time over ours; NaN when one of them is missing."""
    return best_peer(row, stat) / float(row["peers"][OURS].get(stat, "nan"))


def one_stream(rows: list[Row], stat: str) -> str:
    peers, lines = names(rows), []
    for row in rows:
        ratio, target = f"{1 / speedup(row, stat):.2f}", str(TIME_TARGETS.get(row["size"], "-"))
        lines.append([row["size"], *figures(row, peers, stat, lambda us: us), ratio, target])
    head = ["us per step; I,H,L", *peers, "ours / best peer", "at most"]
    return markdown(head, lines)


def batched(rows: list[Row], stat: str) -> str:
    peers, lines = names(rows), []
    for row in rows:
        size, batch = row["size"], row["batch"]
        speeds = figures(row, peers, stat, lambda us, batch=batch: batch * 1e3 / us)
        target = SPEED_TARGETS.get((size, batch), SPEED_TARGET)
        cell = f"{size} x {batch}"
        lines.append([cell, *speeds, f"{speedup(row, stat):.2f}", str(target)])
    mean = np.exp(np.mean([np.log(speedup(row, stat)) for row in rows]))
    blanks = [""] * len(peers)
    lines.append(["geometric mean", *blanks, f"{mean:.2f}", str(SPEED_MEAN_TARGET)])
    head = ["thousand stream-steps/s; I,H,L x batch", *peers, "ours / best peer", "at least"]
    return markdown(head, lines)


def report(results: dict[str, Any], stat: str = "best_us") -> str:
    single = [row for row in results["cells"] if row["batch"] == 1]
    many = [row for row in results["cells"] if row["batch"] > 1]
    parts = []
    if single:
        parts.append(one_stream(single, stat))
    if many:
        parts.append(batched(many, stat))
    parts += [f"Skipped: {name} ({why})." for name, why in results["skipped"].items()]
    what = "Median of each peer's quietest repetition" if stat == "best_us" else "Median over all"
    parts.append(f"{what}. {machine.sentence(results['machine'])}. {results['date']}.")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--p50", action="store_true", help="medians over all repetitions")
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    print(report(results, "p50_us" if args.p50 else "best_us"))
