"""The results of run.py as one picture: time of a step, and throughput by batch.

python bench/compare.py plot results.json peers.svg
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

import machine
from peers.table import OURS, Row, names
from streamlstm import plot

OUR_COLOR = "#d64545"
COLORS = ("#186faf", "#47a3f3", "#207227", "#57ae5b", "#8a5a00", "#cb9420", "#7b8794")
MARKERS = "sDv^<>X"


def style_of(peers: list[str]) -> dict[str, dict[str, Any]]:
    """Each peer's line: ours stands out, the two ways of one runtime share a hue."""
    ours = {"color": OUR_COLOR, "marker": "o", "markersize": 6, "linewidth": 2.6, "zorder": 3}
    others = [name for name in peers if name != OURS]
    return {OURS: ours} | {
        name: {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.1, "zorder": 2}
        for name, color, marker in zip(others, COLORS, MARKERS, strict=False)
    }


def times(rows: list[Row], name: str) -> NDArray[np.float64]:
    """us of a peer in each row; NaN, which is not drawn, where it has none."""
    return np.array([row["peers"].get(name, {}).get("best_us", np.nan) for row in rows])


def one_stream(ax: Axes, rows: list[Row], looks: dict[str, dict[str, Any]]) -> None:
    """us per step on a log scale; stacked networks stand apart, their points unjoined."""
    single = [row for row in rows if row["size"].endswith(",1")]
    stacked = [row for row in rows if row not in single]
    line = range(len(single))
    apart = [len(single) + 0.4 + k for k in range(len(stacked))]
    for name, look in looks.items():
        ax.plot(line, times(single, name), **look, label=name)
        ax.plot(apart, times(stacked, name), **look | {"linestyle": ""})
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda us, _: f"{us:,g}"))
    ax.set_xticks([*line, *apart], [row["size"] for row in single + stacked], size="small")
    ax.set_xlabel("inputs, units, layers")
    ax.set_ylabel("us per step")
    ax.set_title("One stream: time of a step (lower is better)")


def batched(ax: Axes, rows: list[Row], looks: dict[str, dict[str, Any]]) -> None:
    """Thousand stream-steps/s of one size by batch."""
    batches = np.array([row["batch"] for row in rows])
    for name, look in looks.items():
        ax.plot(batches.astype(str), batches * 1e3 / times(rows, name), **look)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:,g}"))
    ax.set_xlabel("batch")
    ax.set_title(rows[0]["size"])


def draw(results: dict[str, Any]) -> Figure:
    single = [row for row in results["cells"] if row["batch"] == 1]
    many = [row for row in results["cells"] if row["batch"] > 1]
    if not single or not many:
        raise SystemExit("the picture shows one stream and batches; run both")
    sizes = list(dict.fromkeys(row["size"] for row in many))
    looks = style_of(names(results["cells"]))
    figure = plt.figure(figsize=(9.5, 8.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    one_stream(above.subplots(), single, looks)
    above.legend(loc="outside right center")
    for ax, size in zip(below.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        batched(ax, [row for row in many if row["size"] == size], looks)
    below.axes[0].set_ylabel("thousand stream-steps/s")
    title = "Many streams in one call: throughput (higher is better)"
    below.suptitle(title, x=0.01, ha="left", weight="bold", size="large")
    note = textwrap.fill(machine.sentence(results["machine"]), 150)
    below.supxlabel(note, size=7, x=0.01, ha="left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path, help="its ending says the format: .svg, .png")
    args = parser.parse_args()
    mpl.use("agg")
    with mpl.rc_context(plot.STYLE):
        plot.save(draw(json.loads(args.results.read_text())), args.picture)
