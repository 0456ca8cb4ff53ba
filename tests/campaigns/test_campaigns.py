"""The campaigns in short: what they assert, none of their times. The figures are printed.

`python tests/campaigns/kill.py` and its neighbours are the whole ones.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamlstm as sl
from service.conftest import Server, make_model
from streamlstm.service.operations import OPERATIONS

HERE = Path(__file__).parent
LONGEST_S = 200

# What the servers do here under load is covered by tests/service.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.untraced,
    pytest.mark.usefixtures("untraced_processes"),
]


def run(script: str, *options: str) -> None:
    """A campaign as a process."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=LONGEST_S)
    finally:
        process.terminate()  # which ends its children too
        process.communicate()
    print(printed)
    assert process.returncode == 0, printed
    assert "verdict" in printed


@pytest.mark.parametrize("options", [(), ("--spill", "--seed", "2")])
def test_kills(options: tuple[str, ...]) -> None:
    run("kill.py", "--kills", "8", *options)


def test_fuzz() -> None:
    run("fuzz.py", "--messages", "20000", "--phases", "2")


def test_overload() -> None:
    run("overload.py", "--seconds", "3", "--clients", "50")


# --- messages that hypothesis builds --------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)),
)
items = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)
messages = st.builds(
    lambda version, op, ident, fields: msgpack.packb([version, op, ident, *fields]),
    st.just(1) | items,
    st.sampled_from(sorted(OPERATIONS)) | items,
    items,
    st.lists(items | st.sampled_from([0, 1, b"\0" * 12, "beside"]), max_size=7),
)


class Beside:
    """A hostile socket, and a good client with a session and its embedded twin."""

    def __init__(self, address: str, model: sl.Model) -> None:
        self.sock: Any = zmq.Context.instance().socket(zmq.DEALER)
        self.sock.linger = 0
        self.sock.rcvtimeo = 20_000
        self.sock.connect(address)
        self._client = sl.Client(address)
        self._session = self._client.open("good")
        self._twin = sl.Engine(model).open("good")
        self._rng = np.random.default_rng(0)

    def step(self) -> None:
        x = self._rng.standard_normal(3, np.float32)
        assert self._session.step(x).tobytes() == self._twin.step(x).tobytes()

    def close(self) -> None:
        self.sock.close()
        self._client.close()


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    folder = tmp_path_factory.mktemp("durable")
    model = make_model("pump")
    model.save(folder / "pump.safetensors")
    options = ("--state", str(folder / "state"), "--max-sessions", "500")
    server = Server([folder / "pump.safetensors"], "tcp://127.0.0.1:0", *options)
    made = Beside(server.address, model)
    yield made
    made.close()
    assert server.end() == 143


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(burst=st.lists(messages | st.binary(max_size=60), min_size=1, max_size=10))
def test_built_messages(beside: Beside, burst: list[bytes]) -> None:
    """Each gets one reply, none is the server's own fault, and the session beside goes on."""
    for frame in burst:
        beside.sock.send(frame)
    told = []
    while len(told) < len(burst):
        reply = msgpack.unpackb(beside.sock.recv(), strict_map_key=False)
        if reply[1] != "notice":
            told.append(reply[3] if reply[1] == "error" else "ok")
    assert "INTERNAL" not in told
    beside.step()
