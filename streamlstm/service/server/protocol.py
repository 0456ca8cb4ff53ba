"""The server as a pure state machine: frames in, frames out; no socket, thread or file.

Two verbs. `receive` decodes a message and submits it to the shard; `step` takes the shard's next
turn and returns the frames to send: what is told is committed. `deliver` sends them, and keeps the
books of peers that do not read.

`tick` evicts sessions nobody used, `drain` begins the end. Times are seconds of any clock, and come
from the caller; the store and the engines do too.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from streamlstm.errors import ServerInternalError, ServerStoppingError, StreamLSTMError
from streamlstm.head import Head
from streamlstm.service import wire
from streamlstm.service.contract import EngineLike
from streamlstm.service.operations import HELLO, STATS
from streamlstm.service.server import meters
from streamlstm.service.server.acts import Values
from streamlstm.service.server.connections import Connections, Frame, Send
from streamlstm.service.server.outcomes import OWN_FAULT, Report
from streamlstm.service.server.requests import Done, Notice, Outcome, Refused, Request
from streamlstm.service.server.rounds import QueueLimits
from streamlstm.service.server.sessions import Sessions
from streamlstm.service.server.shard import Shard
from streamlstm.store import Store


class ServerState(enum.Enum):
    RUNNING = "running"
    DRAINING = "draining"  # takes no new work, finishes what it has
    STOPPED = "stopped"


_MOVES: Final = {
    ServerState.RUNNING: {ServerState.DRAINING, ServerState.STOPPED},
    ServerState.DRAINING: {ServerState.STOPPED},
    ServerState.STOPPED: set[ServerState](),
}


_RUNNING: Final = ServerState.RUNNING
_ALWAYS_ANSWERED: Final = frozenset({HELLO, STATS})


class ServerProtocol:
    """A shard behind the wire protocol. Takes the shard's arguments; see there.

    limits: of the decoder. queue: of what may wait. server: how it names itself.
    """

    def __init__(
        self,
        engines: Sequence[EngineLike[Any]],
        read_state: Callable[[bytes], Any],
        *,
        store: Store | None = None,
        max_resident: int | None = None,
        ttl_s: float | None = None,
        limits: wire.Limits | None = None,
        queue: QueueLimits | None = None,
        server: str = "streamlstm",
        now: float = 0.0,
        clock: Callable[[], float] | None = None,
        report: Report | None = None,
    ) -> None:
        self.state = ServerState.RUNNING
        self.meters = meters.ServerMeters(
            server=server, durability="memory" if store is None else store.durability
        )
        self.connections = Connections(self.meters)
        self.shard = Shard(
            engines,
            read_state,
            self.connections,
            self.meters,
            {HELLO: self._hello, STATS: self._stats},
            store=store,
            max_resident=max_resident,
            ttl_s=ttl_s,
            queue=queue,
            now=now,
            clock=clock,
            report=report,
        )
        self._outcomes = self.shard.outcomes
        self._limits = limits or wire.Limits()
        self._decode = wire.Decoder(self._limits).request
        self._encoder = wire.Encoder()
        self._boot = int.from_bytes(os.urandom(7))
        self._ttl_s = ttl_s
        self._started_s = now

    # --- the verbs ---

    def receive(self, peer: bytes, frames: Sequence[bytes]) -> None:
        """Take one message; refusals that need no engine are answered by the next `step`."""
        self.meters.messages += 1
        if self.connections.cut and peer in self.connections.cut:
            self.meters.dropped += 1  # a reply could not leave, so nothing is done
            return
        ident: wire.Ident = None
        try:
            op, ident, fields = self._decode(frames)
            if self.state is not _RUNNING and op not in _ALWAYS_ANSWERED:
                raise ServerStoppingError("the server is stopping and takes no new work")
            owner = self.connections.find(peer)
            self.shard.submit(Request(owner, op, ident, fields, len(frames[0])))
        except wire.BadMessageError as error:
            self._outcomes.refused(peer, error.ident, error)
        except StreamLSTMError as error:
            self._outcomes.refused(peer, ident, error)
        except Exception as error:
            self._outcomes.fault("receive", error)
            own = ServerInternalError(OWN_FAULT.format(doing="this message"))
            self._outcomes.refused(peer, ident, own)

    def step(self, now: float) -> list[Frame]:
        """Take the next turn; what to send, in order. Call again while `pending` is not 0.

        Raises StoreError as Shard.turn does.
        """
        frames: list[Frame] = []
        for outcome in self.shard.turn(now):
            if type(outcome) is Done:
                address, ident, values = outcome
                frames.append((address, self._encoder.ok(ident, values)))
            else:
                frames.append((outcome.address, self._encoded(outcome)))
        self.meters.replies += len(frames)
        return frames

    def _encoded(self, outcome: Outcome) -> bytes:
        if isinstance(outcome, Refused):
            error = outcome.error
            details: dict[str, object] = getattr(error, "details", {})
            return self._encoder.error(outcome.ident, error, **details)
        assert isinstance(outcome, Notice)
        return self._encoder.notice(outcome.kind, outcome.entries)

    def deliver(self, frames: Iterable[Frame], send: Send) -> bool:
        """Send what `step` returned; whether a peer was cut.

        A peer whose reply finds no room gets nothing more and nothing of it is done, until `mend`.
        Its sessions stay. A reply was lost already; later ones must not hide that.
        """
        newly_cut = self.connections.deliver(frames, send)
        for address in newly_cut:
            self.meters.dropped += self.shard.drop(address)
        return bool(newly_cut)

    def mend(self, send: Send) -> None:
        """Tell peers that were cut, once they read again; forget those that are gone."""
        self.connections.mend(self._encoder.notice("overrun", []), send)

    def tick(self) -> int:
        """Evict sessions idle longer than the time-to-live; how many. See Shard.evict."""
        before = self.shard.evicted
        self.shard.evict()
        return self.shard.evicted - before

    def drain(self) -> None:
        """Refuse new work and tell the owners; then `step` while `pending`, and `stop`."""
        if self.state is ServerState.RUNNING:
            self._move(ServerState.DRAINING)
            for peer in self.connections.owners():
                self._outcomes.notify(peer, "stopping", [])

    def stop(self) -> None:
        """Nothing is left to answer and nothing more will be received. Raises StoreError."""
        self._move(ServerState.STOPPED)
        self.shard.finish()

    def _move(self, to: ServerState) -> None:
        if to not in _MOVES[self.state]:
            raise AssertionError(f"a server that is {self.state.value} can't be {to.value}")
        self.state = to

    @property
    def pending(self) -> int:
        """Messages that wait."""
        return self.shard.rounds.pending

    @property
    def peer_messages(self) -> int:
        """Messages of one peer that may wait."""
        return self.shard.rounds.limits.peer_messages

    def check(self) -> None:
        """What holds between two steps. Raises AssertionError; for tests, it takes its time."""
        self.shard.check()

    # --- what the server tells of itself ---

    def _hello(self) -> Values:
        queue = self.shard.rounds.limits
        return (
            {
                "server": self.meters.server,
                "versions": [wire.VERSION],
                "boot": self._boot,
                "clock": self._outcomes.now,
                "durability": self.meters.durability,
                "models": [_describe(sessions) for sessions in self.shard.tables],
                "limits": {
                    "frame_bytes": self._limits.frame_bytes,
                    "name_bytes": self._limits.name_bytes,
                    "list_items": self._limits.items,
                    "pending_messages": queue.peer_messages,
                    "pending_bytes": queue.peer_bytes,
                    "ttl_s": self._ttl_s,
                },
            },
        )

    def _stats(self) -> Values:
        return (self.stats(self._outcomes.now),)

    def stats(self, now: float) -> dict[str, Any]:
        """All meters by name, those of each model under `models`; what `stats` answers."""
        server = self.meters
        server.state = self.state.value
        server.uptime_s = now - self._started_s
        server.clients = sum(1 for _ in self.connections.owners())
        server.pending = self.pending
        server.wait_s = self.shard.rounds.wait_s
        models = {each.name: meters.values(each.measure()) for each in self.shard.tables}
        return meters.values(server) | {"models": models}


def _head_text(head: Head) -> str:
    """A head as hello tells it; the residuals are as many as the horizon has steps."""
    return json.dumps(head.description() | {"residuals": []})


def _describe(sessions: Sessions) -> dict[str, Any]:
    model = sessions.model
    largest = sessions.engine.largest_event
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "dtype": sessions.dtype.name,
        "head": None if model.head is None else _head_text(model.head),
        "inputs": [[feature.name, feature.unit] for feature in model.inputs],
        "outputs": [[feature.name, feature.unit] for feature in model.outputs],
        "run_rows": sessions.bounds.run_rows,
        "forecast_steps": sessions.bounds.forecast_steps,
        "window": sessions.answers.window,
        "largest": None if largest is None else [float(number) for number in largest],
    }
