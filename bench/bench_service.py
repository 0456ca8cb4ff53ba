"""The service beside a bare echo of the same bytes, in one interleaved run.

python bench/bench_service.py [--rounds N] [--json PATH]

Three questions, for (I, H) = (16, 64):
round trip   `Client.step` against a DEALER that sends the same bytes to a bare ROUTER echo,
             p50 and p99; short turns of each alternate, so that both see the same machine.
open loop    events at half of the service's capacity, sent at their due times whether or not
             replies are there; latency counts from the due time. The echo gets the same rate.
bulk         `steps` of 512 sessions from one client against an embedded `group.step`.

Latencies in us. Ratios are what to look at; absolutes are one machine's on one day.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq

import machine
import streamlstm as sl
from streamlstm import blas_threads
from streamlstm.service import wire

INPUTS, UNITS, BULK = 16, 64, 512
HERE = Path(__file__).parent
POLLIN = int(zmq.POLLIN)


def make_model(path: Path) -> None:
    rng = np.random.default_rng(7)
    bound = UNITS**-0.5

    def weights(*shape: int) -> Any:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    lstm = sl.LSTM(weights(4 * UNITS, INPUTS), weights(4 * UNITS, UNITS), weights(4 * UNITS))
    sl.Model([lstm, sl.Dense(weights(1, UNITS), weights(1))], name="bench").save(path)


@contextlib.contextmanager
def process(*argv: str, ready: Callable[[Any], str]) -> Iterator[str]:
    """A child process and the address it listens on."""
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield ready(child)
    finally:
        child.terminate()
        child.communicate(timeout=10)


@contextlib.contextmanager
def server(model: Path, bind: str, *options: str) -> Iterator[str]:
    def ready(child: Any) -> str:
        for line in child.stderr:
            if line.startswith("{") and (log := json.loads(line))["event"] == "listening":
                return str(log["endpoint"])
        raise RuntimeError("the server did not start")

    argv = (sys.executable, "-P", "-m", "streamlstm", "serve", str(model), "--bind", bind)
    argv += options
    with process(*argv, ready=ready) as address:
        yield address


@contextlib.contextmanager
def echo(bind: str) -> Iterator[str]:
    argv = (sys.executable, str(HERE / "echo_server.py"), bind)
    with process(*argv, ready=lambda child: str(child.stdout.readline().strip())) as address:
        yield address


def percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(np.array(seconds) * 1e6, [50, 90, 99])
    return {"p50_us": float(p50), "p90_us": float(p90), "p99_us": float(p99)}


def timed(call: Callable[[], object], count: int, into: list[float]) -> None:
    clock = time.perf_counter
    for _ in range(count):
        start = clock()
        call()
        into.append(clock() - start)


@dataclass
class Pair:
    """A client's session, and an echo socket with the same bytes."""

    session: Any
    sock: zmq.Socket[bytes]
    request: bytes
    x: Any


@contextlib.contextmanager
def pair(model: Path, transport: str, folder: Path, *options: str) -> Iterator[Pair]:
    def bind(name: str) -> str:
        return "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{folder}/{name}"

    with (
        server(model, bind("server"), *options) as server_address,
        echo(bind("echo")) as echo_address,
        sl.Client(server_address) as client,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as sock,
        client.open("bench") as session,
    ):
        sock.linger = 0
        sock.connect(echo_address)
        x = np.linspace(-1, 1, INPUTS, dtype=np.float32)
        fields = (session._core.handle, session.epoch, 10_000, None, x.tobytes())
        yield Pair(session, sock, wire.Encoder().request("step", 10_000, fields), x)


def round_trip(p: Pair, rounds: int) -> dict[str, Any]:
    ours: list[float] = []
    bare: list[float] = []

    def echo_once() -> None:
        p.sock.send(p.request)
        p.sock.recv()

    timed(lambda: p.session.step(p.x), 500, [])
    timed(echo_once, 500, [])
    for _ in range(rounds):
        timed(lambda: p.session.step(p.x), 200, ours)
        timed(echo_once, 200, bare)
    step, plain = percentiles(ours), percentiles(bare)
    ratio = step["p50_us"] / plain["p50_us"]
    return {"step": step, "echo": plain, "p50_ratio": ratio, "bytes": len(p.request)}


# --- open loop ------------------------------------------------------------------------------------


def paced(sock: zmq.Socket[bytes], requests: list[bytes], rate: float) -> list[float]:
    """Latency of each request, counted from its due time; replies are taken as they come.

    It sleeps between events instead of spinning: on two CPUs a spinning sender would measure
    only itself. So the kernel's timer slack, about 50 us, is in both latencies.

    Replies are in the order of the requests: all are of one peer, and each session has at
    most one message in a micro-batch.
    """
    clock = time.perf_counter
    start = clock() + 0.01
    sent = done = 0
    readable = sock.get(zmq.FD)
    latencies: list[float] = []
    while done < len(requests):
        while sent < len(requests) and clock() >= start + sent / rate:
            sock.send(requests[sent])
            sent += 1
        wait_s = start + sent / rate - clock() if sent < len(requests) else 1.0
        if wait_s > 0:
            select.select([readable], [], [], wait_s)
        while int(sock.get(zmq.EVENTS)) & POLLIN:
            sock.recv()
            latencies.append(clock() - (start + done / rate))
            done += 1
    return latencies


def capacity(sock: zmq.Socket[bytes], requests: list[bytes], window: int = 64) -> float:
    """Single-event messages per second with `window` of them on their way."""
    start = time.perf_counter()
    for request in requests[:window]:
        sock.send(request)
    for request in requests[window:]:
        sock.recv()
        sock.send(request)
    for _ in requests[:window]:
        sock.recv()
    return len(requests) / (time.perf_counter() - start)


class Events:
    """Step requests over many sessions of one raw connection, in turn."""

    def __init__(self, sock: zmq.Socket[bytes], x: Any, sessions: int = 64) -> None:
        self._encoder = wire.Encoder()
        self._x = x.tobytes()
        decode = wire.Decoder().reply
        self._handles = []
        for i in range(sessions):
            sock.send(self._encoder.request("open", i, (f"open-loop-{i}", None, False, None, None)))
            self._handles.append(decode(sock.recv())[3:5])

    def take(self, count: int) -> list[bytes]:
        fields = [(handle, epoch, None, None, self._x) for handle, epoch in self._handles]
        return [self._encoder.request("step", i, fields[i % len(fields)]) for i in range(count)]


def open_loop(p: Pair, rounds: int) -> dict[str, Any]:
    address = p.session._client.address
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger = 0
        sock.connect(address)
        events = Events(sock, p.x)
        top = float(np.median([capacity(sock, events.take(5000)) for _ in range(3)]))
        rate = top / 2
        ours = []
        bare = []
        for _ in range(rounds):
            requests = events.take(1000)
            ours.append(percentiles(paced(sock, requests, rate)))
            bare.append(percentiles(paced(p.sock, requests, rate)))
    step, plain = middle(ours), middle(bare)
    return {
        "capacity_per_s": top,
        "rate_per_s": rate,
        "step": step,
        "echo": plain,
        "p99_ratio": step["p99_us"] / plain["p99_us"],
    }


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median over rounds of each figure: a virtual machine's pauses hit few of them."""
    return {key: float(np.median([figures[key] for figures in rounds])) for key in rounds[0]}


async def bulk_in_flight(address: str, X: Any, rounds: int) -> float:
    """steps/s with two messages of 512 sessions each on their way."""
    async with sl.AsyncClient(address) as client:
        groups = []
        for name in "ab":
            sessions = [await client.open(f"flight-{name}-{i}") for i in range(BULK)]
            groups.append(client.group(sessions))

        async def many(group: Any) -> None:
            for _ in range(rounds):
                await group.step(X)

        start = time.perf_counter()
        await asyncio.gather(*map(many, groups))
        seconds = time.perf_counter() - start
        for group in groups:
            await asyncio.gather(*(session.close() for session in group.sessions))
    return 2 * rounds * BULK / seconds


def bulk(p: Pair, model: Path, rounds: int) -> dict[str, Any]:
    client = p.session._client
    X = np.random.default_rng(1).standard_normal((BULK, INPUTS)).astype(np.float32)
    ours: list[float] = []
    embedded: list[float] = []
    blas_threads.use_one_thread()  # as the server does
    with sl.Engine(sl.load(model)) as engine:
        group = engine.group([engine.open(f"bulk-{i}") for i in range(BULK)])
        remote = client.group([client.open(f"bulk-{i}") for i in range(BULK)])
        for _ in range(rounds):
            timed(lambda: remote.step(X), 10, ours)
            timed(lambda: group.step(X), 10, embedded)
        for session in remote.sessions:
            session.close()
    rate, top = (BULK / float(np.median(times)) for times in (ours, embedded))
    two = asyncio.run(bulk_in_flight(client.address, X, 10 * rounds))
    return {
        "steps_per_s": rate,
        "in_flight_steps_per_s": two,
        "embedded_steps_per_s": top,
        "ratio": rate / top,
        "in_flight_ratio": two / top,
    }


# --- report ---------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    lines = [f"{'':24}{'ours':>12}{'bare':>12}{'ratio':>8}{'bound':>8}"]

    def line(what: str, ours: float, bare: float, ratio: float, bound: str) -> None:
        lines.append(f"{what:24}{ours:12,.1f}{bare:12,.1f}{ratio:8.2f}{bound:>8}")

    for transport in ("tcp", "ipc"):
        got = results[transport]
        trip, loop, many = got["round_trip"], got["open_loop"], got["bulk"]
        step, plain = trip["step"], trip["echo"]
        line(f"{transport} step p50 us", step["p50_us"], plain["p50_us"], trip["p50_ratio"], "1.6")
        ratio = step["p99_us"] / plain["p99_us"]
        line(f"{transport} step p99 us", step["p99_us"], plain["p99_us"], ratio, "")
        step, plain = loop["step"], loop["echo"]
        ratio = step["p50_us"] / plain["p50_us"]
        line(f"{transport} half load p50 us", step["p50_us"], plain["p50_us"], ratio, "")
        line(
            f"{transport} half load p99 us",
            step["p99_us"],
            plain["p99_us"],
            loop["p99_ratio"],
            "3",
        )
        line(
            f"{transport} bulk steps/ms",
            many["steps_per_s"] / 1e3,
            many["embedded_steps_per_s"] / 1e3,
            many["ratio"],
            ">0.5",
        )
        line(
            f"{transport} bulk, 2 in flight",
            many["in_flight_steps_per_s"] / 1e3,
            many["embedded_steps_per_s"] / 1e3,
            many["in_flight_ratio"],
            "",
        )
        lines.append(f"{transport} capacity {loop['capacity_per_s']:,.0f} single events/s")
    return "\n".join(lines)


def measure(rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine.facts()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "bench.safetensors"
        make_model(model)
        for transport in ("tcp", "ipc"):
            with pair(model, transport, folder) as p:
                results[transport] = {
                    "round_trip": round_trip(p, rounds),
                    "open_loop": open_loop(p, max(5, rounds // 2)),
                    "bulk": bulk(p, model, max(5, rounds)),
                }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    results = measure(args.rounds)
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
