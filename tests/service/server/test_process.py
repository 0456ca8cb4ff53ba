"""The server as a process: start, signals, addresses, hostile bytes, eviction."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

import streamlstm as sl
from service.conftest import Server, make_model
from streamlstm import errors


@pytest.fixture
def dealer(server: Server) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger = 0
        sock.rcvtimeo = 20_000
        sock.connect(server.address)
        yield sock


def ask(sock: zmq.Socket[bytes], *items: Any) -> list[Any]:
    sock.send(msgpack.packb([1, *items]))
    return list(msgpack.unpackb(sock.recv()))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_signal_ends_it_and_leaves_nothing(
    model_path: Path, tmp_path: Path, number: int, code: int, transport: str
) -> None:
    path = tmp_path / "socket"
    bind = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{path}"
    server = Server([model_path], bind)
    try:
        assert server.address.startswith(f"{transport}://")
        assert not server.address.endswith(":0")
        with sl.Client(server.address, patience_s=20) as client, client.open("a") as session:
            session.step([1, 2, 3])
    finally:
        assert server.end(number) == code
    assert [line["event"] for line in server.log] == ["listening", "draining", "stopped"]
    assert server.log[-1]["undeliverable"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_server_goes_on_without_its_logs_reader(model_path: Path) -> None:
    server = Server([model_path], "tcp://127.0.0.1:0")
    try:
        assert server.process.stderr is not None
        server.process.stderr.close()
        with sl.Client(server.address, patience_s=20) as client, client.open("a") as session:
            session.step([1, 2, 3])
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(20) == 143
    finally:
        server.process.kill()
        server.process.wait()


def test_a_signal_before_there_is_a_socket(model_path: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from streamlstm import cli\n"
        "from streamlstm.service.server.port_zmq import Port\n"
        "init = Port.__init__\n"
        "def early(*args, **how):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    init(*args, **how)\n"
        "Port.__init__ = early\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", code, "serve", model_path, "--bind", f"ipc://{tmp_path}/socket"]
    assert subprocess.run(argv, check=False, timeout=60).returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_taken_for_a_socket(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    argv = [sys.executable, "-m", "streamlstm", "serve", model_path, "--bind", f"ipc://{path}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "no socket" in done.stderr
    assert path.read_text() == "precious"


def test_replies_left_unread_are_lost_aloud(server: Server, dealer: zmq.Socket[bytes]) -> None:
    """All but the first whose reply is lost are dropped unstepped, and the client is told."""
    handle, epoch = ask(dealer, "open", 0, "deaf", None, True, None, None)[3:5]
    step = msgpack.packb([1, "step", b"i" * 60, handle, epoch, None, None, [1, 2, 3]])
    with sl.Client(server.address, patience_s=20) as client:
        before = client.stats()
        while client.stats()["overruns"] == before["overruns"]:
            for _ in range(500):
                dealer.send(step)
        dealer.send(step)
        oks = 0
        while (reply := msgpack.unpackb(dealer.recv()))[1] != "notice":
            oks += reply[1] == "ok"
        assert reply == [1, "notice", None, "overrun", []]
        reply = [1, "error", "last", "BUSY"]
        while reply[1:4] == ["error", "last", "BUSY"]:  # steps sent before the notice may wait
            dealer.send(msgpack.packb([1, "state", "last", handle, epoch]))
            while (reply := msgpack.unpackb(dealer.recv()))[2] != "last":
                oks += reply[1] == "ok"
        assert reply[1] == "ok"
        assert reply[3] - oks in (0, 1)  # the one whose reply found no room
        after = client.stats()
        assert after["undeliverable"] > before["undeliverable"]
        assert after["dropped"] > before["dropped"]
        client.open("deaf", resume=True).close()


def test_what_was_sent_before_the_signal_is_answered(model_path: Path, tmp_path: Path) -> None:
    """Every request gets a reply: done, or STOPPING."""
    server = Server([model_path], f"ipc://{tmp_path}/socket")
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.linger = 0
            sock.rcvtimeo = 20_000
            sock.connect(server.address)
            handle, epoch = ask(sock, "open", 0, "a", None, False, None, None)[3:5]
            for i in range(900):
                sock.send(msgpack.packb([1, "step", i, handle, epoch, None, None, [1, 2, 3]]))
            replies = [msgpack.unpackb(sock.recv())]
            while replies[-1][2] != 899:  # until then some may still be on their way to the server
                replies.append(msgpack.unpackb(sock.recv()))
            os.kill(server.process.pid, signal.SIGTERM)
            while len([r for r in replies if r[1] != "notice"]) < 900:
                replies.append(msgpack.unpackb(sock.recv()))
    finally:
        assert server.end() == 143
    answers = [r for r in replies if r[1] != "notice"]
    assert sorted(r[2] for r in answers) == list(range(900))
    assert {r[3] for r in answers if r[1] == "error"} <= {"STOPPING", "BUSY"}


def test_a_busy_address_is_one_sentence(server: Server, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    running = Server([model_path], f"ipc://{path}")
    try:
        for address in (server.address, f"ipc://{path}"):
            argv = [sys.executable, "-m", "streamlstm", "serve", str(model_path), "--bind", address]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 1
            assert done.stderr.startswith(f"streamlstm: can't listen on {address}")
            assert done.stderr.count("\n") == 1
        with sl.Client(running.address, patience_s=20) as client:
            client.stats()
        running.process.kill()  # leaves its socket file
        running.process.communicate()
        assert path.exists()
        running = Server([model_path], f"ipc://{path}")  # which is taken for what it is
    finally:
        assert running.end() == 143


def test_several_models(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    make_model("a").save(paths[0])
    make_model("b", inputs=2, dtype=np.float64).save(paths[1])
    server = Server(paths, "tcp://127.0.0.1:0", "--max-sessions", "2")
    try:
        with sl.Client(server.address, patience_s=20) as client:
            assert list(client.models) == ["a", "b"]
            a, b = client.open("s", model="a"), client.open("s", model="b")
            assert a.step([1, 2, 3]).dtype == np.float32
            assert b.step([1, 2]).dtype == np.float64
            with sl.Engine(sl.load(paths[1])) as engine:
                twin = engine.open("t")
                Y = client.step([client.open("t", model="b")], [[1, 2]])
                np.testing.assert_allclose(Y[0], twin.step([1, 2]), rtol=0, atol=1e-12)
            with pytest.raises(errors.InputError, match="one model"):
                client.group([a, b])
            with pytest.raises(errors.CapacityError):
                client.open("u", model="b")
            with pytest.raises(errors.ModelError, match="a, b"):
                client.open("x")
    finally:
        assert server.end() == 143


def test_eviction_is_told(model_path: Path) -> None:
    server = Server([model_path], "tcp://127.0.0.1:0", "--ttl", "0.2")
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.linger = 0
            sock.rcvtimeo = 20_000
            sock.connect(server.address)
            handle, epoch = ask(sock, "open", 0, "idle", None, False, None, None)[3:5]
            notice = msgpack.unpackb(sock.recv())  # comes by itself
            assert notice == [1, "notice", None, "evicted", [["idle", handle, epoch, 0]]]
            reply = ask(sock, "step", 1, handle, epoch, 1, None, [1, 2, 3])
            assert reply[3] == "EVICTED"
    finally:
        assert server.end() == 143
    assert {"evicted"} <= {line["event"] for line in server.log}


def test_hostile_bytes_beside_a_good_client(
    server: Server, dealer: zmq.Socket[bytes], model_path: Path
) -> None:
    """Thousands of broken messages; the good client's outputs are those of an embedded session."""
    rng = random.Random(4)
    twin = sl.Engine(sl.load(model_path)).open("good")
    done = threading.Event()
    failures: list[BaseException] = []

    def good() -> None:
        try:
            with (
                sl.Client(server.address, patience_s=60) as client,
                client.open("good") as session,
            ):
                while not done.is_set() or session.seq < 200:
                    x = np.arange(3, dtype=np.float32) * (session.seq % 7)
                    np.testing.assert_array_equal(session.step(x), twin.step(x))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=good)
    thread.start()
    handle, epoch = ask(dealer, "open", 0, "hostile", None, True, None, None)[3:5]
    undeliverable = ask(dealer, "stats", 1)[3]["undeliverable"]
    valid = [
        msgpack.packb([1, "step", 1, handle, epoch, None, None, bytes(12)]),
        msgpack.packb([1, "steps", 1, [handle], [epoch], None, None, bytes(12)]),
        msgpack.packb([1, "run", 1, handle, epoch, None, [[1, 2, 3]] * 4]),
        msgpack.packb([1, "open", 1, "x", None, True, None, None]),
        msgpack.packb([1, "restore", 1, handle, epoch, b"\x96\x01" + bytes(30)]),
        msgpack.packb([1, "hello", 1, {"a": [1, {"b": 2}]}]),
    ]
    for _ in range(100):
        burst = [mutated(rng, rng.choice(valid)) for _ in range(50)]
        for frames in burst:
            dealer.send_multipart(frames)
        got = 0
        while got < len(burst):
            got += msgpack.unpackb(dealer.recv())[1] != "notice"
    done.set()
    thread.join()
    assert failures == []
    stats = ask(dealer, "stats", 1)[3]
    assert stats["state"] == "running"
    assert stats["errors"].get("INTERNAL", 0) == 0
    assert stats["undeliverable"] == undeliverable


def mutated(rng: random.Random, frame: bytes) -> list[bytes]:
    kind = rng.randrange(6)
    if kind == 0:
        return [frame[: rng.randrange(len(frame))]]
    if kind == 1:
        return [rng.randbytes(rng.randrange(1, 100))]
    if kind == 2:
        return [frame] * rng.randrange(2, 20)
    if kind == 3:
        return [b"\xdd\x00\x00\xff\xff" * rng.randrange(1, 2000)]
    changed = bytearray(frame)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return [bytes(changed)]


def test_a_far_too_large_message_costs_the_connection_only(
    server: Server, dealer: zmq.Socket[bytes]
) -> None:
    with sl.Client(server.address, patience_s=20) as client, client.open("beside") as session:
        dealer.send(bytes((8 << 20) + 1))
        assert msgpack.unpackb(dealer.recv())[3] == "PROTOCOL"
        with dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            dealer.send(bytes((16 << 20) + 1))
            assert monitor.poll(20_000)
            dealer.disable_monitor()
        session.step([1, 2, 3])


def test_a_server_that_stood_still_evicts_nobody_whose_event_came(
    model_path: Path, tmp_path: Path
) -> None:
    """Stopped for longer than --ttl, as a paused machine is; the events lie in its socket."""
    ttl_s, sessions = 1.0, 400
    server = Server([model_path], f"ipc://{tmp_path}/socket", "--ttl", str(ttl_s))
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.linger = 0
            sock.rcvtimeo = 20_000
            sock.connect(server.address)
            names = ["silent", *(f"s{k}" for k in range(sessions))]
            opened = [ask(sock, "open", 0, name, None, False, None, None) for name in names]
            os.kill(server.process.pid, signal.SIGSTOP)
            for _, _, _, handle, epoch, *_ in opened[1:]:
                sock.send(msgpack.packb([1, "step", 0, handle, epoch, 1, None, [1, 2, 3]]))
            time.sleep(2.5 * ttl_s)
            os.kill(server.process.pid, signal.SIGCONT)
            replies = [msgpack.unpackb(sock.recv()) for _ in range(sessions)]
            assert {reply[1] for reply in replies} == {"ok"}
            notice = msgpack.unpackb(sock.recv())  # after a second that was served
            assert notice[3] == "evicted"
            assert "silent" in [name for name, *_ in notice[4]]
    finally:
        assert server.end() == 143


def test_a_client_that_vanishes_leaves_no_reply_behind(server: Server) -> None:
    with sl.Client(server.address, patience_s=20) as client:
        before = client.stats()
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.linger = 0
            sock.rcvtimeo = 20_000
            sock.connect(server.address)
            ask(sock, "open", 0, "vanishing", None, False, None, None)
        taken = client.open("vanishing", resume=True)  # and the notice has nowhere to go
        taken.step([1, 2, 3])
        after = client.stats()
        assert after["undeliverable"] <= before["undeliverable"] + 1
        taken.close()


def test_a_server_with_threads_gives_the_bits_of_an_embedded_engine(tmp_path: Path) -> None:
    """A bulk large enough to be shared."""
    path = tmp_path / "wide.safetensors"
    model = make_model("wide", units=128)
    model.save(path)
    x = np.random.default_rng(0).standard_normal((3, 300, 3)).astype(np.float32)
    server = Server([path], "tcp://127.0.0.1:0", "--threads", "2")
    try:
        with sl.Client(server.address, patience_s=20) as client, sl.Engine(model) as engine:
            remote = client.group([client.open(f"s{k}") for k in range(300)])
            embedded = engine.group([engine.open(f"s{k}") for k in range(300)])
            for batch in x:
                assert remote.step(batch).tobytes() == embedded.step(batch).tobytes()
    finally:
        assert server.end() == 143
