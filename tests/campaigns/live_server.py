"""What the campaigns share: a random model, and a server process that may be killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import streamlstm as sl

Array = NDArray[Any]

START_S = 60.0
END_S = 60.0


def random_model(
    inputs: int, units: int, outputs: int, layers: int = 1, *, name: str = "campaign"
) -> sl.Model:
    """float32 LSTM layers under a linear one, at the scale that training leaves."""
    rng = np.random.default_rng(5)

    def weights(*shape: int) -> Array:
        return rng.uniform(-(units**-0.5), units**-0.5, shape).astype(np.float32)

    made: list[Any] = []
    for k in range(layers):
        size = units if k else inputs
        made.append(
            sl.LSTM(weights(4 * units, size), weights(4 * units, units), weights(4 * units))
        )
    return sl.Model([*made, sl.Dense(weights(outputs, units), weights(outputs))], name=name)


class Server:
    """`streamlstm serve MODEL` in a process; a context manager that leaves no process.

    Does not wait until it listens, so that it can be killed before that.
    log: its log lines so far.
    """

    def __init__(self, model: Path, bind: str, *options: str) -> None:
        argv = [sys.executable, "-P", "-m", "streamlstm", "serve", str(model), "--bind", bind]
        self.log: list[dict[str, Any]] = []
        self._known = threading.Event()  # whether it listens or ended
        self.started_s = self.listened_s = time.monotonic()
        self.process = subprocess.Popen(
            [*argv, *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:  # a traceback
                self.log.append({"event": "not a log line", "text": line.rstrip()})
            if self.log[-1]["event"] == "listening":
                self.listened_s = time.monotonic()
                self._known.set()
        self._known.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self) -> str:
        """Wait until it listens; its address."""
        self._known.wait(START_S)
        if not self.listens:
            raise AssertionError(f"the server does not listen: {self.log or 'no word from it'}")
        return str(self.told("listening")["endpoint"])

    @property
    def listens(self) -> bool:
        return bool(self.told("listening"))

    def told(self, event: str) -> dict[str, Any]:
        """The log's line of that event, {} if there is none."""
        return next((line for line in self.log if line["event"] == event), {})

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def rss_mib(self) -> float:
        """Memory that it has."""
        return rss_mib(self.process.pid)

    def kill(self) -> None:
        """kill -9, if it is alive."""
        if self.alive:
            self.process.kill()
        self._ended()

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self._ended()

    def _ended(self) -> int:
        code = self.process.wait(END_S)
        self._reader.join(END_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def rss_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def percentiles(seconds: Any, *wanted: float) -> list[float]:
    """In ms."""
    return [float(p) * 1e3 for p in np.percentile(np.asarray(seconds), wanted)]
