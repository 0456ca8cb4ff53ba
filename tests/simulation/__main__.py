"""Run seeds: `python -m simulation --seed 17` prints that seed's trace."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from simulation.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one schedule, with its trace")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "END"), default=(0, 1000))
    options = parser.parse_args()
    if options.seed is not None:
        world = World(options.seed, frames=True)
        try:
            world.run()
        finally:
            print(world.plan)
            print(*world.lines(), sep="\n")
        print("fine")
        return 0
    seen: Counter[str] = Counter()
    failed = 0
    started_s = time.perf_counter()
    for seed in range(*options.seeds):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            failed += 1
            if failed > 20:
                continue
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"--seed {seed}: {type(error).__name__}: {error} ({where.name}:{where.lineno})")
        seen += world.seen
    took_s = time.perf_counter() - started_s
    count = options.seeds[1] - options.seeds[0]
    for what, times in sorted(seen.items()):
        print(f"{times:8d}  {what}")
    print(f"{count} schedules, {failed} failed, {1e3 * took_s / count:.2f} ms each")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
