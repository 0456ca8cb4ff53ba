"""kill -9 of the server and of its clients at random moments under load; nothing may show.

python tests/campaigns/kill.py [--kills N] [--seed N] [--durability async|sync] [--spill]

A server with --state and five client processes (feeds.py): single steps of sessions in turn,
single steps of many at once, pipelined streams, runs, and one bulk; with resets, restores and
forks between. Kills hit the server while it serves, recovers or writes a checkpoint, twice
within 50 ms, and the clients; whatever was killed is started again at once. At the end the
server is killed once more, and of every session

    the outputs its clients received, each once and in order, and
    the state and seq that the server has recovered

must be those of an embedded engine that was never interrupted, bit for bit. Outputs may lack
only where a client was killed: what was on its way to it then, which `open` told as applied.

--spill gives the server less room than there are sessions. Exit code 0 only if all holds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import feeds
import streamlstm as sl
from feeds import INPUTS, OUTPUTS, RESTORED, Plan
from live_server import Server, percentiles, random_model

Array = NDArray[Any]

UNITS = 16
STEP_S = 60.0
"""Whatever the campaign waits for takes longer only if it never comes."""

# How often each kind of kill is chosen, of so many.
WEIGHTS = {
    "serving": 25,
    "recovering": 20,
    "checkpoint": 20,
    "late checkpoint": 4,
    "twice": 6,
    "client": 20,
    "client and server": 5,
}


@dataclass
class Campaign:
    """The processes, and what was done to them."""

    folder: Path
    seed: int
    options: list[str]
    kills: Counter[str] = field(default_factory=Counter)
    client_kills: Counter[str] = field(default_factory=Counter)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.address = f"ipc://{self.folder}/socket"
        self.clients: dict[str, subprocess.Popen[bytes]] = {}
        self.written = dict.fromkeys(feeds.SESSIONS, 0)  # bytes on tape when last interrupted
        self.start_server()
        self.server.wait()
        for kind in feeds.SESSIONS:
            self.start_client(kind)

    def start_server(self) -> None:
        state = str(self.folder / "state")
        model = self.folder / "model.safetensors"
        self.server = Server(model, self.address, "--state", state, *self.options)
        self.written = {kind: self._size(kind) for kind in feeds.SESSIONS}

    def start_client(self, kind: str) -> None:
        argv = [sys.executable, feeds.__file__, kind, self.address, self.folder, str(self.seed)]
        with open(self.folder / f"{kind}.err", "ab") as errors:
            self.clients[kind] = subprocess.Popen(argv, stderr=errors)
        self.written[kind] = self._size(kind) + feeds.record_of(kind).itemsize

    def _size(self, kind: str) -> int:
        path = self.folder / feeds.names(kind)[0]
        return path.stat().st_size if path.exists() else 0

    def _works(self, kind: str) -> bool:
        """Whether a client has got an output since it or the server started."""
        return self._size(kind) > self.written[kind]

    # --- kills ---

    def kill_server(self, kind: str) -> None:
        """Kill and start again. One that ended by itself fails the campaign."""
        server = self.server
        if not server.alive:
            raise AssertionError(f"the server ended by itself: {server.log}")
        if kind == "recovering" and server.listens:
            kind = "serving"
        server.kill()
        self.kills[kind] += 1
        if server.listens:
            self.recoveries.append(server.told("listening"))
            self.starts_s.append(server.listened_s - server.started_s)
        self.start_server()

    def kill_client(self, kind: str) -> None:
        process = self.clients[kind]
        process.kill()
        if process.wait(STEP_S) != -9:
            raise AssertionError(f"client {kind} ended by itself: {self._errors(kind)}")
        self.kills["client"] += 1
        self.client_kills[kind] += 1
        self.start_client(kind)

    def _errors(self, kind: str) -> str:
        return (self.folder / f"{kind}.err").read_text()[-2000:]

    def strike(self, kind: str) -> None:
        """One kill of that kind, or two, at a random moment."""
        rng, pause = self.rng, time.sleep
        client = rng.choice(list(self.clients))
        working = rng.randint(1, len(self.clients))
        if kind == "client":
            if rng.random() < 0.8:  # else perhaps while it opens
                self._until(lambda: self._works(client))
            pause(rng.uniform(0, 0.2))
            self.kill_client(client)
            return
        self.server.wait()
        if kind == "checkpoint":  # the first one begins with the first change
            log = self.folder / "state/sessions.db-wal"
            quiet = log.stat().st_mtime_ns
            self._until(lambda: log.stat().st_mtime_ns > quiet)
            pause(rng.uniform(0, 0.03))
        elif kind == "late checkpoint":
            pause(rng.uniform(4.95, 5.6))
        else:
            self._until(lambda: sum(map(self._works, self.clients)) >= working)
            pause(rng.uniform(0, 0.3))
        if kind == "client and server":
            self.kill_client(client)
        self.kill_server("serving" if kind == "recovering" else kind)
        if kind == "twice":
            pause(rng.uniform(0, 0.05))
            self.kill_server(kind)
        elif kind == "recovering":
            self._until(self._has_state)
            pause(rng.uniform(0, max(line["recovery_s"] for line in self.recoveries[-5:])))
            self.kill_server(kind)

    def _has_state(self) -> bool:
        """Whether the server has taken the state directory: then it recovers."""
        server = self.server
        holder = (self.folder / "state/lock").read_text()
        return server.listens or not server.alive or holder == str(server.process.pid)

    def _until(self, true: Callable[[], bool]) -> None:
        end_s = time.monotonic() + STEP_S
        while not true():
            if not self.server.alive:
                raise AssertionError(f"the server ended by itself: {self.server.log}")
            self.check_clients()
            if time.monotonic() > end_s:
                idle = [kind for kind in self.clients if not self._works(kind)]
                raise AssertionError(f"no output for {STEP_S:g} s from {idle}; {self.server.log}")
            time.sleep(0.002)

    def check_clients(self) -> None:
        for kind, process in self.clients.items():
            if process.poll() is not None:
                raise AssertionError(f"client {kind} ended by itself: {self._errors(kind)}")

    def run(self, kills: int) -> None:
        """Until there were so many kills; the last one is the server's, with no client left."""
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        while self.kills.total() < kills - 1:
            self.strike(self.rng.choices(kinds, weights)[0])
            self.check_clients()
        self._until(lambda: all(map(self._works, self.clients)))
        for process in self.clients.values():
            process.terminate()
        for kind, process in self.clients.items():
            if process.wait(STEP_S) != 0:
                raise AssertionError(f"client {kind} failed: {self._errors(kind)}")
        self.kill_server("serving")
        self.server.wait()

    def end(self) -> None:
        for process in self.clients.values():
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(STEP_S)
        self.server.kill()


# --- the uninterrupted run, and what is compared with it ------------------------------------------


class Oracle:
    """Replays plans on an embedded engine and compares. Raises AssertionError."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self._seed, self._folder = campaign.seed, campaign.folder
        model = sl.load(campaign.folder / "model.safetensors")
        self._engine = sl.Engine(model)
        self._restored = sl.State.from_bytes((campaign.folder / RESTORED).read_bytes())
        self._client = sl.Client(campaign.address)
        self.sessions = self.events = self.lost_answers = 0

    def check_all(self) -> None:
        for kind in feeds.SESSIONS:
            if kind == "bulk":
                self._check_bulk()
                continue
            for name in feeds.names(kind):
                self._check(name, kind)
        there = self._client.stats()["models"]["campaign"]["sessions"]
        assert there == self.sessions, f"the server has {there} sessions, not {self.sessions}"

    def _check(self, name: str, kind: str) -> None:
        """A session and its forks."""
        last, numbers = self._recovered(name)
        session = self._engine.open(name)
        forks: dict[int, sl.State] = {}
        Y = self._replay(session, Plan(self._seed, name).X(1, last), forks)
        assert_same(session.state().numbers, numbers, f"the state of {name} after {last}")
        self._check_tape(feeds.read_tape(self._folder / name), Y, name, kind)
        if kind == "singles":
            for n, state in forks.items():
                self._check_fork(f"{name}@{n}", state)

    def _check_fork(self, name: str, state: sl.State) -> None:
        session = self._engine.open(name)
        session.restore(state)
        Y = self._replay(session, Plan(self._seed, name).X(1, feeds.CHILD_EVENTS), {})
        records = feeds.read_tape(self._folder / name)
        if feeds.is_closed(name):
            assert records["seq"][-1] == feeds.CLOSING, f"{name} was not closed"
            records = records[:-1]
        else:
            last, numbers = self._recovered(name)
            assert last == feeds.CHILD_EVENTS, f"{name} ends at {last}"
            assert_same(session.state().numbers, numbers, f"the state of fork {name}")
        self._check_tape(records, Y, name, "singles")

    def _check_bulk(self) -> None:
        found = [self._recovered(name) for name in feeds.names("bulk")]
        last = found[0][0]
        assert {seq for seq, _ in found} == {last}, "members of the bulk are at different seqs"
        X = feeds.bulk_plan(self._seed).X(1, last)
        outputs = []
        for k, (name, (_, numbers)) in enumerate(zip(feeds.names("bulk"), found, strict=True)):
            session = self._engine.open(name)
            outputs.append(self._replay(session, np.ascontiguousarray(X[:, k]), {}))
            assert_same(session.state().numbers, numbers, f"the state of {name} after {last}")
        Y = np.stack(outputs, axis=1)
        self._check_tape(feeds.read_tape(self._folder / "bulk-0", "bulk"), Y, "bulk", "bulk")

    def _recovered(self, name: str) -> tuple[int, Array]:
        """A session's seq and state on the server."""
        session = self._client.open(name, resume=True)
        self.sessions += 1
        return session.seq, sl.State.from_bytes(session.state()).numbers

    def _replay(self, session: Any, X: Array, forks: dict[int, sl.State]) -> Array:
        """X [last, inputs] -> outputs by seq [last + 1, outputs], NaN where there is none."""
        last = len(X)
        Y = np.full((last + 1, OUTPUTS), np.nan, np.float32)
        n = 1
        while n <= last:
            kind = Plan.kind(n)
            if kind == "event":
                end = min(last, Plan.last_event(n))
                Y[n : end + 1] = session.run(X[n - 1 : end])
                self.events += end + 1 - n
                n = end + 1
                continue
            if n % feeds.FORK == 0:
                forks[n] = session.state()
            if kind == "reset":
                session.reset()
            else:
                session.restore(self._restored)
            n += 1
        return Y

    def _check_tape(self, records: Any, Y: Array, name: str, kind: str) -> None:
        """Every output once, in order, with its bits; gaps only where a client had died."""
        events_to = np.cumsum(np.isfinite(Y.reshape(len(Y), -1)).all(axis=1))  # by seq
        seqs, marks = records["seq"], records["seq"] < 0
        assert seqs[0] == -1, f"{name} was not new when it was first opened"
        assert marks.sum() <= 1 + self._campaign.client_kills[kind], f"{name}: too many openings"
        at = np.where(marks, -1 - seqs, seqs)
        assert at.max() < len(Y), f"{name}: event {at.max()} was answered, and then lost"
        steps = np.diff(events_to[at], prepend=0)
        wrong = np.flatnonzero(~marks & (steps != 1))
        assert not len(wrong), f"{name}: {seqs[wrong[0]]} does not follow {at[wrong[0] - 1]}"
        lost = steps[marks]
        assert lost.min() >= 0, f"{name}: answered events were lost"
        assert lost.max() <= feeds.IN_FLIGHT[kind], f"{name}: {lost.max()} answers lack at once"
        assert events_to[at[-1]] == events_to[-1], f"{name}: the last answers lack"
        self.lost_answers += int(lost.sum())
        assert_same(records["y"][~marks], Y[seqs[~marks]], f"the outputs of {name}")


def assert_same(found: Array, expected: Array, what: str) -> None:
    if found.tobytes() == expected.tobytes():
        return
    differ = (found != expected).reshape(len(found), -1).any(axis=1)
    raise AssertionError(f"{what} differ, first at index {np.argmax(differ)}")


# --- report ---------------------------------------------------------------------------------------


def report(campaign: Campaign, oracle: Oracle, seconds: float) -> str:
    kills = ", ".join(f"{kind} {count}" for kind, count in campaign.kills.items())
    recovered = [line["recovery_s"] for line in campaign.recoveries]
    events = [line["recovered_events"] for line in campaign.recoveries]
    p50, most = percentiles(recovered, 50, 100)
    start_p50, start_most = percentiles(campaign.starts_s, 50, 100)
    return "\n".join(
        [
            f"kills        {campaign.kills.total()} in {seconds:.0f} s: {kills}",
            f"sessions     {oracle.sessions} at the end",
            f"events       {oracle.events:,} stepped, each once; "
            f"{oracle.lost_answers:,} answers died with their clients",
            f"recovery     p50 {p50:.0f} ms, max {most:.0f} ms, of {max(events):,} events at most",
            f"start        kill to listening: p50 {start_p50:.0f} ms, max {start_most:.0f} ms",
        ]
    )


def prepare(folder: Path) -> None:
    model = random_model(INPUTS, UNITS, OUTPUTS)
    model.save(folder / "model.safetensors")
    with sl.Engine(model) as engine:
        session = engine.open("restored")
        session.run(np.random.default_rng(0).standard_normal((20, INPUTS), np.float32))
        (folder / RESTORED).write_bytes(session.state().to_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--durability", choices=("async", "sync"), default="async")
    parser.add_argument("--spill", action="store_true", help="more sessions than may be resident")
    args = parser.parse_args()
    options = ["--durability", args.durability]
    if args.spill:
        options += ["--max-resident", str(feeds.SESSIONS["bulk"] + 8)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end that leaves nothing
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        campaign = Campaign(folder, args.seed, options)
        try:
            campaign.run(args.kills)
            seconds = time.monotonic() - start_s
            oracle = Oracle(campaign)
            oracle.check_all()
        except AssertionError as error:
            print(f"kills so far {dict(campaign.kills)}\nFAILED       {error}")
            return 1
        finally:
            campaign.end()
        print(report(campaign, oracle, seconds))
        print(
            f"verdict      the same bits as never interrupted (seed {args.seed}, "
            f"{' '.join(options)}; {os.cpu_count()} CPUs)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
