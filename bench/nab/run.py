"""Our detector over a NAB folder, as a strict stream: its scores, and what they are worth.

python bench/nab/run.py FOLDER OUT.npz [--seeds N] [--ablation] [--settings] [--processes N]

FOLDER: a NAB folder (data/, labels/, config/). OUT.npz: the scores of seed 0, an array [rows] for
every data file, its key the file; score.py reads it. Needs PyTorch (the [train] extra).

Of a file's rows only the probation rows are known beforehand: a network is trained on them. Then
each row is read once, in order (detector.py). One setting for all files.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from nab import ablation, corpus, detector, figures
from nab.ablation import Variant
from streamlstm.errors import StreamLSTMError


def spread_over(
    processes: int,
    of: Callable[[corpus.Series, int], Any],
    series: Sequence[corpus.Series],
    seeds: int,
) -> Iterator[dict[str, Any]]:
    """{file: of(file, seed)}, seed after seed. How far it is goes to stderr."""
    # Not forked: a forked child of a process with threads may hang.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        jobs = [(one, seed) for seed in range(seeds) for one in series]
        done = pool.map(of, *zip(*jobs, strict=True))
        for seed in range(seeds):
            found = {}
            for one, result in zip(series, islice(done, len(series)), strict=True):
                found[one.name] = result
                print(f"\rseed {seed}: {len(found)}/{len(series)} files", end="", file=sys.stderr)
            yield found
    print(file=sys.stderr)


def report(args: argparse.Namespace, series: Sequence[corpus.Series]) -> None:
    """Run the detector, write seed 0's scores, print all seeds' figures."""
    profiles = corpus.read_profiles(args.folder)
    start, rows = time.perf_counter(), {}
    for seed, found in enumerate(spread_over(args.processes, detector.detect, series, args.seeds)):
        scores = {name: result[0] for name, result in found.items()}
        if seed == 0:
            np.savez_compressed(args.out, **scores)
            counted = sum((Counter(result[1]) for result in found.values()), Counter())
        rows[f"seed {seed}"] = figures.figures(series, scores, profiles)
    took_s = time.perf_counter() - start
    if args.seeds > 1:
        rows |= figures.spread(list(rows.values()))
    print(figures.table(rows))
    steps = sum(len(one.values) for one in series)
    events = ", ".join(f"{n} {what}" for what, n in counted.items() if what != "unchanged")
    print(f"\n{len(series)} files, {steps:,} rows, each stepped; {events or 'all regular'}")
    print(f"{took_s / args.seeds:.0f} s a run of all files, {args.processes} processes")


def compare(
    args: argparse.Namespace, series: Sequence[corpus.Series], variants: Mapping[str, Variant]
) -> dict[str, dict[str, float]]:
    """Each variant's figures, the mean over seeds."""
    profiles = corpus.read_profiles(args.folder)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    detect = partial(ablation.detect, variants=variants)
    for found in spread_over(args.processes, detect, series, args.seeds):
        for variant, seeds in rows.items():
            scores = {name: result[variant] for name, result in found.items()}
            seeds.append(figures.figures(series, scores, profiles))
    return {name: figures.spread(seeds)["mean"] for name, seeds in rows.items()}


def chosen(settings: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The settings that are best for each half, the middle of all, and the product's."""
    best = {half: max(settings, key=lambda name: settings[name][half]) for half in figures.HALVES}
    columns = next(iter(settings.values()))
    middle = {c: float(np.median([row[c] for row in settings.values()])) for c in columns}
    rows = {f"best of {half}: {name}": settings[name] for half, name in best.items()}
    in_use = ablation.IN_USE
    return rows | {f"median of {len(settings)}": middle, f"in use: {in_use}": settings[in_use]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a NAB folder")
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of all files (default 1)")
    parser.add_argument("--ablation", action="store_true", help="also print what each part adds")
    parser.add_argument(
        "--settings", action="store_true", help="also choose them on half of the files"
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("--seeds takes 1 or more")
    try:
        series = corpus.read(args.folder)
        report(args, series)
        if args.ablation:
            print("\n" + figures.table(compare(args, series, ablation.VARIANTS)))
        if args.settings:
            print("\n" + figures.table(chosen(compare(args, series, ablation.GRID))))
    except (OSError, ValueError, StreamLSTMError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
