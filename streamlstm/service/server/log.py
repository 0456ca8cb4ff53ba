"""The server's log: lines of JSON on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any


def log(event: str, level: str = "info", **fields: Any) -> None:
    """One line of JSON on stderr, if anybody still reads it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"time": stamp, "level": level, "event": event, **fields}
    try:
        print(json.dumps(line, default=str), file=sys.stderr, flush=True)
    except BrokenPipeError:
        # What stays in the buffer would fail again at exit, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except OSError:
        pass  # a full disk must not end the service


class Faults:
    """Logs engine failures, at most one a second: a client must not be able to fill the disk."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._unlogged = 0

    def __call__(self, doing: str, error: Exception) -> None:
        now = time.monotonic()
        if now < self._next_s:
            self._unlogged += 1
            return
        trace = "".join(traceback.format_exception(error))
        log("fault", level="error", doing=doing, traceback=trace, unlogged=self._unlogged)
        self._next_s, self._unlogged = now + 1.0, 0
