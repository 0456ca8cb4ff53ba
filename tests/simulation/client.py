"""A simulated client process: the real protocol, and an application that asks for things."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from simulation.engine import Pair, blob_of
from simulation.network import Link
from simulation.oracle import (
    DONE,
    MAYBE,
    NOT_DONE,
    QUARANTINED,
    Entry,
    Feed,
    Violation,
)
from streamlstm.errors import (
    AnswerGoneError,
    EngineError,
    InputError,
    ServerTimeoutError,
    ServiceError,
    SessionQuarantinedError,
    StreamLSTMError,
)
from streamlstm.service import operations
from streamlstm.service.client.fates import Fate
from streamlstm.service.client.protocol import ClientProtocol
from streamlstm.service.client.sessions import Call, ClientSession

if TYPE_CHECKING:
    from simulation.world import World

PATIENCE_S = 30.0
GRACE_S = 15.0
"""After the last fault, for what is sent again to be answered."""

FATES = ("open", "closed", "evicted", "fenced", "unknown", "lost", "rolled back", "quarantined")
"""By their numbers."""

CHECKED = 8
"""Of so many moves of a protocol one is followed by a look at all that it keeps."""

GOING_ON = (Fate.OPEN, Fate.QUARANTINED)


class Client:
    """Runs an application over a ClientProtocol; a crash of it loses both, and its connection."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.feeds: list[Feed] = []
        self.link: Link = world.network.connect(self)
        self.alive = True
        self.calls = 0  # not done yet
        self._wanted: list[tuple[str, bool]] = []  # to be opened once there is a hello
        self._reopens = 6
        self.start()

    # --- life ---

    def start(self) -> None:
        self.alive = True
        self.calls = 0
        rng = random.Random(self.world.rng.getrandbits(64))
        self.protocol = ClientProtocol("sim", PATIENCE_S, rng)
        self._boot = 0
        self._all: list[Feed] = []  # of this process
        self._greeted = False
        self._finished: list[tuple[Call, Any, float]] = []
        self._ticks_at = float("inf")
        self._pumps = 0
        self._greet()

    def _greet(self) -> None:
        if self.alive and not self._greeted:
            self._ask(self.protocol.say_hello(now=self._now), self._on_hello)
            self._pump()

    def _on_hello(self, call: Call) -> None:
        if call.error is None:
            self._greeted = True
            wanted, self._wanted = self._wanted, []
            for name, resume in wanted:
                self.open(name, resume)
        else:
            self.world.clock.at(self._now + 0.5, self._greet)

    def crash(self, down_s: float) -> None:
        """The process ends; its successor opens what it had, and goes on from there."""
        if not self.alive:
            return
        self.world.seen["client crash"] += 1
        self.world.log("client dies", self.name)
        self.alive = False
        self.calls = 0
        self._wanted = [(feed.name, True) for feed in self.feeds] + self._wanted
        self.feeds = []
        self.protocol = None  # type: ignore[assignment]
        self._finished = []
        self.reconnect()
        self.world.clock.at(self._now + down_s, self.start)

    def reconnect(self) -> None:
        """The connection was lost, and came back as another peer."""
        self.world.network.lose(self.link)
        self.link = self.world.network.connect(self)

    @property
    def _now(self) -> float:
        return self.world.clock.now

    # --- what moves the protocol ---

    def receive(self, frame: bytes, boot: int) -> None:
        if self.alive:
            self._boot = boot
            self.world.log_frame(f"server to {self.name}:", frame)
            self.protocol.receive(frame, self._now)
            self._pump()

    def _tick(self, protocol: ClientProtocol) -> None:
        self._ticks_at = float("inf")
        if self.alive and protocol is self.protocol:
            protocol.tick(self._now)
            self._pump()

    def _pump(self) -> None:
        """Tell the application what is done, send what is to be sent."""
        world, protocol = self.world, self.protocol
        while self._finished and self.alive:
            call, then, begun_s = self._finished.pop(0)
            self.calls -= 1
            if isinstance(call.error, ServerTimeoutError):
                world.seen["timed out"] += 1
                early = begun_s + PATIENCE_S <= world.calm_s + GRACE_S
                if not early and call.op is not operations.HELLO:
                    raise Violation(
                        f"{call.op.name} of {self.name} from {begun_s:.3f} s has no answer, "
                        f"faults ended at {world.calm_s:.3f} s"
                    )
            then(call)
        if not self.alive:
            return
        self._pumps += 1
        if self._pumps % CHECKED == 0:
            protocol.check()
        for frame in protocol.outgoing():
            world.network.send(self.link, True, world.server.arrive, self.link, frame)
        due = protocol.next_due()
        if due is not None and due < self._ticks_at:
            self._ticks_at = due
            world.clock.at(due, self._tick, protocol)

    def _ask(self, call: Call, then: Any) -> Call:
        self.calls += 1
        begun_s = self._now
        if call.done:
            self._finished.append((call, then, begun_s))
        else:
            finished = self._finished
            call.on_done = lambda done: finished.append((done, then, begun_s))
        return call

    # --- opening ---

    def open(self, name: str, resume: bool) -> None:
        if not (self.alive and self._greeted):
            self._wanted.append((name, resume))
            return
        self.world.log(self.name, "opens", name, resume)
        call = self.protocol.open(name, None, resume, now=self._now)
        self._ask(call, lambda call: self._on_open(call, name))
        self._pump()

    def _on_open(self, call: Call, name: str) -> None:
        world = self.world
        world.log(self.name, "open is done", name, call.error or call.result.seq)
        if call.error is None:
            self._own(call.result, name)
        elif isinstance(call.error, ServiceError):
            self._again(name)

    def _own(self, session: ClientSession, name: str) -> None:
        feed = Feed(self.name, name, session.seq, self._boot, session.epoch, session=session)
        self.world.history.add(feed)
        self.feeds.append(feed)
        self._all.append(feed)

    def _again(self, name: str) -> None:
        """Open a session anew, if the application still cares."""
        if self._reopens and not self.world.calm and self.world.rng.random() < 0.8:
            self._reopens -= 1
            self.world.seen["opened again"] += 1
            self.world.clock.at(self._now + self.world.rng.random(), self.open, name, True)

    # --- asking ---

    def usable(self) -> list[Feed]:
        """Feeds that go on; the others are opened again, or let go."""
        for feed in list(self.feeds):
            fate = feed.session.fate
            if fate not in GOING_ON:
                self.feeds.remove(feed)
                if fate != Fate.FENCED or self.world.rng.random() < 0.3:
                    self._again(feed.name)
        return self.feeds

    def feed(self, name: str, epoch: int) -> Feed | None:
        """The one that holds a session at that epoch."""
        for feed in self._all:
            if feed.name == name and feed.session.epoch == epoch:
                return feed
        return None

    def request(self, feed: Feed, entry: Entry, deadline_s: float | None = None) -> None:
        """One request to one session."""
        protocol, session, now = self.protocol, feed.session, self._now
        try:
            if entry.op == "step":
                call = protocol.step(session, floats(entry.xs)[0], deadline_s, now=now)
            elif entry.op == "run":
                call = protocol.run(session, floats(entry.xs), deadline_s, now=now)
                entry.piece = self.world.plan.run_piece
            elif entry.op == "restore":
                call = protocol.control(session, operations.RESTORE, blob_of(entry.pair), now=now)
            elif entry.op == "fork":
                call = protocol.control(session, operations.FORK, entry.name, now=now)
            else:
                call = protocol.control(session, operations.OPERATIONS[entry.op], now=now)
        except StreamLSTMError as error:  # at once: nothing was sent
            self.world.log(self.name, entry.op, feed.name, error)
            return
        self.world.log(self.name, entry.op, feed.name, entry.xs)
        feed.entries.append(entry)
        self._ask(call, lambda call: self._on_done(call, feed, entry))
        self._pump()

    def request_all(self, feeds: list[Feed], xs: list[Pair], deadline_s: float | None) -> None:
        """One event to each of some sessions, in one message."""
        try:
            group = self.protocol.group([feed.session for feed in feeds])
            call = self.protocol.steps(group, floats(xs), deadline_s, now=self._now)
        except StreamLSTMError as error:
            self.world.log(self.name, "steps", error)
            return
        entries = [Entry("step", (x,)) for x in xs]
        for feed, entry in zip(feeds, entries, strict=True):
            feed.entries.append(entry)
        self.world.log(self.name, "steps", [feed.name for feed in feeds], xs)
        self._ask(call, lambda call: self._on_all_done(call, feeds, entries))
        self._pump()

    def _on_done(self, call: Call, feed: Feed, entry: Entry) -> None:
        error = call.error
        self.world.log(self.name, "done", entry.op, feed.name, call.last, error or "")
        entry.boot, entry.last = self._boot, call.last
        if error is None:
            entry.outcome = DONE
            if entry.op == "step":
                entry.answer = pairs([call.result])
            elif entry.op == "run":
                entry.answer = pairs(call.result)
            elif entry.op == "state":
                entry.answer = tuple(np.frombuffer(call.result[4:], np.float32).tolist())
            elif entry.op == "fork":
                self._own(call.result, entry.name)
            elif entry.op == "close":  # also of a session that was lost before
                entry.boot = 0
                self.feeds = [f for f in self.feeds if f is not feed]
            return
        quarantined = isinstance(error, SessionQuarantinedError)
        if not quarantined:
            entry.boot = 0  # an error is no answer
        if quarantined and entry.op == "state" and self.world.plan.durable:
            raise Violation(f"{feed.name!r} of {self.name} has no last good state: {error}")
        self.world.seen[f"raised {type(error).__name__}"] += 1
        if isinstance(error, AnswerGoneError):
            raise Violation(f"{self.name} waits for an answer that is not kept: {error}")
        if quarantined and call.last:  # else it was never sent
            entry.outcome = QUARANTINED
        elif feed.session.fate in GOING_ON:
            entry.outcome = NOT_DONE

    def _on_all_done(self, call: Call, feeds: list[Feed], entries: list[Entry]) -> None:
        error = call.error
        self.world.log(self.name, "done steps", [feed.name for feed in feeds], error or "")
        if error is None:
            for k, entry in enumerate(entries):
                entry.outcome, entry.boot = DONE, self._boot
                entry.last, entry.answer = int(call.seq[k]), pairs(call.result[k : k + 1])
            return
        self.world.seen[f"raised {type(error).__name__} (steps)"] += 1
        told = isinstance(error, (InputError, EngineError, ServiceError))
        go_on = [feed.session.fate in GOING_ON for feed in feeds]
        refused = told and all(go_on) and not isinstance(error, ServerTimeoutError)
        for goes_on, entry in zip(go_on, entries, strict=True):
            if refused:
                entry.outcome = NOT_DONE
            elif goes_on:
                entry.outcome = MAYBE


def floats(xs: Any) -> Any:
    return np.array(xs, np.float32)


def pairs(Y: Any) -> list[Pair | None]:
    """Outputs as the oracle has them; None for a row of NaN."""
    return [
        None if all(y != y for y in row) else (row[0], row[1])  # noqa: PLR0124
        for row in np.asarray(Y).tolist()
    ]
