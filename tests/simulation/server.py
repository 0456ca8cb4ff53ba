"""The simulated server process: the real protocol and store, which end and begin again."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import msgpack

from service.fake_engine import State
from simulation.engine import CrashError, FoldEngine, Fuse, FusedStore
from simulation.network import UNREAD_MAX, Link
from simulation.oracle import Feed, Violation
from streamlstm.errors import StoreDamagedError, StoreError, StoreMismatchError
from streamlstm.service.server.connections import Sent
from streamlstm.service.server.protocol import ServerProtocol
from streamlstm.service.server.rounds import QueueLimits

if TYPE_CHECKING:
    from simulation.world import World

IDLE_S = 0.5  # between two turns without work
GRACE_S = 0.3  # from SIGTERM to the end
SNAPSHOTS = 6
_OPENS = (b"\xa4open", b"\xa4fork", b"\xa5close")

_REFUSED = (("open", "SESSION_EXISTS"), ("open", "FENCED"), ("fork", "SESSION_EXISTS"))
"""Because of another owner."""


class Server:
    """A process that serves; `boot` counts them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan = world.plan
        self.fuse = Fuse()
        self.boot = 0
        self.protocol: ServerProtocol | None = None
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.snapshots: list[bytes] = []
        self.down_s = 0.1
        self._due = False  # a turn is coming
        self._spent_s = 0.0  # working, by the server's own clock
        self._offset_s = 0.0
        self._asked: dict[tuple[bytes, Any], tuple[str, str, Feed | None, int]] = {}
        self._owners: dict[str, int] = {}  # by name: the token that was told it has the session
        self._names: dict[tuple[int, int], str] = {}  # by handle and epoch
        self._ended: list[tuple[str, str]] = []  # by `tick`, not committed yet
        self._received = self._told = 0

    # --- life ---

    def start(self) -> None:
        if self.protocol is not None:
            return
        world, plan = self.world, self.plan
        self.boot += 1
        self._offset_s = world.rng.random() * 100
        self._asked.clear()
        self._names.clear()
        self._ended.clear()
        self._received = self._told = 0
        self._due = False
        world.log("server starts", self.boot)
        try:
            store = None
            if plan.durable:
                committed = self._snapshot if plan.power_loss else None
                store = FusedStore(self.connection, self.fuse, committed)
            self.protocol = ServerProtocol(
                [FoldEngine(self.fuse, 64)],
                State.from_bytes,
                store=store,
                max_resident=plan.max_resident if plan.durable else None,
                ttl_s=plan.ttl_s,
                queue=QueueLimits(peer_messages=plan.queue),
                now=self._now(),
                clock=self._work if plan.work_s else None,
                report=self._fault,
            )
        except (StoreDamagedError, StoreMismatchError) as error:
            raise Violation(f"the store can't be read: {error}") from error
        except (CrashError, StoreError) as crash:
            self._died(f"recovery: {crash}")
            return
        if self.fuse.place.startswith("recovery"):
            self.fuse.arm("", 0)
        world.clock.at(world.clock.now + IDLE_S, self._idle, self.boot)

    def _now(self) -> float:
        return self.world.clock.now + self._offset_s

    def _work(self) -> float:
        """How long the server has worked: each look takes some time."""
        self._spent_s += self.plan.work_s
        return self._spent_s

    def _snapshot(self) -> None:
        self.snapshots.append(self.connection.serialize())
        del self.snapshots[:-SNAPSHOTS]

    def _fault(self, doing: str, error: Exception) -> None:
        raise Violation(f"the server failed at {doing}: {error!r}") from error

    def crash(self, why: str = "idle") -> None:
        if self.protocol is not None:
            self._died(why)

    def _died(self, why: str) -> None:
        world = self.world
        world.log("server dies", why)
        world.seen[f"crash: {why}"] += 1
        self._end()

    def lose_power(self) -> None:
        """End, and the store is that of an earlier commit."""
        if self.protocol is None or not self.snapshots:
            return
        world = self.world
        index = world.rng.randrange(len(self.snapshots))
        lost = len(self.snapshots) - 1 - index
        world.log("power loss", lost, "commits lost")
        if lost:
            world.seen["power loss"] += 1
        snapshot = self.snapshots[index]
        self.connection.rollback()
        self.connection.close()
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.deserialize(snapshot)
        del self.snapshots[index + 1 :]
        world.history.lose(self.boot, durable=True)
        self._owners.clear()
        self._end()

    def drain(self) -> None:
        """SIGTERM: refuse what is new, answer what is here, write all, end."""
        if self.protocol is not None:
            self.world.log("server drains")
            self.protocol.drain()
            self._turn(self.boot)
            self.world.clock.at(self.world.clock.now + GRACE_S, self._stop, self.boot)

    def _stop(self, boot: int) -> None:
        world = self.world
        while self.protocol is not None and boot == self.boot and self.protocol.pending:
            self._turn(boot)
        if boot == self.boot:
            self.check_counts()
        if self.protocol is None or boot != self.boot:
            return
        try:
            self.protocol.stop()
        except (CrashError, StoreError) as crash:
            self._died(f"stop: {crash}")
            return
        world.seen["graceful stop"] += 1
        self._end()

    def _end(self) -> None:
        world = self.world
        self.connection.rollback()
        if self.protocol is not None and not self.plan.durable:
            world.seen["memory lost"] += 1
            world.history.lose(self.boot, durable=False)
            self._owners.clear()
        self.protocol = None
        world.server_gone()
        world.clock.at(world.clock.now + self.down_s, self.start)

    # --- work ---

    def arrive(self, link: Link, frame: bytes) -> None:
        world, protocol = self.world, self.protocol
        if protocol is None:
            world.server_absent(link, frame)
            return
        world.log_frame(f"{link.client.name} to server:", frame)
        if frame.startswith(_OPENS, 2):
            _, op, ident, *fields = msgpack.unpackb(frame)
            back = None
            if op == "close":
                name = self._names.get((fields[0], fields[1]), "")
            else:
                name = fields[0] if op == "open" else fields[3]
            if op == "open" and fields[3] is not None:
                back = link.client.feed(name, fields[3])
            self._asked[link.address, ident] = op, name, back, fields[-1]
        self._received += 1
        protocol.receive(link.address, [frame])
        if not self._due:
            self._due = True
            wait_s = world.rng.choice(self.plan.waits_s)
            world.clock.at(world.clock.now + wait_s, self._turn, self.boot)

    def _turn(self, boot: int) -> None:
        protocol, world = self.protocol, self.world
        if protocol is None or boot != self.boot:
            return
        self._due = False
        try:
            out = protocol.step(self._now())
            if out:
                protocol.check()
            self._watch(out)
            self.fuse.burn("replies")
        except (CrashError, StoreError) as crash:
            self._died(str(crash))
            return
        protocol.deliver(out, self._send)
        if protocol.pending and not self._due:
            self._due = True
            world.clock.at(world.clock.now + world.rng.choice(self.plan.waits_s), self._turn, boot)

    def _watch(self, out: list[tuple[bytes, bytes]]) -> None:
        """Tell the oracle in which order sessions changed hands; all of it is committed."""
        history = self.world.history
        for name, cause in self._ended:
            history.end(name, cause)
            self._owners.pop(name, None)
        self._ended.clear()
        for address, frame in out:
            _, status, ident, *values = msgpack.unpackb(frame)
            if status == "notice":
                continue
            self._told += 1
            if status == "error":
                self.world.seen[f"error {values[0]}"] += 1
            op, name, back, token = self._asked.get((address, ident), ("", "", None, 0))
            if not op:
                continue
            if status == "error":
                if (op, values[0]) in _REFUSED and self._owners.get(name) == token:
                    raise Violation(f"a repeated {op} of {name!r} was refused: {values}")
            elif op == "close" and len(values) == 1:
                history.end(name, "closed")
                self._owners.pop(name, None)
            elif op != "close" and len(values) == 5:
                handle, epoch, *_ = values
                self._names[handle, epoch] = name
                self._owners[name] = token
                history.begin(name, epoch, self.boot, op, back)

    def _send(self, address: bytes, frame: bytes) -> Sent:
        """As a port does: some does not fit into a connection that is not read."""
        link = self.world.network.links[address]
        if link.stalled:
            if len(link.unread) >= UNREAD_MAX:
                self.world.seen["overrun"] += 1
                self.world.log("overrun", link.client.name)
                return Sent.FULL
            link.unread.append((frame, self.boot))
        else:
            self.world.network.send(link, False, link.client.receive, frame, self.boot)
        return Sent.SENT

    def mend(self, link: Link) -> None:
        """A client reads again."""
        link.stalled = False
        network, client = self.world.network, link.client
        for frame, boot in link.unread:
            network.send(link, False, client.receive, frame, boot)
        link.unread.clear()

        def send(address: bytes, frame: bytes) -> Sent:
            if address != link.address:
                return Sent.FULL
            network.send(link, False, client.receive, frame, self.boot)
            return Sent.SENT

        if self.protocol is not None:
            self.protocol.mend(send)

    def _idle(self, boot: int) -> None:
        """What the loop does when nothing arrives."""
        protocol, world = self.protocol, self.world
        if protocol is None or boot != self.boot:
            return
        world.clock.at(world.clock.now + IDLE_S, self._idle, boot)
        try:
            if self.plan.ttl_s is not None:
                self._evict(protocol)
        except (CrashError, StoreError) as crash:
            self._died(str(crash))
            return
        self._turn(boot)

    def _evict(self, protocol: ServerProtocol) -> None:
        before = self._known(protocol)
        protocol.tick()
        for name in sorted(before - self._known(protocol)):
            self.world.seen["evicted"] += 1
            self.world.log("evicted", name)
            self._ended.append((name, "evicted"))

    def _known(self, protocol: ServerProtocol) -> set[str]:
        sessions = protocol.shard.tables[0]
        names = set(sessions.table.by_name)
        if protocol.shard.journal is not None:
            names |= {name for _, name in protocol.shard.journal.store.names(sessions.model_id)}
        return names

    def check_counts(self) -> None:
        """Nothing that was received was dropped without a reply."""
        self._turn(self.boot)  # what came late
        protocol = self.protocol
        if protocol is None or protocol.pending:
            return
        sessions = protocol.shard.tables[0]
        self.world.seen["spilled"] += sessions.meters.spilled
        missing = self._received - self._told
        dropped = protocol.stats(self._now())["dropped"]
        if missing != dropped:
            raise Violation(
                f"{self._received} messages came, {self._told} were answered, {dropped} dropped"
            )
