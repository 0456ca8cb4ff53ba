"""Ten times what the server can do, from 500 connections; each event is stepped once or refused.

python tests/campaigns/overload.py [--seconds S] [--clients N] [--times X]

A model of about 1 ms a step (its size is measured at the start) is served with --state. A
few processes hold the clients' connections, raw ZeroMQ and cheap: they share the CPUs with the
server. First all of them ask one event at a time, which gives the server's capacity; then they
send at ten times that rate, without waiting for replies. A polite client of its own asks
one event at a time before, meanwhile and after. Then

    sent = answered + refused, for every client, nothing lost and no reply too many,
    the server has counted as many events as were answered, and as many refusals,
    each session's seq is its number of answers, and
    outputs and final states of a sample are an embedded engine's, bit for bit,

or the exit code is not 0. Reported: what was offered really, the server's memory, the polite
client's latency, and how long after the load's end a 100 ms window's p50 is below twice that
of before (target: 1 s).
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

import streamlstm as sl
from live_server import Server, percentiles, random_model
from streamlstm import blas_threads

Array = NDArray[Any]

INPUTS, LAYERS, OUTPUTS = 8, 2, 2
STEP_S = 1e-3
UNITS = range(128, 2048, 64)
EVENTS = 64
"""Different events; number n is event n % EVENTS."""

PROCESSES = 2
SAMPLE = 20
"""Clients whose outputs are kept."""

CAPACITY_S = 3.0
CAPACITY_CLIENTS = 64
QUIET_S = 1.0
AFTER_S = 3.0
REPLY_S = 60.0
WINDOW_S = 0.1


def events() -> Array:
    return np.random.default_rng(3).standard_normal((EVENTS, INPUTS), np.float32)


def slow_model() -> tuple[sl.Model, float]:
    """A model of about STEP_S a step, and what a step takes."""
    x = events()[0]
    blas_threads.use_one_thread()  # as the server does
    for units in UNITS:
        model = random_model(INPUTS, units, OUTPUTS, LAYERS)
        with sl.Engine(model, max_sessions=1) as engine:
            session = engine.open("measured")
            took_s = []
            for _ in range(9):
                start_s = time.perf_counter()
                session.step(x)
                took_s.append(time.perf_counter() - start_s)
        if (step_s := float(np.median(took_s))) >= STEP_S:
            break
    return model, step_s


# --- the clients ----------------------------------------------------------------------------------


@dataclass
class Load:
    """One connection with one session. Events carry no seq: at most once, never sent again."""

    sock: zmq.Socket[bytes]
    handle: int
    epoch: int
    keep: bool
    sent: int = 0
    answered: int = 0
    refused: int = 0
    others: Counter[str] = field(default_factory=Counter)
    outputs: list[tuple[int, int, bytes]] = field(default_factory=list)  # ident, seq, y

    def __post_init__(self) -> None:
        # A message is these around its id, so that none needs to be packed.
        head = msgpack.packb([1, "step"])
        self._head = b"\x98" + head[1:] + b"\xce"
        fields = [msgpack.packb(item) for item in (self.handle, self.epoch, None, None)]
        self._tails = [b"".join([*fields, msgpack.packb(x.tobytes())]) for x in events()]

    @property
    def waiting(self) -> int:
        return self.sent - self.answered - self.refused - self.others.total()

    def send(self) -> bool:
        """The next event; False if the socket takes no more."""
        n = self.sent
        try:
            self.sock.send(
                self._head + struct.pack(">I", n) + self._tails[n % EVENTS], zmq.DONTWAIT
            )
        except zmq.Again:
            return False
        self.sent += 1
        return True

    def read(self) -> None:
        """Take all replies that are there."""
        try:
            while True:
                self._take(self.sock.recv(zmq.DONTWAIT))
        except zmq.Again:
            pass

    def _take(self, reply: bytes) -> None:
        if reply[3:5] == b"ok":
            self.answered += 1
            if self.keep:
                self.outputs.append(tuple(msgpack.unpackb(reply)[2:]))
        elif b"\xa4BUSY" in reply:
            self.refused += 1
        else:
            self.others[str(msgpack.unpackb(reply)[3])] += 1


def open_load(address: str, name: str, keep: bool) -> Load:
    sock = zmq.Context.instance().socket(zmq.DEALER)
    sock.linger = 0
    sock.rcvhwm = 0  # each waits for its turn to be read
    sock.rcvtimeo = round(REPLY_S * 1e3)
    sock.connect(address)
    sock.send(msgpack.packb([1, "open", 0, name, None, False, None, None]))
    reply = msgpack.unpackb(sock.recv())
    assert reply[1] == "ok", reply
    return Load(sock, reply[3], reply[4], keep)


def clients(address: str, names: list[str], keep: int, orders: Connection) -> None:
    """A process of clients: does what it is told, ("closed" or "offer", seconds, rate)."""
    zmq.Context.instance().set(zmq.MAX_SOCKETS, 2 * len(names) + 100)
    loads = [open_load(address, name, k < keep) for k, name in enumerate(names)]
    orders.send(len(loads))
    while order := orders.recv():
        kind, seconds, rate = order
        blocked = closed(loads, seconds) if kind == "closed" else offer(loads, seconds, rate)
        end_s = time.monotonic()
        drain(loads)
        figures = {
            "end_s": end_s,
            "blocked": blocked,
            "sent": [load.sent for load in loads],
            "answered": [load.answered for load in loads],
            "refused": [load.refused for load in loads],
            "others": dict(sum((load.others for load in loads), Counter())),
        }
        orders.send(figures)
    orders.send([load.outputs for load in loads[:keep]])
    for load in loads:
        load.sock.close()


def closed(loads: list[Load], seconds: float) -> int:
    """A few of the clients have one event on its way each: enough to fill micro-batches."""
    loads = loads[: CAPACITY_CLIENTS // PROCESSES]
    poller = zmq.Poller()
    by_sock = {}
    for load in loads:
        poller.register(load.sock, zmq.POLLIN)
        by_sock[load.sock] = load
        load.send()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for sock, _ in poller.poll(100):
            load = by_sock[sock]
            load.read()
            if not load.waiting:
                load.send()
    return 0


def offer(loads: list[Load], seconds: float, rate: float) -> int:
    """All in turn at `rate` events a second; how many the sockets did not take."""
    start_s = time.monotonic()
    tried = blocked = 0
    while (now_s := time.monotonic() - start_s) < seconds:
        due = int(now_s * rate)
        while tried < due:
            load = loads[tried % len(loads)]
            tried += 1
            load.read()
            blocked += not load.send()
            if not tried % 256 and time.monotonic() - start_s > seconds:
                return blocked
        time.sleep(0.001)
    return blocked


def drain(loads: list[Load]) -> None:
    """Wait until nothing is unanswered, then look that nothing more comes."""
    end_s = time.monotonic() + REPLY_S
    for load in loads:
        while load.waiting > 0 and time.monotonic() < end_s:
            load.sock.poll(1000)
            load.read()
    for load in loads:
        load.read()


class Clients:
    """The processes of clients."""

    def __init__(self, address: str, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes = []
        self.names: list[list[str]] = [
            [f"load-{k}" for k in range(p, count, PROCESSES)] for p in range(PROCESSES)
        ]
        for names in self.names:
            ours, theirs = spawn.Pipe()
            arguments = (address, names, SAMPLE // PROCESSES, theirs)
            process = spawn.Process(target=clients, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self._receive()

    def begin(self, kind: str, seconds: float, rate: float = 0.0) -> None:
        for pipe in self._pipes:
            pipe.send((kind, seconds, rate / PROCESSES))

    def ready(self) -> bool:
        for process in self._processes:
            assert process.is_alive(), "a process of clients ended by itself"
        return all(pipe.poll() for pipe in self._pipes)

    def figures(self) -> list[dict[str, Any]]:
        return self._receive()

    def outputs(self) -> list[list[Any]]:
        """Of the sample, by process and client."""
        for pipe in self._pipes:
            pipe.send(None)
        return self._receive()

    def _receive(self) -> list[Any]:
        found = []
        for pipe in self._pipes:
            assert pipe.poll(2 * REPLY_S), "a process of clients does not answer"
            found.append(pipe.recv())
        return found

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


# --- the campaign ---------------------------------------------------------------------------------


class Polite:
    """One event at a time; (when it was answered, latency) of each."""

    def __init__(self, address: str) -> None:
        self.client = sl.Client(address, patience_s=REPLY_S)
        self.session = self.client.open("polite")
        self._x = events()
        self.done: list[tuple[float, float]] = []

    def step(self) -> None:
        start_s = time.monotonic()
        self.session.step(self._x[self.session.seq % EVENTS])
        end_s = time.monotonic()
        self.done.append((end_s, end_s - start_s))

    def step_for(self, seconds: float) -> list[float]:
        """Latencies."""
        first, end_s = len(self.done), time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.step()
        return [latency for _, latency in self.done[first:]]

    def normal_after_s(self, end_s: float, normal_s: float) -> float:
        """Time from `end_s` to the end of the first window whose p50 is below 2 x normal_s."""
        ends, latencies = (np.array(column) for column in zip(*self.done, strict=True))
        start = end_s
        while start < ends[-1]:
            inside = (ends >= start) & (ends < start + WINDOW_S)
            if inside.any() and np.median(latencies[inside]) < 2 * normal_s:
                return start + WINDOW_S - end_s
            start += WINDOW_S / 10
        return float("inf")


def campaign(args: argparse.Namespace, folder: Path) -> str:
    """The report. Raises AssertionError."""
    model, step_s = slow_model()
    path, bind = folder / "model.safetensors", f"ipc://{folder}/socket"
    model.save(path)
    with Server(path, bind, "--state", str(folder / "state")) as server:
        polite = Polite(server.wait())
        loads = Clients(bind, args.clients)
        try:
            report = overload(args, server, polite, loads)
            check_outputs(model, polite, loads)
        finally:
            loads.end()
        assert server.end() == 143, server.log
    units = model.layers[0].units
    return f"model        {LAYERS} x {units} units, {step_s * 1e3:.2f} ms a step alone\n{report}"


def overload(args: argparse.Namespace, server: Server, polite: Polite, loads: Clients) -> str:
    polite.step_for(0.5)
    normal = polite.step_for(QUIET_S)
    loads.begin("closed", min(CAPACITY_S, args.seconds / 2))
    while not loads.ready():
        polite.step()
    capacity = sum(sum(f["answered"]) for f in loads.figures()) / min(CAPACITY_S, args.seconds / 2)
    polite.step_for(QUIET_S)

    first = len(polite.done)
    memory = [server.rss_mib]
    loads.begin("offer", args.seconds, args.times * capacity)
    while not loads.ready():
        polite.step()
        memory.append(server.rss_mib)
    figures = loads.figures()
    end_s = max(f["end_s"] for f in figures)
    during = [latency for at_s, latency in polite.done[first:] if at_s < end_s]
    polite.step_for(AFTER_S)

    counts = check_counts(figures, polite)
    offered = counts["sent"] / args.seconds
    blocked = sum(f["blocked"] for f in figures)
    before, meanwhile = percentiles(normal, 50, 95), percentiles(during, 50, 95, 100)
    normal_s = polite.normal_after_s(end_s, float(np.median(normal)))
    return "\n".join(
        [
            f"clients      {args.clients} in {PROCESSES} processes",
            f"capacity     {capacity:,.0f} events/s, one event of each client on its way",
            f"offered      {offered:,.0f} events/s for {args.seconds:g} s, "
            f"{offered / capacity:.1f} times that; {blocked:,} more found their socket full",
            "counted      {sent:,} sent = {answered:,} answered + {refused:,} refused, on both "
            "sides".format(**counts),
            f"memory       {memory[0]:.1f} MiB before, {max(memory):.1f} at most",
            "polite p50   {:.2f} ms, p95 {:.2f} ms before".format(*before),
            "             {:.2f} ms, p95 {:.2f} ms, max {:.0f} ms meanwhile".format(*meanwhile),
            f"normal       {normal_s:.2f} s after the load's end (target: 1 s)",
        ]
    )


def check_counts(figures: list[dict[str, Any]], polite: Polite) -> dict[str, int]:
    """What the clients counted in all; the server must have counted the same."""
    stats = polite.client.stats()
    for f in figures:
        assert not f["others"], f"replies that were neither done nor BUSY: {f['others']}"
        rest = np.array(f["sent"]) - f["answered"] - f["refused"]
        assert not rest.any(), f"{np.count_nonzero(rest)} clients' events lack replies, or have two"
    counts = {key: sum(sum(f[key]) for f in figures) for key in ("sent", "answered", "refused")}
    stepped, expected = stats["models"]["campaign"]["events"], counts["answered"]
    expected += polite.session.seq
    assert stepped == expected, f"the server stepped {stepped} events, {expected} were answered"
    busy = stats["errors"].get("BUSY", 0)  # the polite client's too, which it does not show
    assert busy >= counts["refused"], f"the server counts {busy} refusals, clients more: {counts}"
    assert stats["undeliverable"] == 0, stats
    for p, f in enumerate(figures):
        for index, answered in enumerate(f["answered"]):
            name = f"load-{p + index * PROCESSES}"
            seq = polite.client.open(name, resume=True).seq
            assert seq == answered, f"{name} is at {seq}, and got {answered} answers"
    return counts


def check_outputs(model: sl.Model, polite: Polite, loads: Clients) -> None:
    """The sample's outputs are those of an embedded engine that got the same events."""
    X = events()
    with sl.Engine(model) as engine:
        for names, outputs in zip(loads.names, loads.outputs(), strict=True):
            for name, kept in zip(names, outputs, strict=False):
                got = sorted((seq, ident, y) for ident, seq, y in kept)
                numbers = [seq for seq, _, _ in got]
                assert numbers == list(range(1, len(got) + 1)), f"{name}: seqs lack or repeat"
                session = engine.open(name)
                Y = session.run(X[[ident % EVENTS for _, ident, _ in got]])
                same = Y.tobytes() == b"".join(y for _, _, y in got)
                assert same, f"{name}: outputs are not those of an embedded engine"
                remote = polite.client.open(name, resume=True)
                state = sl.State.from_bytes(remote.state()).numbers
                same = state.tobytes() == session.state().numbers.tobytes()
                assert same, f"{name}: the state is not an embedded engine's"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--times", type=float, default=10.0, help="of the capacity")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end that leaves nothing
    with tempfile.TemporaryDirectory() as name:
        try:
            print(campaign(args, Path(name)))
        except AssertionError as error:
            print(f"FAILED       {error}")
            return 1
    print("verdict      every event stepped once or refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
