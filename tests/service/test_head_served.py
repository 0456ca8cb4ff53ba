"""Models with a head through the service: readings, policies, forecasts and counters, bit for bit
what an embedded engine says, whatever happens to the server."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings

import streamlstm as sl
from heads import FLOW, HOUR_S, headed, holed, readings
from service.conftest import Server, make_model
from service.feeds import ACTIONS, Feeds
from service.talk import At, Talk
from streamlstm import Feature, Head, kernels
from streamlstm.errors import (
    EngineError,
    InputError,
    NonFiniteError,
    ProtocolError,
    ServerTimeoutError,
)
from streamlstm.head import COUNTERS, Residual
from streamlstm.service import operations, wire
from streamlstm.service.client.protocol import ClientProtocol
from streamlstm.service.client.sessions import Call
from streamlstm.service.server.bounds import RUN_WORK_MAX
from streamlstm.store import Store

RAIN = Feature("rain", "mm", 1.0, 0.5)
HOURLY = Head(FLOW, time="time", step_s=HOUR_S, calendar=("day", "week"), horizon=3, warm_up=20)
POLICIES = [
    replace(HOURLY, missing=missing, late=late, spacing=spacing)
    for missing, late, spacing in product(
        ("reject", "skip", "hold", "predict"), ("drop", "reject", "step"), ("grid", "gap")
    )
]
STRICT = replace(HOURLY, missing="reject", late="reject")
NAN = float("nan")


def start(model: sl.Model, disk: sqlite3.Connection | None = None, **options: Any) -> Talk:
    """A server, on what an earlier one left on the disk."""
    if disk is not None:
        disk.rollback()
        options["store"] = Store(disk, "async")
    return Talk(sl.Engine(model), read_state=sl.State.from_bytes, **options)


@pytest.fixture
def disk() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def step(at: At, seq: int | None, x: Any) -> tuple[Any, ...]:
    return "step", 0, *at, seq, None, np.array(x, "<f8").tobytes()


def answer(talk: Talk, *items: Any) -> tuple[Any, ...]:
    """("ok", values) or (a code,) of one request."""
    status, _, *values = talk.ask(*items)
    return (status, *values) if status == "ok" else (values[0],)


def asked(session: Any, x: Any) -> tuple[Any, ...]:
    """The same of an embedded session's step."""
    try:
        return "ok", session.seq + 1, session.step(x).tobytes()
    except InputError as error:
        return (error.code,)


# --- over a socket --------------------------------------------------------------------------------


def test_a_killed_server_goes_on(tmp_path: Path) -> None:
    """A stream with missing values, gaps, late and repeated rows; the embedded engine's bits."""
    model = headed(HOURLY)
    paths = [tmp_path / "flow.safetensors", tmp_path / "pump.safetensors"]
    model.save(paths[0])
    make_model("pump").save(paths[1])
    x = holed()[:300]
    engine = sl.Engine(model)
    twin = engine.open("a")
    options = ("--state", str(tmp_path / "state"), "--max-resident", "1")
    server = Server(paths, f"ipc://{tmp_path / 'socket'}", *options)
    try:
        with sl.Client(server.address) as client:
            session = client.open("a", "flow")
            assert session.model.head == model.head
            assert session.model.dtype == np.float64
            named = {"time": x[0, 0], "flow": NAN}
            got = [session.step(named), session.step(x[0].tolist())]
            got += list(session.stream(x[1:60]))
            expected = [twin.step(named), *twin.run(x[:60])]
            server.end(signal.SIGKILL)
            server = Server(paths, server.address, *options)
            other = client.open("b", "flow")  # one of them may be resident
            for reading in x[60:90]:
                got.append(session.step(reading))
                other.step(reading)
            got += list(session.run(x[90:]))
            expected += list(twin.run(x[60:]))
            assert np.array(got).tobytes() == np.array(expected).tobytes()
            assert session.model.head.report(got[-1]) == model.head.report(expected[-1])
            looks(session, twin)
            counts = client.stats()["models"]["flow"]["readings"]
            assert counts.keys() == {*COUNTERS[:-1], "refused"}
            pump = client.open("c", "pump")
            assert pump.model.head is None
            assert pump.counters() == {}
            with pytest.raises(EngineError, match="'pump' has no head"):
                pump.forecast(3)
            assert pump.step([1, 2, 3]).dtype == np.float32
    finally:
        server.end()


def looks(session: Any, twin: Any) -> None:
    """State, forecasts and counters are the twin's, and looking changes nothing."""
    state = session.state()
    for steps in (1, 3, 40):
        assert session.forecast(steps).tobytes() == twin.forecast(steps).tobytes()
        assert session.forecast(steps).shape == (steps, 3)
    assert session.counters() == twin.counters()
    assert session.state() == state
    assert session.seq == twin.seq
    np.testing.assert_array_equal(sl.State.from_bytes(state).numbers, twin.state().numbers)
    for steps in (0, 10_001, 1.5, None):
        with pytest.raises(InputError, match="1 to 10,000 steps"):
            session.forecast(steps)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("models") / "strict.safetensors"
    headed(replace(STRICT, others=(RAIN,))).save(path)
    running = Server([path], "tcp://127.0.0.1:0")
    yield running
    assert running.end() == 143


def test_refusals_reach_the_client(server: Server) -> None:
    with sl.Client(server.address) as client, client.open("refused") as session:
        good = [[1e9 + HOUR_S * k, 100 + k, 1] for k in range(4)]
        session.step(good[0])
        with pytest.raises(NonFiniteError, match="lacks flow"):
            session.step([good[1][0], NAN, 1])
        with pytest.raises(NonFiniteError, match="time"):
            session.step([NAN, 100, 1])
        with pytest.raises(NonFiniteError, match="lacks rain"):
            session.run([good[1], [good[2][0], 100, NAN]])
        with pytest.raises(InputError, match="late='reject'"):
            session.run([good[1], good[1]])
        assert session.seq == 1
        with client.open("other") as other, pytest.raises(InputError, match="reading 0"):
            client.step([session, other], [good[0], good[0]])
        session.step(good[1])
        group = client.group([session])
        assert np.isfinite(group.step([good[2]])).all()
        assert session.seq == 3


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_times_and_columns_are_what_they_are_embedded(server: Server, kind: Any) -> None:
    times = [datetime(2024, 3, 1, hour) for hour in range(4)]
    columns = {"rain": [0.0, 0.5, 0.0, 0.25], "flow": [100.0, 101.0, 99.0, 98.0], "time": times}
    frame = kind(columns)
    seconds = [time.replace(tzinfo=UTC).timestamp() for time in times]
    with sl.Engine(headed(replace(STRICT, others=(RAIN,)))) as engine:
        Y = engine.open("a").run(np.column_stack([seconds, columns["flow"], columns["rain"]]))
    with sl.Client(server.address) as client, client.open("run") as run:
        for strange in (kind(columns | {"time": [None, *times[1:]]}), kind(columns | {"wind": 1})):
            with pytest.raises(InputError, match=r"a time is NaT|has unknown wind"):
                run.run(strange)
            with pytest.raises(InputError, match=r"a time is NaT|has unknown wind"):
                list(run.stream(strange))
        with pytest.raises(InputError, match="a time is 'soon'"):
            run.step(["soon", 100.0, 0.0])
        assert run.seq == 0
        assert run.run(frame).tobytes() == Y.tobytes()
        with client.open("stream") as stream, client.open("step") as step:
            assert np.stack(list(stream.stream(columns))).tobytes() == Y.tobytes()
            text = {"flow": 100.0, "time": "2024-03-01T01:00+01:00", "rain": 0.0}
            assert step.step(text).tobytes() == Y[0].tobytes()
            assert client.group([step]).step(frame[1:2]).tobytes() == Y[1].tobytes()


def test_long_runs_are_looked_at_before_their_first_piece(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlstm.service.client.models.RUN_BYTES_MAX", 1)
    x = readings(replace(STRICT, others=(RAIN,)), 1, 9)
    with sl.Client(server.address) as client, client.open("long") as session:
        for column, sentence in ((1, "reading 8 lacks flow"), (0, r"input\[8, 0\] is nan")):
            bad = x.copy()
            bad[-1, column] = NAN
            with pytest.raises(NonFiniteError, match=sentence):
                session.run(bad)
        assert session.seq == 0
        with sl.Engine(headed(replace(STRICT, others=(RAIN,)))) as engine:
            assert session.run(x).tobytes() == engine.open("a").run(x).tobytes()


def test_asyncio(server: Server) -> None:
    async def main() -> None:
        x = readings(replace(STRICT, others=(RAIN,)), 2, 5)
        with sl.Engine(headed(replace(STRICT, others=(RAIN,)))) as engine:
            twin = engine.open("a")
            twin.run(x)
            async with sl.AsyncClient(server.address) as client:
                session = await client.open("async")
                await session.run(x)
                together = session.forecast(2), session.counters(), session.forecast(9)
                two, counts, nine = await asyncio.gather(*together)
                assert two.tobytes() == twin.forecast(2).tobytes()
                assert nine.tobytes() == twin.forecast(9).tobytes()
                assert counts == twin.counters()
                assert (two.dtype, two.flags.writeable) == (np.float64, True)
                await session.close()

    asyncio.run(main())


# --- policies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", POLICIES, ids=lambda h: f"{h.missing}-{h.late}-{h.spacing}")
def test_every_policy(head: Head, disk: sqlite3.Connection) -> None:
    """Each reading alone, as embedded: answered or refused, also over a restart."""
    model = headed(head)
    talk = start(model, disk)
    with sl.Engine(model) as engine:
        twin = engine.open("a")
        at = talk.open("a")
        refused = 0
        for k, reading in enumerate(readings(head, 3, 80, refusable=True)):
            if k == 40:
                talk = start(model, disk)
                at = talk.open("a", resume=True)
                counted = talk.protocol.stats(0)["models"]["flow"]["readings"]
                assert set(counted.values()) == {0}  # what was replayed is not counted again
            message = step(at, twin.seq + 1, reading)
            expected = asked(twin, reading)
            assert answer(talk, *message) == expected
            refused += expected[0] != "ok"
            if expected[0] == "ok":
                assert answer(talk, *message) == expected  # a repeat, whatever bits NaN has
        assert (refused > 0) == ("reject" in (head.missing, head.late))
        assert talk.ask("counters", 0, *at)[2:] == [twin.seq, twin.counters()]


@pytest.mark.blas
@pytest.mark.parametrize("kernel", ["", "blas"])  # with the second each is stepped alone
def test_a_refused_reading_takes_part_in_no_micro_batch(
    kernel: str, disk: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel:
        monkeypatch.setenv(kernels.VARIABLE, kernel)
    model = headed(STRICT)
    talk = start(model, disk)
    engine = sl.Engine(model)
    twins = [engine.open(name) for name in "abcde"]
    ats = [talk.open(name) for name in "abcde"]
    now = 1.7e9
    for rows in ([[now, 100.0]] * 5, together(now), [[now + 2 * HOUR_S, 101.0]] * 5):
        for at, twin, x in zip(ats, twins, rows, strict=True):
            talk.send("step", twin.name, *step(at, twin.seq + 1, x)[2:])
        replies = {reply[1]: reply for _, reply in talk.settle()}
        for twin, x in zip(twins, rows, strict=True):
            status, _, *values = replies[twin.name]
            assert ((status, *values) if status == "ok" else (values[0],)) == asked(twin, x)
            if status != "ok":
                assert "reading 0" in values[1] or "input[1] is inf" in values[1]
    assert [twin.seq for twin in twins] == [3, 2, 2, 2, 3]
    assert talk.protocol.stats(0)["models"]["flow"]["micro_batches"] == 3
    talk = start(model, disk)
    assert talk.protocol.stats(0)["recovered_events"] == 12
    for twin in twins:
        same(talk, talk.open(twin.name, resume=True), twin)


def together(now: float) -> list[list[float]]:
    """The second and fourth are refused by a policy, the third is no reading."""
    hour = now + HOUR_S
    return [[hour, 99.0], [hour, NAN], [hour, np.inf], [now, 99.0], [hour, 98.0]]


def same(talk: Talk, at: At, twin: Any) -> None:
    _, _, seq, blob = talk.ask("state", 0, *at)
    assert seq == twin.seq
    np.testing.assert_array_equal(sl.State.from_bytes(blob).numbers, twin.state().numbers)
    assert talk.ask("forecast", 0, *at, 5)[2:] == [seq, twin.forecast(5).tobytes()]
    assert talk.ask("counters", 0, *at)[2:] == [seq, twin.counters()]


@pytest.mark.blas
@pytest.mark.parametrize("kernel", ["", "blas"])
def test_steps_and_runs_are_refused_whole(
    kernel: str, disk: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel:
        monkeypatch.setenv(kernels.VARIABLE, kernel)
    model = headed(STRICT)
    talk = start(model, disk)
    ats = [talk.open(name) for name in "ab"]
    handles, epochs = zip(*ats, strict=True)
    engine = sl.Engine(model)
    twins = [engine.open(name) for name in "ab"]

    def steps(rows: Any) -> tuple[Any, ...]:
        seqs = tuple(twin.seq + 1 for twin in twins)
        return "steps", 0, handles, epochs, seqs, None, np.array(rows, "<f8").tobytes()

    def step_twins(rows: Any) -> None:
        for twin, x in zip(twins, rows, strict=True):  # BLAS promises nothing of a group
            twin.step(x)

    good, later = [[1e9, 100.0], [1e9, 101.0]], [[2e9, 100.0], [2e9, 101.0]]
    assert answer(talk, *steps(good))[0] == "ok"
    step_twins(good)
    assert answer(talk, *steps([later[0], [2e9, NAN]])) == ("NON_FINITE",)
    status, _, code, sentence, _ = talk.ask(*steps([later[0], good[1]]))
    assert (status, code) == ("error", "INPUT")
    assert "reading 1" in sentence
    for rows in ([later[0], later[0]], [later[0], [3e9, NAN]]):
        message = "run", 0, *ats[0], 2, None, np.array(rows, "<f8").tobytes()
        assert answer(talk, *message) == asked_run(twins[0], rows)
    assert talk.ask("state", 0, *ats[1])[2] == 1
    assert answer(talk, *steps(later))[0] == "ok"
    step_twins(later)
    talk = start(model, disk)
    for twin in twins:
        same(talk, talk.open(twin.name, resume=True), twin)


def asked_run(twin: Any, rows: Any) -> tuple[Any, ...]:
    with pytest.raises(InputError) as caught:
        twin.run(rows)
    return (caught.value.code,)


# --- whatever happens -----------------------------------------------------------------------------


class Readings(Feeds):
    """Feeds of readings; a number says when and what: late, repeated, with gaps, missing."""

    def x(self, number: float, rows: int = 1) -> Any:
        n = number + np.arange(rows)
        flow = np.where(n % 3 == 1, NAN, 100 + n)
        rain = np.where(n % 4 == 2, NAN, n / 8)
        return np.column_stack([1.7e9 + HOUR_S * n, flow, rain])


@pytest.mark.parametrize("resident", [None, 2])
@pytest.mark.blas
@pytest.mark.parametrize(("dtype", "kernel"), [("f4", ""), ("f4", "blas"), ("f8", "")])
@settings(max_examples=15, deadline=None)
@given(actions=ACTIONS)
def test_any_schedule(
    dtype: str, kernel: str, resident: int | None, actions: list[tuple[str, str, int]]
) -> None:
    disk = sqlite3.connect(":memory:", isolation_level=None)
    model = headed(replace(HOURLY, others=(RAIN,), missing="predict"), dtype=dtype)

    def restart(now: float) -> Talk:
        return start(model, disk, max_resident=resident, now=now)

    with pytest.MonkeyPatch.context() as patch:
        if kernel:
            patch.setenv(kernels.VARIABLE, kernel)
        with sl.Engine(model) as oracle:
            feeds = Readings(restart, oracle, bulk_max=resident or 4)
            for action in actions:
                feeds.act(*action)
            feeds.act("restart", "a", 1)
            feeds.finish()
            for feed in feeds.feeds.values():
                forecast = feeds.talk.ask("forecast", 0, *feed.at, 6, peer=feed.peer)
                assert forecast[2:] == [feed.twin.seq, feed.twin.forecast(6).tobytes()]
    disk.close()


def test_looks_are_in_order_and_bring_spilled_sessions_back(disk: sqlite3.Connection) -> None:
    model = headed(HOURLY)
    talk = start(model, disk, max_resident=1)
    with sl.Engine(model) as engine:
        twins = {name: engine.open(name) for name in "ab"}
        ats = {name: talk.open(name) for name in "ab"}
        for k, name in product(range(3), "ab"):
            x, (at, twin) = [1e9 + 3 * HOUR_S * k, 100.0 + k], (ats[name], twins[name])
            talk.send(*step(at, k + 1, x))
            talk.send("forecast", 1, *at, 9)
            talk.send("counters", 2, *at)
            talk.send(*step(at, k + 1, x))  # a repeat
            first, forecast, counters, again = (reply for _, reply in talk.settle())
            y = twin.step(x).tobytes()
            assert first[2:] == again[2:] == [k + 1, y]
            assert forecast[2:] == [k + 1, twin.forecast(9).tobytes()]
            assert counters[2:] == [k + 1, twin.counters()]
        for name in "abab":
            same(talk, ats[name], twins[name])
        stats = talk.protocol.stats(0)["models"]["flow"]
        assert (stats["resident"], stats["spilled"] > 5) == (1, True)
        assert stats["readings"] == engine.counters()


def test_quarantined_sessions_tell_of_their_last_good_state(disk: sqlite3.Connection) -> None:
    """No reading ruins a state; so what finds a ruin is called by hand."""
    model = headed(HOURLY)
    talk = start(model, disk)
    at = talk.open("a")
    with sl.Engine(model) as engine:
        twin = engine.open("a")
        for k, x in enumerate(holed()[:60], 1):
            assert answer(talk, *step(at, k, x)) == asked(twin, x)
        talk.protocol.shard.tables[0].states.quarantine([0])
        for again in (False, True):
            if again:
                talk = start(model, disk)
                at = talk.open("a", resume=True)
            assert answer(talk, *step(at, None, x)) == ("QUARANTINED",)
            same(talk, at, twin)
        state = twin.state()
        assert answer(talk, "restore", 0, *at, None, state.to_bytes()) == ("ok", twin.seq + 1)
        twin.restore(state)
        same(talk, at, twin)
        nobody = start(model)  # in memory no good state is kept
        at = nobody.open("a")
        nobody.protocol.shard.tables[0].states.quarantine([0])
        assert answer(nobody, "forecast", 0, *at, 1) == ("QUARANTINED",)
        assert answer(nobody, "counters", 0, *at) == ("QUARANTINED",)


def test_forks_and_states_go_both_ways() -> None:
    model = headed(HOURLY)
    talk = start(model)
    at = talk.open("a")
    with sl.Engine(model) as engine:
        twin = engine.open("a")
        twin.run(holed()[:50])
        assert answer(talk, "restore", 0, *at, 1, twin.state().to_bytes()) == ("ok", 1)
        _, _, *opened = talk.ask("fork", 0, *at, 1, "fork", 5)
        fork = twin.fork("fork")
        for k, x in enumerate(holed()[:70][50:], 1):
            assert answer(talk, *step((opened[0], opened[1]), k, x)) == asked(fork, x)
        same(talk, (opened[0], opened[1]), fork)


def test_runs_that_may_fill_gaps_are_shorter() -> None:
    for head, steps in ((HOURLY, 101), (replace(HOURLY, missing="skip"), 1)):
        sessions = start(headed(head)).protocol.shard.tables[0]
        assert sessions.bounds.run_rows == RUN_WORK_MAX // (sessions.parameters * steps)


def test_forecasts_are_bounded() -> None:
    talk = start(headed(HOURLY))
    at = talk.open("a")
    sessions = talk.protocol.shard.tables[0]
    for steps in (0, 10_001, 2**64 - 1):
        assert answer(talk, "forecast", 0, *at, steps) == ("INPUT",)
    assert sessions.bounds.forecast_steps == 65_536 // (8 * 3)
    assert sessions.bounds.forecast_work(3) == 3 * 3
    ahead = sessions.parameters + 1500 + 3 * 3 * (8 + 3) // 8
    assert sessions.bounds.forecast_work(5) == 2 * ahead + 5 * 3
    assert sessions.bounds.forecast_work(2**64 - 1) == 0
    sessions.bounds.forecast_steps = 8
    assert answer(talk, "forecast", 0, *at, 8)[0] == "ok"
    assert answer(talk, "forecast", 0, *at, 9) == ("SHAPE",)
    assert answer(talk, *step(at, 1, [1e9, 100.0]))[0] == "ok"


# --- the client by itself -------------------------------------------------------------------------


def told(talk: Talk, client: ClientProtocol, call: Call) -> Call:
    """A call that the server was asked and has answered."""
    talk.protocol.receive(b"A", client.outgoing())
    ((_, reply),) = talk.protocol.step(0.0)
    client.receive(reply, 0.0)
    assert call.error is None
    assert call.done
    return call


@pytest.fixture
def client() -> ClientProtocol:
    return ClientProtocol("here", 1.0, random.Random(0))


def test_hello_tells_the_head_without_its_residuals(client: ClientProtocol) -> None:
    names = tuple(Feature(f"column {k}", "m") for k in range(100))
    head = replace(HOURLY, others=names, residuals=(Residual(1.0, 2.0, 0.8),) * 3)
    told(start(headed(head)), client, client.say_hello(now=0.0))
    (model,) = client.models.values()
    assert model.head == replace(head, residuals=())
    assert model.dtype == np.float64


@pytest.mark.parametrize(
    ("op", "answer"),
    [
        *(("forecast", bad) for bad in (None, {}, "", b"", b"1234", bytes(24), bytes(72))),
        *(("counters", bad) for bad in (None, b"x", 5, {"missing": "many"}, {"missing": None})),
        ("counters", {"missing": math.inf}),
        *(("state", bad) for bad in (None, {}, "")),
    ],
)
def test_a_look_whose_answer_can_not_be_read(client: ClientProtocol, op: str, answer: Any) -> None:
    talk = start(headed(HOURLY))
    told(talk, client, client.say_hello(now=0.0))
    session = told(talk, client, client.open("a", None, False, now=0.0)).result
    args = [2] if op == "forecast" else []
    call = client.control(session, operations.OPERATIONS[op], *args, now=0.0)
    client.receive(wire.Encoder().ok(call.ident, (0, answer)), 0.0)
    assert isinstance(call.error, ProtocolError)


@pytest.mark.parametrize(
    "text", ['{"step_s": 1' + "0" * 400 + "}", "[" * 100_000, "{}", "7", '{"target": 3}', "x"]
)
def test_a_hello_whose_head_can_not_be_read(client: ClientProtocol, text: str) -> None:
    """One error, and nothing else comes of it."""
    talk = start(headed(HOURLY))
    call = client.say_hello(now=0.0)
    talk.protocol.receive(b"A", client.outgoing())
    ((_, reply),) = talk.protocol.step(0.0)
    info = msgpack.unpackb(reply)[3]
    info["models"][0]["head"] = text
    client.receive(wire.Encoder().ok(call.ident, (info,)), 0.0)
    assert not client.models
    assert isinstance(call.error, ProtocolError)


@pytest.mark.parametrize("dtype", ["f4,(", "O", None, 4, []])
def test_a_hello_whose_dtype_is_none(client: ClientProtocol, dtype: Any) -> None:
    talk = start(headed(HOURLY))
    call = client.say_hello(now=0.0)
    talk.protocol.receive(b"A", client.outgoing())
    ((_, reply),) = talk.protocol.step(0.0)
    info = msgpack.unpackb(reply)[3]
    info["models"][0]["dtype"] = dtype
    client.receive(wire.Encoder().ok(call.ident, (info,)), 0.0)
    assert isinstance(call.error, ProtocolError)


@pytest.mark.parametrize("alone", [False, True])
def test_each_refused_reading_counts_once(alone: bool) -> None:
    talk = start(headed(replace(HOURLY, missing="reject")))
    sessions = talk.protocol.shard.tables[0]
    sessions.one_by_one = alone
    a, b, c = (talk.open(name) for name in "abc")
    good, bad = [1e9, 100.0], [1e9, math.nan]
    for k, at in enumerate((a, b, c)):  # one micro-batch, two of it refused
        talk.send(*step(at, 1, good if k == 1 else bad))
    assert sorted(reply[0] for _, reply in talk.settle()) == ["error", "error", "ok"]
    assert sessions.measure().readings["refused"] == 2
    assert talk.code(*step(a, 1, bad)) == "NON_FINITE"
    assert sessions.measure().readings["refused"] == 3
    handles, epochs = zip(a, b, strict=True)
    rows = np.array([good, bad], "<f8").tobytes()
    assert talk.code("steps", 0, handles, epochs, None, None, rows) == "NON_FINITE"
    assert sessions.measure().readings["refused"] == 4
    assert talk.code("run", 0, *a, 1, None, rows) == "NON_FINITE"
    assert sessions.measure().readings["refused"] == 5


def test_a_look_without_an_answer_leaves_the_session_open(client: ClientProtocol) -> None:
    talk = start(headed(HOURLY))
    told(talk, client, client.say_hello(now=0.0))
    session = told(talk, client, client.open("a", None, False, now=0.0)).result
    for op, *args in (("forecast", 2), ("counters",), ("state",)):
        call = client.control(session, operations.OPERATIONS[op], *args, now=0.0)
        client.outgoing()  # which is lost
        client.tick(1e3)
        assert isinstance(call.error, ServerTimeoutError)
        told(talk, client, client.step(session, [1e9, 100.0], now=0.0))
    assert session.seq == 3
