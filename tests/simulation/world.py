"""A whole simulated world: one seed decides what happens in it, and it happens again.

python -m simulation --seed 17        in tests/: the trace of that seed
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgpack

from simulation import schedule
from simulation.client import FATES, GRACE_S, PATIENCE_S, Client
from simulation.engine import POISON, Pair
from simulation.network import Clock, Link, Network, Weather
from simulation.oracle import Entry, Feed, History, Violation
from simulation.server import Server
from streamlstm.service.client import models
from streamlstm.service.client.fates import Fate
from streamlstm.service.server import answers, checkpoint, protocol, table

NAMES = ("alpha", "beta", "gamma", "delta")
TRIP_S = 2.0
"""An armed crash point that is not visited for so long crashes the server where it is."""


class World:
    """Runs one schedule. Raises Violation."""

    def __init__(self, seed: int, frames: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.plan = schedule.draw(seed, rng)
        self.seen: Counter[str] = Counter()
        self.trace: list[tuple[float, tuple[Any, ...]]] = []
        self.frames = frames  # trace them too
        self.clock = Clock()
        self.history = History()
        self.network = Network(self.clock, rng, self.seen)
        self.calm = False
        self.calm_s = float("inf")
        self._forks = 0
        self._waiting: list[tuple[Link, bytes]] = []  # sent while no server was there

    def log(self, *what: Any) -> None:
        self.trace.append((self.clock.now, what))

    def log_frame(self, whose: str, frame: bytes) -> None:
        if self.frames:
            self.log("   ", whose, msgpack.unpackb(frame)[1:])

    def lines(self) -> Iterator[str]:
        for time, what in self.trace:
            yield f"{time:9.4f}  " + " ".join(map(str, what))

    def run(self) -> None:
        with _patched(self.plan, self.rng):
            self.server = Server(self)
            try:
                self._run()
            finally:
                self.server.connection.close()

    def _run(self) -> None:
        plan, clock = self.plan, self.clock
        self.server.start()
        self.clients = [Client(self, f"client {k}") for k in range(plan.clients)]
        for time, kind in plan.events:
            clock.at(time, self._act, kind)
        end_s = 0.0
        for time, kind, details in plan.faults:
            clock.at(time, self._strike, kind, details)
            end_s = max(end_s, time + details["lasts_s"])
        end_s = max(end_s, plan.events[-1][0])
        clock.run(end_s)
        self._calm_down()
        self._settle(self.clients)
        if plan.durable and self.rng.random() < 0.3:
            self.server.down_s = 0.0
            self.server.crash("at the end")
            clock.run(clock.now + 0.01)
        self._audit()
        self.history.check()
        for feed in self.history.feeds.values():
            self.seen[f"fate {FATES[feed.session.fate]}"] += 1

    def _calm_down(self) -> None:
        """All faults end."""
        self.log("calm")
        self.calm, self.calm_s = True, self.clock.now
        self.server.fuse.arm("", 0)
        self.server.down_s = 0.01  # of one that is stopping
        self.network.weather = Weather()
        for client in self.clients:
            client.link.lossy = False
            self.server.mend(client.link)
        self.server.start()

    def _settle(self, clients: list[Client]) -> None:
        """Everything is answered, or raises an error."""

        def idle() -> bool:
            return not any(client.calls or not client.alive for client in clients)

        if not self.clock.run(self.clock.now + PATIENCE_S * 3 + GRACE_S, idle):
            waiting = [f"{c.name}: {c.calls}" for c in clients]
            raise Violation(f"requests are neither answered nor refused: {', '.join(waiting)}")

    def _audit(self) -> None:
        """Another client takes every session over, looks at it and steps it."""
        auditor = Client(self, "auditor")
        names = list(self.history.events)
        for name in names:
            auditor.open(name, True)
        self._settle([auditor])
        feeds = list(auditor.feeds)
        missing = set(names) - {feed.name for feed in feeds}
        if missing and self.plan.ttl_s is None:
            raise Violation(f"can't open {', '.join(sorted(missing))}")
        for feed in feeds:
            if self.plan.durable or feed.session.fate == Fate.OPEN:
                auditor.request(feed, Entry("state"))
            auditor.request(feed, Entry("step", (self._event(),)))
        self._settle([auditor])
        self.server.check_counts()

    # --- what clients do ---

    def _event(self) -> Pair:
        return self.rng.randrange(1000), self.rng.randrange(1000)

    def _act(self, kind: str) -> None:
        rng = self.rng
        client = rng.choice(self.clients)
        if not client.alive:
            return
        self.seen[f"action {kind}"] += 1
        feeds = client.usable()
        if kind in ("open", "take over") or not feeds:
            name = rng.choice([*NAMES, *list(self.history.events)[:4]])
            resume = kind == "take over" or rng.random() < 0.5
            if not any(feed.name == name for feed in feeds):
                client.open(name, resume)
            return
        feed = rng.choice(feeds)
        if kind == "steps":
            members = rng.sample(feeds, rng.randint(1, len(feeds)))
            xs = [self._event() for _ in members]
            deadline_s = rng.choice((None, None, None, 0.02))
            client.request_all(members, xs, deadline_s)
            return
        for entry in self._entries(kind, feed):
            deadline_s = rng.choice((0.0, 0.003, 5.0)) if kind == "hurry" else None
            client.request(feed, entry, deadline_s)

    def _entries(self, kind: str, feed: Feed) -> list[Entry]:
        rng = self.rng
        if kind in ("burst", "hurry"):
            return [Entry("step", (self._event(),)) for _ in range(rng.randint(2, 6))]
        if kind == "run":
            return [Entry("run", tuple(self._event() for _ in range(rng.randint(1, 6))))]
        if kind == "restore":
            return [Entry("restore", pair=self._event())]
        if kind == "fork":
            self._forks += 1
            return [Entry("fork", name=f"{feed.name}/{self._forks}")]
        if kind == "poison":
            return [Entry("step", ((POISON, 0),)), Entry("step", (self._event(),))]
        if kind == "step":
            return [Entry("step", (self._event(),))]
        return [Entry(kind)]

    # --- what goes wrong ---

    def _strike(self, kind: str, details: dict[str, Any]) -> None:
        clock, rng, server = self.clock, self.rng, self.server
        lasts_s = details["lasts_s"]
        self.log("fault:", kind, details)
        if kind == "storm":
            weather = {k: v for k, v in details.items() if k != "lasts_s"}
            self.network.weather = Weather(**weather)
            clock.at(clock.now + lasts_s, self._clear, self.network.weather)
        elif kind == "partition":
            client = rng.choice(self.clients)
            if details["loses"]:
                client.link.lossy = True
                clock.at(clock.now + lasts_s, self._heal, client, client.link)
            else:
                client.link.held_until = clock.now + lasts_s
        elif kind == "stall":
            link = rng.choice(self.clients).link
            link.stalled = True
            clock.at(clock.now + lasts_s, server.mend, link)
        elif kind == "client crash":
            rng.choice(self.clients).crash(lasts_s)
        else:
            server.down_s = lasts_s
            if kind == "drain":
                server.drain()
            elif kind == "power loss":
                server.lose_power()
            elif kind == "crash in recovery":
                server.crash()
                server.fuse.arm(details["place"], details["left"])
            elif details["place"] == "idle":
                server.crash()
            else:
                server.fuse.arm(details["place"], details["left"], kind == "disk full")
                clock.at(clock.now + TRIP_S, self._trip, server.boot)

    def _clear(self, weather: Weather) -> None:
        if self.network.weather is weather:
            self.network.weather = Weather()

    def _heal(self, client: Client, link: Link) -> None:
        link.lossy = False
        if client.link is link and self.rng.random() < 0.7:
            self.seen["came back as another peer"] += 1
            client.reconnect()

    def _trip(self, boot: int) -> None:
        if self.server.boot == boot and self.server.fuse.place:
            self.server.fuse.arm("", 0)
            self.server.crash()

    def server_gone(self) -> None:
        """Connections end with the server's process; most come back as other peers."""
        for client in getattr(self, "clients", ()):
            self.server.mend(client.link)
            if self.rng.random() < 0.8:
                client.reconnect()

    def server_absent(self, link: Link, frame: bytes) -> None:
        """A message while no server is there: it waits for one, or is lost."""
        if self.rng.random() < 0.5:
            self.clock.at(self.clock.now + self.server.down_s, self._deliver, link, frame)
        else:
            self.seen["sent to no server"] += 1

    def _deliver(self, link: Link, frame: bytes) -> None:
        if link.open:
            self.server.arrive(link, frame)


@contextmanager
def _patched(plan: schedule.Plan, rng: random.Random) -> Iterator[None]:
    """The modules' limits made small, and their random numbers the seed's."""
    entropy = SimpleNamespace(urandom=rng.randbytes)
    values = (
        (table, "os", entropy),
        (protocol, "os", entropy),
        (checkpoint, "CHECKPOINT_S", plan.checkpoint_s),
        (checkpoint, "SLICE_BUSY", 1),  # bytes: one part of rows a turn
        (checkpoint, "SLICE_IDLE", 1),
        (checkpoint, "SLICE_ROWS", plan.slice_rows),
        (checkpoint, "TRIM_RECORDS", 4 * plan.slice_rows),
        (answers, "WINDOW_MAX", plan.window),
        (models, "RUN_BYTES_MAX", 8 * plan.run_piece),
    )
    old = [(module, name, getattr(module, name)) for module, name, _ in values]
    for module, name, value in values:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in old:
            setattr(module, name, value)
