"""A million malformed and hostile messages, and a good client beside them.

python tests/campaigns/fuzz.py [--messages N] [--rate PER_S] [--phases N] [--seed N]

A process sends hostile messages (hostile.py) at the given rate, over connections that come and
go, some of which never read, to a server with --state. A good client steps a session all the
time. Quiet and fuzzed phases alternate, so that both see the same machine: reported are the
good client's p50 and p95 in each kind of phase and their ratios (target: 2), and the server's
memory after each fuzzed phase. Exit code 0 only if the server lives, never failed at its own
fault (INTERNAL), every output of the good client is an embedded engine's, bit for bit, and the
session is whole after a restart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

import streamlstm as sl
from hostile import NAMES, Hostile
from live_server import Server, percentiles, random_model

Array = NDArray[Any]

INPUTS, UNITS, OUTPUTS = 4, 32, 2
GOOD = "good"
GOOD_RATE = 1000.0
BLOCK = 100
CONNECTIONS = 8
MESSAGES_OF_A_CONNECTION = (200, 4000)
SHARE_DEAF = 0.1
"""Connections that never read a reply."""
SESSIONS_MAX = 1000
QUIET_SHARE = 0.5
"""A quiet phase's length, of a fuzzed one's."""
LATE_S = 0.005
OPENED = 8
"""Items of a reply to open or fork."""
REPLY_MS = 30_000


class Peer:
    """A hostile connection with sessions of its own, for so many messages."""

    def __init__(self, address: str, rng: random.Random, hostile: Hostile) -> None:
        self.sock = zmq.Context.instance().socket(zmq.DEALER)
        self.sock.linger = 0
        self.sock.rcvtimeo = REPLY_MS
        self.sock.connect(address)
        self.left = rng.randrange(*MESSAGES_OF_A_CONNECTION)
        self.deaf = rng.random() < SHARE_DEAF
        self.hostile = hostile
        while len(hostile.own) < 3:
            name = f"hostile-{rng.randrange(NAMES)}"
            self.sock.send(msgpack.packb([1, "open", "own", name, None, True, None, None]))
            reply = msgpack.unpackb(self.sock.recv())
            while reply[2] != "own":  # a notice: another peer took one
                reply = msgpack.unpackb(self.sock.recv())
            if reply[1] == "ok":  # else BUSY
                hostile.own.append((reply[3], reply[4]))

    def send(self, frames: list[bytes]) -> bool:
        """Whether there was room."""
        self.left -= 1
        try:
            self.sock.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def read(self, told: Counter[str]) -> None:
        try:
            while not self.deaf:
                reply = msgpack.unpackb(self.sock.recv(zmq.DONTWAIT), strict_map_key=False)
                told[reply[3] if reply[1] == "error" else reply[1]] += 1
                if reply[1] == "ok" and len(reply) == OPENED:
                    own = self.hostile.own
                    own[told["ok"] % len(own)] = reply[3], reply[4]
        except zmq.Again:
            pass


def fuzz(address: str, rate: float, seed: int, facts: dict[str, Any], orders: Connection) -> None:
    """The hostile process: for each order, a number, sends so many and tells what came of it."""
    os.nice(19)  # it stands for other machines: making messages must not cost the good client
    rng = random.Random(seed)

    def new_peer() -> Peer:
        return Peer(address, rng, Hostile(rng, INPUTS, GOOD, **facts))

    peers = [new_peer() for _ in range(CONNECTIONS)]
    while count := orders.recv():
        told: Counter[str] = Counter()
        start_s = due_s = time.monotonic()
        blocked = 0
        for _ in range(count):
            peer = rng.choice(peers)
            frames = peer.hostile.draw()
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            due_s += 1 / rate - min(0.0, wait_s + LATE_S)  # what is too late is not made up for
            if not peer.send(frames):
                blocked += 1
            peer.read(told)
            if not peer.left:
                peer.sock.close()
                peers[peers.index(peer)] = new_peer()
        orders.send((count - blocked, blocked, time.monotonic() - start_s, told))
    for peer in peers:
        peer.sock.close()


class GoodClient:
    """One session, stepped at GOOD_RATE at most, each output compared with an embedded engine's."""

    def __init__(self, address: str, model: sl.Model) -> None:
        self._client = sl.Client(address)
        self.session = self._client.open(GOOD)
        self._twin = sl.Engine(model).open(GOOD)
        self._rng = np.random.default_rng(0)
        self.events = 0

    def steps(self, latencies_s: list[float] | None = None) -> None:
        """A block of events. Raises AssertionError."""
        X = self._rng.standard_normal((BLOCK, INPUTS), np.float32)
        clock = time.perf_counter
        due_s = clock()
        Y = []
        for x in X:
            start_s = clock()
            Y.append(self.session.step(x))
            end_s = clock()
            if latencies_s is not None:
                latencies_s.append(end_s - start_s)
            due_s = max(due_s + 1 / GOOD_RATE, end_s)
            time.sleep(due_s - end_s)
        self.events += BLOCK
        same = np.stack(Y).tobytes() == self._twin.run(X).tobytes()
        assert same, f"the good client got other bits before event {self.session.seq}"

    def resume(self, address: str) -> None:
        """Go on with another server on the same state."""
        self._client.close()
        self._client = sl.Client(address)
        self.session = self._client.open(GOOD, resume=True)
        assert self.session.seq == self.events, f"at {self.session.seq}, not {self.events}"

    def facts(self) -> dict[str, Any]:
        """What hostile clients know of it. They can: nothing in a message is secret."""
        core = self.session._core
        return {"victim": (core.handle, core.epoch), "blob": self.session.state()}

    def stats(self) -> dict[str, Any]:
        return self._client.stats()


def campaign(args: argparse.Namespace, folder: Path) -> str:
    """The report. Raises AssertionError."""
    model = random_model(INPUTS, UNITS, OUTPUTS)
    path, bind = folder / "model.safetensors", f"ipc://{folder}/socket"
    model.save(path)
    options = ["--state", str(folder / "state"), "--max-sessions", str(SESSIONS_MAX)]
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with Server(path, bind, *options) as server:
        good = GoodClient(server.wait(), model)
        good.steps()
        facts = good.facts()
        arguments = (bind, args.rate, args.seed, facts, theirs)
        hostile = spawn.Process(target=fuzz, args=arguments, daemon=True)
        hostile.start()
        try:
            figures = phases(args, server, good, ours, hostile)
            ours.send(0)
            hostile.join(30)
        finally:
            hostile.kill()
            hostile.join()
        stats = good.stats()
        assert not stats["errors"].get("INTERNAL"), f"faults: {server.told('fault')}"
        assert server.end() == 143, server.log
    with Server(path, bind, *options) as server:
        good.resume(server.wait())
        good.steps()
        recovery_ms = 1e3 * server.told("listening")["recovery_s"]
        sessions = good.stats()["models"]["campaign"]["sessions"]
        assert server.end() == 143, server.log
    return f"{figures}\nrestart      {sessions} sessions, recovered in {recovery_ms:.0f} ms"


def phases(
    args: argparse.Namespace, server: Server, good: GoodClient, orders: Any, hostile: Any
) -> str:
    """Quiet, fuzzed, quiet ...; the report of them."""
    quiet: list[list[float]] = []
    fuzzed: list[list[float]] = []
    told: Counter[str] = Counter()
    sent = blocked = 0
    seconds = 0.0
    size = args.messages // args.phases
    orders.send(1)  # its start is no part of a phase
    orders.recv()
    memory = [server.rss_mib]
    for _ in range(args.phases):
        for kind in (quiet, fuzzed):
            kind.append([])
        end_s = time.monotonic() + QUIET_SHARE * size / args.rate
        while time.monotonic() < end_s:
            good.steps(quiet[-1])
        orders.send(size)
        while not orders.poll():
            assert hostile.is_alive(), "the hostile process ended by itself"
            assert server.alive, f"the server ended: {server.log[-3:]}"
            good.steps(fuzzed[-1])
        got, full, took_s, answers = orders.recv()
        sent, blocked, seconds = sent + got, blocked + full, seconds + took_s
        told += answers
        memory.append(server.rss_mib)
    before, after = ([percentiles(phase, 50, 95) for phase in kind] for kind in (quiet, fuzzed))
    ratios = np.median(np.array(after) / np.array(before), axis=0)
    all_before, all_after = (percentiles(np.concatenate(kind), 50, 95) for kind in (quiet, fuzzed))
    quarter = memory[max(1, len(memory) // 4)]
    lines = [
        f"hostile      {sent:,} messages at {sent / seconds:,.0f}/s, {blocked:,} found no room",
        "answered     " + ", ".join(f"{code} {count:,}" for code, count in told.most_common()),
        f"good client  {good.events:,} steps, all the bits of an embedded engine",
        "quiet        p50 {:.3f} ms, p95 {:.3f} ms".format(*all_before),
        "fuzzed       p50 {:.3f} ms, p95 {:.3f} ms".format(*all_after),
        "ratios       p50 {:.2f}, p95 {:.2f}, median of the phases' (target: at most 2)".format(
            *ratios
        ),
        f"memory       {memory[0]:.1f} MiB before, {quarter:.1f} after a quarter, "
        f"{memory[-1]:.1f} at the end, {max(memory):.1f} at most",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=5000.0, help="messages a second")
    parser.add_argument("--phases", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end that leaves nothing
    with tempfile.TemporaryDirectory() as name:
        try:
            print(campaign(args, Path(name)))
        except AssertionError as error:
            print(f"FAILED       {error}")
            return 1
    print(f"verdict      no harm done (seed {args.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
