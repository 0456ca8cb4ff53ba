"""The README's examples run as they stand, but for the file's ending and the port."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import streamlstm as sl
from heads import HOUR_S, WATER, headed

README = (Path(__file__).parent.parent / "README.md").read_text()
FORECAST, EMBEDDED, MOVED, CLIENT, RESUMED = re.findall(
    r"```python\n(.*?)```", README, flags=re.DOTALL
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a state dict as the example's comment describes it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return rng.uniform(-0.2, 0.2, shape).astype(np.float32)

    lstm = {"weight_ih_l0": (128, 2), "weight_hh_l0": (128, 32), "bias_ih_l0": (128,)}
    tensors = {f"lstm.{name}": weights(*shape) for name, shape in lstm.items()}
    tensors |= {"lstm.bias_hh_l0": weights(128)}
    tensors |= {"head.weight": weights(1, 32), "head.bias": weights(1)}
    save_file(tensors, tmp_path / "trained.safetensors")
    return tmp_path


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server whose sessions last, and its address."""
    address = f"ipc://{folder}/socket"
    argv = [sys.executable, "-P", "-m", "streamlstm", "serve", "pump.safetensors"]
    argv += ["--bind", address, "--state", "state"]
    server = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert server.stderr is not None
        assert '"listening"' in server.stderr.readline()
        yield address, server
    finally:
        server.terminate()
        server.communicate(timeout=20)


@pytest.mark.usefixtures("folder")
def test_the_forecast(capsys):
    traffic = sl.Feature("traffic", "", 3000.0, 2000.0)
    headed(sl.Head(traffic, time="time", step_s=HOUR_S, horizon=24)).save("traffic.safetensors")
    exec(FORECAST.replace("traffic.csv.gz", str(WATER.with_name("traffic.csv.gz"))), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24
    assert re.fullmatch(r"-?\d+ vehicles, four times of five -?\d+ to -?\d+", lines[0])


def test_the_examples_one_after_the_other(folder, capsys):
    exec(EMBEDDED.replace("trained.pt", "trained.safetensors"), {})
    assert sl.load("pump.safetensors").name == "pump"
    exec(MOVED, found := {})
    assert (found["state"].seq, found["h"].shape) == (41_000, (32,))
    with serving(folder) as (address, server):
        example = CLIENT.replace("tcp://127.0.0.1:5555", address)
        for _ in range(2):  # it may be run again
            exec(example, {})
        assert capsys.readouterr().out.split() == ["513", "1026"]
        server.kill()
        server.wait()
    for _ in range(2):
        with serving(folder) as (address, server):
            exec(RESUMED.replace("tcp://127.0.0.1:5555", address), {})
            with sl.Client(address) as client:
                assert client.open("pump-17", resume=True).seq == 2
                assert client.open("pump-18", resume=True).seq == 1000
    assert server.returncode == 143
