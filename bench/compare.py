"""Our speed against our peers' and against the machine's limits.

python bench/compare.py run [--quick] --out results.json    time all peers, interleaved
python bench/compare.py table results.json                  as Markdown, with the targets
python bench/compare.py plot results.json peers.svg
python bench/compare.py limits [--million]                  kernel alone, memory, threads

Peers that are not installed are left out and named: pip install '.[bench]' has them all.
"""

import importlib
import sys

COMMANDS = ("run", "table", "plot", "limits")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    command = sys.argv.pop(1)
    sys.argv[0] += f" {command}"
    sys.exit(importlib.import_module(f"peers.{command}").main())
