"""Every kind of layer through a real server, killed in between: the embedded engine's bits."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

import streamlstm as sl
from networks import dense, gru, lstm_with
from service.conftest import Server
from streamlstm.errors import NonFiniteError

VOCABULARY = 30


def model(dtype: str) -> sl.Model:
    rng = np.random.default_rng(3)
    projected = lstm_with(rng, 5, 12, w_p=rng.uniform(-0.3, 0.3, (7, 12)), coupled="i", peep=None)
    layers = [
        sl.Embedding(rng.uniform(-1, 1, (VOCABULARY, 5))),
        projected,
        gru(rng, 7, 9),
        gru(rng, 9, 6, reset_after=False),
        sl.Activation("relu", 6),
        dense(rng, 6, 3, "softmax"),
    ]
    return sl.Model(layers, name="words", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kind_of_layer(tmp_path: Path, dtype: str) -> None:
    words = model(dtype)
    words.save(tmp_path / "words.safetensors")
    ids = np.random.default_rng(4).integers(0, VOCABULARY, (60, 1))
    with sl.Engine(words) as engine:
        expected = engine.open("a").run(ids)
        state = engine["a"].state().numbers
    options = ("--state", str(tmp_path / "state"))
    server = Server([tmp_path / "words.safetensors"], f"ipc://{tmp_path / 'socket'}", *options)
    try:
        with sl.Client(server.address) as client:
            session = client.open("a")
            y = [session.step(event) for event in ids[:20]]
            with pytest.raises(NonFiniteError):
                session.step([0.5])
            with pytest.raises(NonFiniteError):
                session.step([VOCABULARY])
            server.end(signal.SIGKILL)
            server = Server([tmp_path / "words.safetensors"], server.address, *options)
            y += [session.step(event) for event in ids[20:40]]
            y += list(session.run(ids[40:]))
            assert session.seq == 60
            served = sl.State.from_bytes(session.state())
    finally:
        server.end()
    assert served.sizes == words.state_sizes
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 if dtype == "float64" else 0)
    np.testing.assert_allclose(
        served.numbers, state, rtol=0, atol=1e-12 if dtype == "float64" else 0
    )
