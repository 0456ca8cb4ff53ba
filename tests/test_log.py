"""The logger "streamlstm": silent by itself, and what it tells."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys

import numpy as np

import streamlstm as sl
from networks import stacked
from service.conftest import Server
from streamlstm.store import SessionRow, open_store


def test_it_is_silent_until_somebody_listens(tmp_path):
    code = "import streamlstm.log as l; l.log.warning('lost')"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_an_engine_tells_its_class(caplog):
    with caplog.at_level(logging.DEBUG, "streamlstm"), sl.Engine(stacked(2, 4)) as engine:
        pass
    [told] = caplog.messages
    assert engine.arithmetic in told


def test_a_session_that_is_left_out_is_told(caplog, tmp_path):
    model = stacked(2, 4)
    with sl.Engine(model) as engine:
        engine.open("a")
        engine.save(tmp_path)
    store = open_store(tmp_path, "async")
    store.put([SessionRow(9, 1, "bad", 1, 0, 3, b"", b"", True)])
    store.commit()
    store.close()
    with sl.Engine(model, state=tmp_path) as engine:
        assert engine.names == ["a"]
        assert engine["a"].step(np.zeros(2)).shape == (4,)
    assert any("'bad'" in message and "left out" in message for message in caplog.messages)


def test_a_session_that_came_back_is_told(caplog, tmp_path):
    model = stacked(2, 4)
    model.save(tmp_path / "model.safetensors")
    bind, options = f"ipc://{tmp_path / 'socket'}", ("--state", str(tmp_path / "state"))
    server = Server([tmp_path / "model.safetensors"], bind, *options)
    try:
        with caplog.at_level(logging.INFO, "streamlstm"), sl.Client(bind) as client:
            session = client.open("pump-17")
            session.step([1, 2])
            server.end(signal.SIGKILL)
            server = Server([tmp_path / "model.safetensors"], bind, *options)
            session.step([1, 2])
    finally:
        server.end()
    assert "session 'pump-17' is attached again, at event 1" in caplog.messages
