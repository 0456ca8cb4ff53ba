"""Real servers for the tests: processes of their own, ended by their id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamlstm as sl


class Server:
    """`streamlstm serve` in a process; `address` once it listens."""

    def __init__(self, models: list[Path], bind: str, *options: str) -> None:
        argv = [sys.executable, "-m", "streamlstm", "serve", *map(str, models), "--bind", bind]
        self.process = subprocess.Popen([*argv, *options], stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == "listening":
                break
        self.address = str(self.log[-1]["endpoint"])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        try:
            _, rest = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.log += [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
        return self.process.returncode


def make_model(name: str, inputs: int = 3, units: int = 8, dtype: Any = np.float32) -> sl.Model:
    rng = np.random.default_rng(11)

    def weights(*shape: int) -> Any:
        return rng.uniform(-0.4, 0.4, shape).astype(dtype)

    lstm = sl.LSTM(weights(4 * units, inputs), weights(4 * units, units), weights(4 * units))
    dense = sl.Dense(weights(2, units), weights(2))
    features = [sl.Feature(n, "m/s") for n in ("flow", "pressure", "speed")[:inputs]]
    return sl.Model([lstm, dense], inputs=features, outputs=["level", "leak"], name=name)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "pump.safetensors"
    make_model("pump").save(path)
    return path


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[Server]:
    """One server for the tests of a module, on a free TCP port."""
    running = Server([model_path], "tcp://127.0.0.1:0")
    yield running
    assert running.end() == 143
