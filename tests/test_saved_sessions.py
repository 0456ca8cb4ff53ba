"""All sessions of an engine, kept in a directory and gone on with, also by the server."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest

import streamlstm as sl
from heads import FLOW, headed
from networks import stacked
from streamlstm import Head
from streamlstm.errors import CapacityError, EngineClosedError, StateMismatchError, StoreError
from streamlstm.service.server.protocol import ServerProtocol
from streamlstm.store import open_store

RNG = np.random.default_rng(7)
MODEL = stacked(3, 8, outputs=1)


@contextmanager
def meanwhile(act):
    """Another thread does it, again and again."""
    done = threading.Event()

    def again() -> None:
        while not done.is_set():
            act()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def stepped(engine, names):
    for k, name in enumerate(names):
        engine.open(name).run(RNG.standard_normal((k, engine.model.input_size)))


@pytest.mark.parametrize("model", [MODEL, headed(Head(FLOW))], ids=["network", "head"])
def test_they_go_on_with_the_same_bits(model, tmp_path):
    X = 100 + RNG.standard_normal((4, model.input_size))
    names = ["pump-1", "über\n", "c"]
    with sl.Engine(model) as engine:
        stepped(engine, names)
        engine.save(tmp_path / "kept")
        with sl.Engine(model, state=tmp_path / "kept") as other:
            assert other.names == engine.names
            for name in names:
                assert other[name].seq == engine[name].seq
                assert other[name].run(X).tobytes() == engine[name].run(X).tobytes()


def test_saving_again_replaces_what_was_there(tmp_path):
    with sl.Engine(MODEL) as engine:
        stepped(engine, ["a", "b"])
        engine.save(tmp_path)
        engine["a"].close()
        engine["b"].step(np.ones(3))
        stepped(engine, ["c"])
        engine.save(tmp_path)
    with sl.Engine(MODEL, state=tmp_path) as engine:
        assert {s.name: s.seq for s in engine} == {"b": 2, "c": 0}
    with sl.Engine(stacked(3, 4, outputs=1)) as other:  # another model's sessions stay
        other.save(tmp_path)
    with sl.Engine(MODEL, state=tmp_path) as engine:
        assert engine.names == ["b", "c"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    with sl.Engine(MODEL) as engine:
        stepped(engine, ["a"])
        engine.save(tmp_path)
        stepped(engine, ["b"])
        monkeypatch.setattr("streamlstm.store.database._APPEND", "nonsense")
        monkeypatch.setattr("streamlstm.store.database._PUT", "INSERT INTO nowhere VALUES (?)")
        with pytest.raises(StoreError):
            engine.save(tmp_path)
    with sl.Engine(MODEL, state=tmp_path) as engine:
        assert engine.names == ["a"]


def test_the_server_goes_on_from_it_and_back(tmp_path):
    x = np.ones(3, np.float32)
    with sl.Engine(MODEL) as engine:
        stepped(engine, ["a", "b", "c"])
        engine.save(tmp_path)
        wanted = [engine["c"].step(x), engine["c"].step(x)]
        with closing(open_store(tmp_path, "async")) as store, sl.Engine(MODEL) as served:
            protocol = ServerProtocol([served], sl.State.from_bytes, store=store)
            sessions = protocol.shard.tables[0]
            seat = sessions.roster.find("c", 0.0)
            assert sessions.table.seqs[seat] == 2
            y = bytes(sessions.step(seat, x.tobytes()))
            assert y == wanted[0].tobytes()
            protocol.step(0.0)
            protocol.stop()
    with sl.Engine(MODEL, state=tmp_path) as engine:
        assert engine["c"].seq == 3
        assert engine["c"].step(x).tobytes() == wanted[1].tobytes()


def test_a_state_and_its_seq_are_of_one_moment(tmp_path):
    """While another thread steps: what is saved is as if each event came before or after."""
    model = stacked(1, 4)
    with sl.Engine(model) as engine:
        session = engine.open("a")
        with meanwhile(lambda: session.step([1.0])):
            for k in range(5):
                engine.save(tmp_path / str(k))
    for k in range(5):
        with sl.Engine(model, state=tmp_path / str(k)) as engine, sl.Engine(model) as other:
            twin = other.open("a")
            twin.run(np.ones((engine["a"].seq, 1)))
            assert twin.state().numbers.tobytes() == engine["a"].state().numbers.tobytes()


def test_saving_a_closed_engine_loses_nothing(tmp_path):
    engine = sl.Engine(MODEL)
    stepped(engine, ["a", "b"])
    engine.save(tmp_path / "kept")
    engine.close()
    for directory in (tmp_path / "kept", tmp_path / "new"):
        with pytest.raises(EngineClosedError):
            engine.save(directory)
    assert not (tmp_path / "new").exists()
    with sl.Engine(MODEL, state=tmp_path / "kept") as engine:
        assert engine.names == ["a", "b"]


def test_saving_while_others_open_and_close(tmp_path):
    with sl.Engine(MODEL) as engine:
        names = [str(k) for k in range(300)]
        stepped(engine, names)

        def come_and_go() -> None:
            for name in names[:100]:
                engine[name].close()
                engine.open(name).take_over()

        with meanwhile(come_and_go):
            for k in range(5):
                engine.save(tmp_path / str(k))
    for k in range(5):
        with sl.Engine(MODEL, state=tmp_path / str(k)) as engine:
            assert len(engine) >= 299  # one may be closed at that moment
            assert [engine[name].seq for name in names[100:]] == list(range(100, 300))


def test_a_quarantined_session_stays_where_it_is(tmp_path, caplog):
    with sl.Engine(MODEL) as engine:
        stepped(engine, ["a", "b"])
        engine.save(tmp_path)
    with closing(open_store(tmp_path, "async")) as store:
        row = store.find(1, "b")
        store.put([replace(row, quarantined=True)])
        store.commit()
    with sl.Engine(MODEL, state=tmp_path) as engine:
        assert engine.names == ["a"]
        assert "session 'b' of" in caplog.text
        engine["a"].close()
        engine.save(tmp_path)
    with closing(open_store(tmp_path, "async")) as store:
        assert (store.find(1, "a"), store.find(1, "b")) == (None, replace(row, quarantined=True))
    with sl.Engine(MODEL) as engine:  # until another one has its name
        engine.open("b")
        engine.save(tmp_path)
    with sl.Engine(MODEL, state=tmp_path) as engine:
        assert engine["b"].seq == 0


def test_refusals(tmp_path):
    with pytest.raises(StoreError, match="is no state directory"):
        sl.Engine(MODEL, state=tmp_path / "nothing")
    with sl.Engine(MODEL) as engine:
        stepped(engine, ["a", "b"])
        engine.save(tmp_path / "kept")
        with pytest.raises(CapacityError, match="has 2 sessions; create the engine with a larger"):
            sl.Engine(MODEL, max_sessions=1, state=tmp_path / "kept")
        other = stacked(3, 8, outputs=1, seed=1)
        with pytest.raises(
            StateMismatchError, match=f"it has those of: .*{MODEL.fingerprint[:12]}"
        ):
            sl.Engine(other, state=tmp_path / "kept")
        with (
            closing(open_store(tmp_path / "kept", "async")) as store,
            pytest.raises(StoreError, match="is in use by process"),
        ):
            engine.save(tmp_path / "kept")
        with closing(open_store(tmp_path / "kept", "async")) as store:
            store.append(b"what a killed server leaves")
            store.commit()
            with pytest.raises(StoreError, match=f"in use by process {os.getpid()}; stop that"):
                sl.Engine(MODEL, state=tmp_path / "kept")
        for act in (engine.save, lambda kept: sl.Engine(MODEL, state=kept)):
            with pytest.raises(StoreError, match="1 record to be replayed: start it once"):
                act(tmp_path / "kept")
        (tmp_path / "foreign").mkdir()
        with closing(sqlite3.connect(tmp_path / "foreign" / "sessions.db")) as database:
            database.execute("CREATE TABLE precious (x)")
        with pytest.raises(StoreError, match="database of another program"):
            engine.save(tmp_path / "foreign")
