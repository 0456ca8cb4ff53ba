"""Resident memory of 100,000 sessions, measured in a process that does nothing else.

python session_cost.py MODEL.safetensors  ->  {"first": {"session_bytes", "kept_bytes"},
"second": ..., "state_bytes"}: bytes a session while they are open, bytes still held when
all are closed, and the engine's slabs then; opened and closed twice.
"""

import gc
import json
import os
import sys

import streamlstm as sl

SESSIONS = 100_000


def resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    figures: dict[str, object] = {}
    names = [f"sensor-{k:06d}" for k in range(SESSIONS)]
    with sl.Engine(sl.load(sys.argv[1])) as engine:
        engine.open("warm").close()
        for at in ("first", "second"):
            before = resident()
            sessions = [engine.open(name) for name in names]
            opened = resident()
            while sessions:
                sessions.pop().close()
            figures[at] = {
                "session_bytes": (opened - before) / SESSIONS,
                "kept_bytes": resident() - before,
            }
        figures["state_bytes"] = engine.state_bytes
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
