"""What a client believes after time-outs, notices and strange replies: a server played by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

import streamlstm as sl
from streamlstm import errors
from streamlstm.service.client import refusals

HELLO: dict[str, Any] = {
    "models": [
        {
            "name": "fold",
            "fingerprint": "",
            "dtype": "float32",
            "inputs": [["a", ""]],
            "outputs": [["y", ""]],
            "window": 4,
        }
    ],
    "limits": {"pending_messages": 8},
    "boot": 1,
    "clock": 100.0,
}
Y = np.float32(1).tobytes()


class Puppet:
    """A ROUTER in a thread whose answers a test sets: request items -> list of reply items."""

    def __init__(self) -> None:
        self.answers: Callable[[list[Any]], list[Any]] = self.usual
        self.seen: list[list[Any]] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind("tcp://127.0.0.1:0")
        self.address = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def usual(self, request: list[Any]) -> list[Any]:
        _, op, ident, *fields = request
        values = {
            "hello": [HELLO],
            "open": [5, 1, 0, "fold", ""],
            "step": [fields[2] if len(fields) > 2 else 0, Y],
            "steps": [fields[2], Y + Y] if op == "steps" else [],
            "run": [fields[2] + len(fields[4]) // 4 - 1, fields[4]] if op == "run" else [],
            "close": [0],
            "stats": [{}],
        }[op]
        return [[1, "ok", ident, *values]]

    def _run(self) -> None:
        while True:
            peer, frame = self._socket.recv_multipart()
            if frame == b"end":
                break
            request = msgpack.unpackb(frame)
            self.seen.append(request)
            for reply in self.answers(request):
                raw = reply if isinstance(reply, bytes) else msgpack.packb(reply)
                self._socket.send_multipart([peer, raw])

    def end(self) -> None:
        with self._context.socket(zmq.DEALER) as sock:
            sock.connect(self.address)
            sock.send(b"end")
            self._thread.join()
        self._socket.close()
        self._context.term()


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    puppet = Puppet()
    yield puppet
    puppet.end()


@pytest.fixture
def client(puppet: Puppet) -> Iterator[sl.Client]:
    with sl.Client(puppet.address, patience_s=0.3) as client:
        yield client


def test_after_a_time_out_a_session_does_not_go_on(puppet: Puppet, client: sl.Client) -> None:
    session = client.open("pump")
    session.step([1])
    puppet.answers = lambda _: []
    with pytest.raises(errors.ServerTimeoutError, match="no answer to step"):
        session.step([1])
    puppet.answers = puppet.usual
    sent = len(puppet.seen)
    for _ in range(2):
        with pytest.raises(errors.SequenceError, match="resume=True and compare seq"):
            session.step([1])
    assert len(puppet.seen) == sent
    assert session.seq == 1
    again = client.open("pump", resume=True)
    again.step([1])
    with pytest.raises(errors.SequenceError):
        client.group([session])


def test_a_late_reply_is_not_taken_for_another(puppet: Puppet, client: sl.Client) -> None:
    session = client.open("pump")
    held: list[Any] = []

    def hold(request: list[Any]) -> list[Any]:
        held.extend(puppet.usual(request))
        return []

    puppet.answers = hold
    with pytest.raises(errors.ServerTimeoutError):
        session.step([1])
    puppet.answers = lambda request: [*held, *puppet.usual(request)]
    assert client.stats() == {}


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\xc1",
        [2, "ok", 3],
        [1, "ok"],
        [1, "perhaps", 3, 1],
        [1, 5, 3, 1],
        [1, "error", 3],
        [1, "error", 3, "INTERNAL", "x", {}],
    ],
)
def test_a_strange_reply_leaves_the_fate_open(
    puppet: Puppet, client: sl.Client, reply: Any
) -> None:
    session = client.open("pump")
    puppet.answers = lambda _: [reply]
    with pytest.raises(errors.ServiceError):
        session.step([1])
    with pytest.raises(errors.SequenceError):
        session.step([1])


def test_a_reply_with_too_few_values(puppet: Puppet, client: sl.Client) -> None:
    session = client.open("pump")
    puppet.answers = lambda request: [[1, "ok", request[2]]]
    with pytest.raises(errors.ProtocolError, match="the reply to step can't be read"):
        session.step([1])
    with pytest.raises(errors.SequenceError):
        session.step([1])


@pytest.mark.parametrize(
    "entries",
    [
        [["pump", 5, 1, 0, "more"]],
        [["pump"], 3, None, [{}, {}, {}, {}], ["pump", 5, 1, 0]],
    ],
)
def test_a_notice_with_unknown_items(puppet: Puppet, client: sl.Client, entries: Any) -> None:
    session = client.open("pump")
    puppet.answers = lambda request: [
        [1, "notice", None, {}, []],
        [1, "notice", None, "evicted", entries, "more"],
        *puppet.usual(request),
    ]
    assert client.stats() == {}
    assert session.closed


def test_what_the_model_takes(puppet: Puppet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HELLO["models"][0], "run_rows", 2)
    monkeypatch.setitem(HELLO["models"][0], "largest", [10.0])
    with sl.Client(puppet.address, patience_s=20) as client:
        session = client.open("pump")
        assert session.step(3.0).tolist() == [1]  # one input: a bare number will do
        sent = len(puppet.seen)
        np.testing.assert_array_equal(session.run(np.full((5, 1), 10)), np.full((5, 1), 10))
        assert session.seq == 6
        assert [len(request[7]) for request in puppet.seen[sent:]] == [8, 8, 4]
        for bad in (10.5, -11, np.nan, np.inf):
            with pytest.raises(errors.NonFiniteError, match=r"input\[4, 0\] is"):
                session.run([[1], [2], [3], [4], [bad]])
        assert len(puppet.seen) == sent + 3


@pytest.mark.parametrize("code", ["SESSION_CLOSED", "FENCED", "EVICTED", "SESSION_UNKNOWN"])
def test_closing_what_is_lost_is_harmless(puppet: Puppet, client: sl.Client, code: str) -> None:
    session = client.open("pump")
    puppet.answers = lambda request: (
        puppet.usual(request)
        if request[1] == "hello"
        else [[1, "error", request[2], code, "because", {}]]
    )
    session.close()
    session.close()
    assert session.closed


@pytest.mark.parametrize("code", ["BUSY", "STOPPING", "SHAPE", "SEQUENCE", "PROTOCOL"])
def test_a_refusal_changes_nothing(
    puppet: Puppet, client: sl.Client, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("STOPPING_S", "RETRY_S"):  # no second try may be on its way at the end
        monkeypatch.setattr(refusals, pause, 60.0)
    session = client.open("pump")
    puppet.answers = lambda request: [[1, "error", request[2], code, "because", {}]]
    with pytest.raises(errors.StreamLSTMError, match="because") as caught:
        session.step([1])
    assert type(caught.value).code == code
    puppet.answers = puppet.usual
    session.step([1])
    assert session.seq == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [("evicted", errors.SessionEvictedError), ("fenced", errors.SessionFencedError)],
)
def test_notices_mark_their_session(
    puppet: Puppet, client: sl.Client, kind: str, error: type[Exception]
) -> None:
    session = client.open("pump")
    notice = [1, "notice", None, kind, [["pump", 5, 1, 0], ["other", 6, 1, 0]]]
    puppet.answers = lambda request: [notice, [1, "notice", None, "news"], *puppet.usual(request)]
    client.stats()
    assert session.closed
    sent = len(puppet.seen)
    with pytest.raises(error):
        session.step([1])
    session.close()
    assert len(puppet.seen) == sent


def test_stopping_is_told(puppet: Puppet, client: sl.Client) -> None:
    puppet.answers = lambda request: [
        [1, "notice", None, "stopping", []],
        *puppet.usual(request),
    ]
    client.stats()
    assert client.stopping


def test_an_interrupted_group_leaves_all_fates_open(puppet: Puppet, client: sl.Client) -> None:
    puppet.answers = lambda request: (
        [[1, "ok", request[2], int(request[3]), 1, 0, "fold", ""]] if request[1] == "open" else []
    )
    a, b = client.open("1"), client.open("2")
    group = client.group([a, b])
    with pytest.raises(errors.ServerTimeoutError):
        group.step([[1], [1]])
    for stuck in (a, b, group):
        with pytest.raises(errors.SequenceError):
            stuck.step([[1], [1]] if stuck is group else [1])


def test_asyncio_time_outs_and_cancelling(puppet: Puppet) -> None:
    async def scenario() -> None:
        async with sl.AsyncClient(puppet.address, patience_s=0.3) as client:
            a, b, c = [await client.open(name) for name in "abc"]
            asked = asyncio.Event()
            loop = asyncio.get_running_loop()

            def silent(_: list[Any]) -> list[Any]:
                loop.call_soon_threadsafe(asked.set)
                return []

            puppet.answers = silent
            with pytest.raises(errors.ServerTimeoutError):
                await a.step([1])
            asked.clear()
            task = asyncio.create_task(b.step([1]))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            puppet.answers = lambda _: [b"\xc1"]
            with pytest.raises(errors.ProtocolError):
                await c.step([1])
            puppet.answers = puppet.usual
            for session in (a, b, c):
                with pytest.raises(errors.SequenceError, match="resume=True"):
                    await session.step([1])
            assert await client.stats() == {}

    asyncio.run(scenario())


def test_asyncio_survives_strange_messages(puppet: Puppet) -> None:
    async def scenario() -> None:
        async with sl.AsyncClient(puppet.address, patience_s=20) as client:
            session = await client.open("pump")
            puppet.answers = lambda request: [
                [1, "notice", None, "evicted", [["pump", 5, 1, 0, "more"], [{}, {}, {}, {}]]],
                *puppet.usual(request),
            ]
            assert await client.stats() == {}
            assert session.closed
            puppet.answers = lambda _: [[1, "ok", {}, {}]]
            with pytest.raises(errors.ProtocolError, match="can't be read"):
                await client.stats()
            puppet.answers = puppet.usual
            assert await client.stats() == {}

    asyncio.run(scenario())


def test_asyncio_closing_tells_those_who_wait(puppet: Puppet) -> None:
    async def scenario() -> None:
        client = sl.AsyncClient(puppet.address, patience_s=100)
        await client.connect()
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        session = await client.open("pump")

        def silent(_: list[Any]) -> list[Any]:
            loop.call_soon_threadsafe(asked.set)
            return []

        puppet.answers = silent
        waiting = asyncio.create_task(session.step([1]))
        await asked.wait()
        await client.close()
        with pytest.raises(errors.ServiceError, match="closed before the answer came"):
            await waiting
        with pytest.raises(errors.ServiceError, match="not connected"):
            await session.step([1])

    asyncio.run(scenario())
