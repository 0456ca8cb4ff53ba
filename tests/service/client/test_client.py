"""Client and AsyncClient against a real server process, beside an embedded engine."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import streamlstm as sl
from service.conftest import Server
from streamlstm import errors

X = np.random.default_rng(3).standard_normal((40, 3)).astype(np.float32)


@pytest.fixture
def client(server: Server) -> Iterator[sl.Client]:
    with sl.Client(server.address, patience_s=20) as client:
        yield client


@pytest.fixture(scope="module")
def embedded(model_path: Path) -> Callable[[], Any]:
    """A fresh embedded session each time it is called."""
    engine = sl.Engine(sl.load(model_path))
    names = iter(range(10_000))
    return lambda: engine.open(str(next(names)))


def test_h_and_c_of_another_runtime(client: sl.Client, model_path: Path) -> None:
    model = sl.load(model_path)
    h, c = (np.full((1, 1, *sizes), 0.25) for sizes in zip(*model.state_sizes, strict=True))
    with client.open("from elsewhere") as session, sl.Engine(model) as engine:
        session.step(X[0])
        session.restore(sl.State.of(model, h=h, c=c, seq=41))
        twin = engine.open("twin")
        twin.restore(h=h, c=c)
        assert session.seq == 2  # a change like an event: what was acknowledged stays counted
        np.testing.assert_array_equal(session.step(X[1]), twin.step(X[1]))
        with pytest.raises(errors.ShapeError):
            session.restore(sl.State.of(model, h=h[..., 1:], c=c))
        assert session.seq == 3


def test_what_is_shown_is_one_line_and_nothing_is_copied(client: sl.Client) -> None:
    with client.open("shown") as session:
        group = client.group([session])
        for thing, line, way_out in (
            (client, f"<Client of {client.address}: 'pump'>", "connect another one"),
            (session, "<RemoteSession 'shown' of 'pump', seq 0>", "open.name, resume=True"),
            (group, "<RemoteGroup of 1 session of 'pump'>", "client.group"),
        ):
            assert repr(thing) == line
            for make in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(errors.StreamLSTMError, match=way_out):
                    make(thing)
    unconnected = sl.AsyncClient("tcp://127.0.0.1:1")
    assert repr(unconnected) == "<AsyncClient of tcp://127.0.0.1:1: no model known yet>"
    with pytest.raises(errors.ServiceError, match="connect another one"):
        copy.copy(unconnected)


def test_a_remote_session_looks_like_an_embedded_one(
    client: sl.Client, embedded: Callable[[], Any]
) -> None:
    with client.open("twin") as remote:
        twin = embedded()
        for x in X[:5]:
            y = remote.step(x)
            np.testing.assert_array_equal(y, twin.step(x))
            y[:] = 0  # the caller's own
        assert remote.seq == 5
        by_name = {"speed": 1, "flow": 2.5, "pressure": -1}
        np.testing.assert_array_equal(remote.step(by_name), twin.step(by_name))
        np.testing.assert_array_equal(remote.step([1, 2, 3]), twin.step([1, 2, 3]))
        np.testing.assert_array_equal(remote.step(X[:, 0][:3]), twin.step(X[:3, 0]))  # strided
        np.testing.assert_allclose(remote.run(X), twin.run(X), rtol=1e-6)
        assert remote.seq == twin.seq == 48
        assert remote.run(np.zeros((0, 3))).shape == (0, 2)
        kept = remote.state()
        after = remote.step(X[0])
        remote.restore(kept)
        np.testing.assert_array_equal(remote.step(X[0]), after)
        remote.restore(twin.state())
        np.testing.assert_allclose(remote.step(X[1]), twin.step(X[1]), rtol=1e-5)
        remote.reset()
        np.testing.assert_array_equal(remote.step(X[0]), embedded().step(X[0]))
        assert (remote.name, remote.model.name, remote.closed) == ("twin", "pump", False)
    assert remote.closed
    assert remote.seq == 55  # 52 events, 2 restores, 1 reset


@pytest.mark.parametrize(
    ("x", "error"),
    [
        ([1, 2], errors.ShapeError),
        ([[1, 2, 3]], errors.ShapeError),
        ([[1, 2], [3]], errors.ShapeError),
        ([1, 2, float("nan")], errors.NonFiniteError),
        ([1, 2, 1e300], errors.NonFiniteError),
        (["1", "2", "3"], errors.DtypeError),
        ([1, 2, None], errors.DtypeError),
        ({"flow": 1, "pressure": 2}, errors.MissingInputError),
        ({"flow": 1, "pressure": 2, "speed": 3, "heat": 4}, errors.MissingInputError),
    ],
)
def test_a_refused_event_raises_what_an_embedded_engine_raises(
    client: sl.Client, embedded: Callable[[], Any], x: Any, error: type[Exception]
) -> None:
    with client.open("strict") as remote:
        with pytest.raises(error):
            remote.step(x)
        with pytest.raises(errors.InputError):
            embedded().step(x)
        remote.step(X[0])  # and nothing was lost
        assert remote.seq == 1


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_columns_of_a_data_frame_go_by_name(
    client: sl.Client, server: Server, embedded: Callable[[], Any], kind: Callable[..., Any]
) -> None:
    frame = kind({"speed": X[:, 2], "flow": X[:, 0], "pressure": X[:, 1]})
    Y = embedded().run(X)
    with client.open("run") as run, client.open("stream") as stream:
        assert run.run(frame).tobytes() == Y.tobytes()
        assert np.stack(list(stream.stream(frame))).tobytes() == Y.tobytes()
        with pytest.raises(errors.MissingInputError, match="lacks flow and has unknown heat"):
            run.run(
                frame.rename({"flow": "heat"})
                if kind is pl.DataFrame
                else frame.rename(columns={"flow": "heat"})
            )
        assert run.seq == len(X)
    fleet = client.group([client.open(f"by name {k}") for k in range(len(X))])
    assert fleet.step(frame).tobytes() == np.stack([embedded().step(x) for x in X]).tobytes()
    for session in fleet.sessions:
        session.close()

    async def scenario() -> list[Any]:
        async with sl.AsyncClient(server.address, patience_s=20) as other:
            session = await other.open("asyncio")
            found = [y async for y in session.stream(frame)]
            await session.close()
            return found

    assert np.stack(asyncio.run(scenario())).tobytes() == Y.tobytes()


def test_sessions_end_clearly(client: sl.Client, server: Server) -> None:
    a = client.open("ends")
    with pytest.raises(errors.SessionExistsError, match="resume"):
        client.open("ends")
    with pytest.raises(errors.ModelError, match="pump"):
        client.open("other", model="nope")
    with sl.Client(server.address, patience_s=20) as other:
        a.step(X[0])
        b = other.open("ends", resume=True)
        assert (b.seq, b.epoch) == (1, a.epoch + 1)
        with pytest.raises(errors.SessionFencedError):
            a.step(X[1])
        with pytest.raises(errors.SessionFencedError, match="resume"):
            a.step(X[1])
        assert a.closed
        a.close()
        b.step(X[1])
        b.close()
        b.close()
        with pytest.raises(errors.SessionClosedError):
            b.step(X[0])


def test_groups(client: sl.Client, embedded: Callable[[], Any]) -> None:
    sessions = [client.open(f"g{i}") for i in range(100)]
    twins = [embedded() for _ in sessions]
    group = client.group(sessions)
    events = np.random.default_rng(5).standard_normal((3, 100, 3)).astype(np.float32)
    sessions[7].step(X[0])
    twins[7].step(X[0])
    for rows in events:
        want = twins[0].engine.step(twins, rows)
        np.testing.assert_array_equal(group.step(rows), want)
    assert group.seqs.tolist() == [s.seq for s in sessions] == [t.seq for t in twins]
    np.testing.assert_array_equal(
        client.step(sessions[:2], X[:2]), twins[0].engine.step(twins[:2], X[:2])
    )
    with pytest.raises(errors.NonFiniteError):
        group.step(np.full((100, 3), np.nan))
    with pytest.raises(errors.ShapeError):
        group.step(events[0][:99])
    with pytest.raises(errors.RepeatedSessionError):
        client.group([sessions[0], sessions[0]])
    with pytest.raises(errors.InputError):
        client.group([])
    sessions[3].close()
    with pytest.raises(errors.SessionError):
        group.step(events[0])
    assert sessions[0].seq == 4
    for session in sessions:
        session.close()


def test_a_long_run_goes_in_pieces(
    client: sl.Client, embedded: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlstm.service.client.models.RUN_BYTES_MAX", 100)
    with client.open("long") as remote:
        np.testing.assert_allclose(remote.run(X), embedded().run(X), rtol=1e-5)
        assert remote.seq == len(X)
        bad = X.copy()
        bad[30] = np.inf
        with pytest.raises(errors.NonFiniteError):
            remote.run(bad)
        assert remote.seq == len(X)


def test_streams(client: sl.Client, embedded: Callable[[], Any]) -> None:
    with client.open("stream") as remote:
        twin = embedded()
        got = np.array(list(remote.stream(X)))
        np.testing.assert_allclose(got, np.array([twin.step(x) for x in X]), rtol=1e-5, atol=1e-7)
        taken = []
        for _ in remote.stream(taken.append(x) or x for x in X):
            break
        assert remote.seq == len(X) + len(taken)
        bad = X.copy()
        bad[30] = np.nan
        outputs = []
        with pytest.raises(errors.NonFiniteError):
            outputs.extend(remote.stream(bad))
        assert remote.seq == len(X) + len(taken) + 30
        assert list(remote.stream([])) == []
        with pytest.raises(ZeroDivisionError):
            list(remote.stream(x / 0 for x in (1,)))
        remote.step(X[0])


def test_forks(client: sl.Client) -> None:
    with client.open("trunk") as trunk:
        trunk.run(X)
        with trunk.fork("branch") as branch:
            assert (branch.name, branch.seq, trunk.seq) == ("branch", 0, 40)
            np.testing.assert_array_equal(branch.step(X[0]), trunk.step(X[0]))
            branch.step(X[1])
            with pytest.raises(errors.SessionExistsError):
                trunk.fork("branch")
            assert trunk.seq == 41


def test_deadlines(client: sl.Client) -> None:
    with client.open("prompt") as remote:
        remote.step(X[0], deadline_s=60)
        remote.run(X[:3], deadline_s=60)
        with pytest.raises(errors.DeadlineError):
            remote.step(X[0], deadline_s=-60)
        with pytest.raises(errors.DeadlineError):
            client.step([remote], X[:1], deadline_s=-60)
        client.step([remote], X[:1], deadline_s=60)
        assert remote.seq == 5


@pytest.fixture
def serve(model_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, ends those that are left."""
    started: list[Server] = []

    def start(bind: str = "tcp://127.0.0.1:0", state: Path | None = None) -> Server:
        options = () if state is None else ("--state", str(state))
        started.append(Server([model_path], bind, *options))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.end()


def test_a_restarted_server_is_a_pause(
    serve: Callable[..., Server], tmp_path: Path, embedded: Callable[[], Any]
) -> None:
    running = serve(state=tmp_path)
    with sl.Client(running.address) as client:
        a, b, c = (client.open(name) for name in "abc")
        group = client.group([b, c])
        twin, other = embedded(), embedded()
        for x in X[:10]:
            np.testing.assert_allclose(a.step(x), twin.step(x), rtol=1e-5, atol=1e-7)
            Y = group.step(np.stack([x, x]))
            np.testing.assert_allclose(Y[1], other.step(x), rtol=1e-5, atol=1e-7)
            if twin.seq in (3, 7):
                running.end(signal.SIGKILL if twin.seq == 3 else signal.SIGTERM)
                running = serve(running.address, tmp_path)
        assert (a.seq, b.seq) == (10, 10)
        stream = a.stream(X[10:])
        for i, y in enumerate(stream):
            np.testing.assert_allclose(y, twin.step(X[10 + i]), rtol=1e-5, atol=1e-7)
            if i == 5:
                running.end(signal.SIGKILL)
                running = serve(running.address, tmp_path)
        assert a.seq == len(X)
        b.close()
        with pytest.raises(errors.SessionExistsError):
            client.open("a")


def test_a_server_without_a_state_directory_forgets(serve: Callable[..., Server]) -> None:
    running = serve()
    with sl.Client(running.address) as client:
        a, b = client.open("a"), client.open("b")
        a.step(X[0])
        running.end(signal.SIGKILL)
        running = serve(running.address)
        with pytest.raises(errors.SessionUnknownError, match="open it again"):
            a.step(X[1])
        b.close()
        assert client.open("a").seq == 0


def test_asyncio_over_a_restart(
    serve: Callable[..., Server], tmp_path: Path, embedded: Callable[[], Any]
) -> None:
    async def scenario() -> None:
        running = serve(state=tmp_path)
        async with sl.AsyncClient(running.address) as client:
            sessions = [await client.open(f"r{i}") for i in range(10)]
            tasks = [asyncio.create_task(s.step(x)) for x in X for s in sessions]
            await tasks[20]
            running.end(signal.SIGKILL)
            running = serve(running.address, tmp_path)
            got = np.array(await asyncio.gather(*tasks))
            twin = embedded()
            want = np.array([twin.step(x) for x in X])
            for i in range(10):
                np.testing.assert_allclose(got[i::10], want, rtol=1e-5, atol=1e-7)

            async def feed() -> AsyncIterator[Any]:
                for x in X:
                    yield x

            a = sessions[0]
            await a.reset()
            ys = np.array([y async for y in a.stream(feed())])
            np.testing.assert_allclose(ys, want, rtol=1e-5, atol=1e-7)
            fork = await a.fork("fork")
            np.testing.assert_array_equal(await fork.step(X[0]), await a.step(X[0]))
            await a.reset()
            stream = a.stream(X)
            np.testing.assert_array_equal(await anext(stream), ys[0])
            await stream.aclose()
            assert a.seq > 2 * len(X) + 3

    asyncio.run(scenario())


def test_stats(client: sl.Client) -> None:
    stats = client.stats()
    assert stats["state"] == "running"
    assert stats["models"]["pump"]["max_sessions"] == 1_000_000


def test_nobody_answers() -> None:
    with pytest.raises(errors.ServerTimeoutError, match="is the server running there"):
        sl.Client("tcp://127.0.0.1:9", patience_s=0.05)
    with pytest.raises(errors.ServiceError, match="is not an address"):
        sl.Client("nonsense")
    with pytest.raises(errors.ServiceError, match="patience_s"):
        sl.Client("tcp://127.0.0.1:9", patience_s=0)


def test_a_closed_client_says_so(server: Server) -> None:
    client = sl.Client(server.address)
    session = client.open("left")
    client.close()
    with pytest.raises(errors.ServiceError, match="closed"):
        session.step(X[0])


def test_asyncio(server: Server, embedded: Callable[[], Any]) -> None:
    async def scenario() -> None:
        async with sl.AsyncClient(server.address, patience_s=20) as client:
            sessions = [await client.open(f"async{i}") for i in range(20)]
            got = await asyncio.gather(*(s.step(x) for x in X for s in sessions))
            twin = embedded()
            want = np.array([twin.step(x) for x in X])
            for i in range(20):
                np.testing.assert_allclose(np.array(got[i::20]), want, rtol=1e-5, atol=1e-7)
            group = client.group(sessions)
            assert (await group.step(np.zeros((20, 3)))).shape == (20, 2)
            assert (await client.step(sessions[:3], X[:3])).shape == (3, 2)
            a = sessions[0]
            assert a.seq == 42
            group, other = client.group(sessions), client.group(sessions[10:][::-1])
            await asyncio.gather(
                *(g.step(np.zeros((len(g), 3))) for _ in range(5) for g in (group, other)),
                *(s.step(X[0]) for s in sessions),
            )
            assert group.seqs.tolist() == [
                40 + (2 if i < 3 else 1) + (6 if i < 10 else 11) for i in range(20)
            ]
            kept = await a.state()
            y = await a.run(X)
            await a.restore(kept)
            np.testing.assert_array_equal(await a.run(X), y)
            await a.reset()
            with pytest.raises(errors.NonFiniteError):
                await a.step([np.nan, 0, 0])
            with pytest.raises(errors.SessionExistsError):
                await client.open("async1")
            assert (await client.stats())["models"]["pump"]["sessions"] >= 20
            for session in sessions:
                await session.close()
            async with await client.open("async-with") as b:
                await b.step(X[0])
        with pytest.raises(errors.ServiceError, match="not connected"):
            await client.stats()
        with pytest.raises(errors.ServerTimeoutError):
            await sl.AsyncClient("tcp://127.0.0.1:9", patience_s=0.05).connect()

    asyncio.run(scenario())


def test_more_in_flight_than_the_server_lets_wait(server: Server) -> None:
    async def scenario() -> None:
        async with sl.AsyncClient(server.address, patience_s=30) as client:
            sessions = [await client.open(f"many{i}") for i in range(1500)]
            await asyncio.gather(*(session.step(X[0]) for session in sessions))
            await asyncio.gather(*(session.close() for session in sessions))

    asyncio.run(scenario())


def test_the_client_brings_in_no_engine() -> None:
    code = (
        "import sys, streamlstm as sl; sl.Client, sl.AsyncClient; "
        "ours = [m for m in sys.modules if m.startswith('streamlstm.')]; "
        "rooms = {m.split('.')[1] for m in ours}; "
        "assert not rooms & {'engine', 'core', 'kernels', 'model', 'layers'}, ours; "
        "assert 'scipy' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_client_is_not_used_in_a_forked_child(server: Server) -> None:
    with sl.Client(server.address) as client:
        session = client.open("forked")
        pid = os.fork()
        if pid == 0:
            code = 1
            with suppress(BaseException):
                client.close()  # harmless: it is the parent's
                try:
                    session.step([1, 2, 3])
                except sl.StreamLSTMError as error:
                    code = 0 if "os.fork" in str(error) else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        session.step([1, 2, 3])
