"""The simulated clock and network: messages arrive late, twice, in another order, or never."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EVENTS_MAX = 50_000

TRAVEL_S = 0.001
LATE_S = 3.0
UNREAD_MAX = 2  # replies that wait for a client that does not read


class StuckError(AssertionError):
    """The simulation does not come to an end."""


class Clock:
    """Virtual seconds, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, action: Callable[..., None], *args: Any) -> None:
        self._count += 1
        if self._count > EVENTS_MAX:
            raise StuckError(f"{EVENTS_MAX} events, and no end at {self.now:.3f} s")
        heapq.heappush(self._heap, (max(time, self.now), self._count, action, args))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let things happen until `done`, or until that time; whether it was `done`."""
        heap, pop = self._heap, heapq.heappop
        while done is None or not done():
            if not heap or heap[0][0] > until:
                self.now = until
                return done is not None and done()
            self.now, _, action, args = pop(heap)
            action(*args)
        return True


@dataclass
class Weather:
    """Probabilities for each message; reorder: one may overtake another."""

    drop: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    jitter_s: float = 0.0
    reorder: bool = False


@dataclass
class Link:
    """One connection of a client: the server knows it by its address."""

    address: bytes
    client: Any
    open: bool = True
    held_until: float = 0.0  # a partition that loses nothing
    lossy: bool = False  # a partition that loses all
    stalled: bool = False  # the client does not read
    unread: list[tuple[bytes, int]] = field(default_factory=list)
    last: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})


class Network:
    """Carries frames between clients and the server, as the weather is."""

    def __init__(self, clock: Clock, rng: random.Random, seen: Counter[str]) -> None:
        self.clock = clock
        self.rng = rng
        self.seen = seen
        self.weather = Weather()
        self.links: dict[bytes, Link] = {}
        self._made = 0

    def connect(self, client: Any) -> Link:
        self._made += 1
        link = Link(b"%d" % self._made, client)
        self.links[link.address] = link
        return link

    def lose(self, link: Link) -> None:
        """The connection is gone, and what is under way in it."""
        link.open = False

    def send(self, link: Link, to_server: bool, deliver: Callable[..., None], *args: Any) -> None:
        weather, rng, now = self.weather, self.rng, self.clock.now
        if link.lossy:
            self.seen["partition that loses"] += 1
            return
        copies = 1
        if weather.drop or weather.duplicate:
            chance = rng.random()
            if chance < weather.drop:
                self.seen["drop"] += 1
                return
            if chance < weather.drop + weather.duplicate:
                self.seen["duplicate"] += 1
                copies = 2
        for _ in range(copies):
            time = now + TRAVEL_S
            if weather.jitter_s:
                time += rng.random() * weather.jitter_s
            if weather.late and rng.random() < weather.late:
                self.seen["delay"] += 1
                time += rng.random() * LATE_S
            if link.held_until > time:
                self.seen["partition that holds"] += 1
                time = link.held_until
            if time < link.last[to_server]:
                if weather.reorder:
                    self.seen["reorder"] += 1
                else:
                    time = link.last[to_server]
            link.last[to_server] = max(time, link.last[to_server])
            self.clock.at(time, self._arrive, link, deliver, args)

    def _arrive(self, link: Link, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        if link.open:
            deliver(*args)
