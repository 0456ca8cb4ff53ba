"""The loop of the server: one port, the protocol, one thread.

A turn receives what has arrived (a bounded number of messages), takes one step of the protocol and
sends its replies. No timer: when messages come one at a time each is stepped at once, and batches
form only when messages come faster than they are stepped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from streamlstm.service.server.log import log
from streamlstm.service.server.port_zmq import Port
from streamlstm.service.server.protocol import ServerProtocol

MESSAGES_PER_TURN_MAX: Final = 1024
PENDING_MAX: Final = 4096
"""While so many messages of all clients wait, new ones are left in the port."""

TICK_S: Final = 1.0
GRACE_S: Final = 5.0
"""A drain that takes longer is broken off."""

QUIET_MS: Final = 20
"""At the end: nothing came for so long, so that nothing more is in the connections."""


class Loop:
    """`run`s until `stop` was called and everything waiting is answered."""

    def __init__(self, protocol: ServerProtocol, port: Port, clock: Callable[[], float]) -> None:
        self._protocol = protocol
        self._port = port
        self._clock = clock
        self._stopping = False
        self._now = 0.0  # the last turn's

    def stop(self) -> None:
        """Ask `run` to drain and return. Safe in signal handlers and from other threads."""
        self._stopping = True

    def run(self) -> None:
        """Serve until stopped. Raises StoreError: the server must end."""
        protocol = self._protocol
        next_tick_s = self._clock() + TICK_S
        while not self._stopping:
            self._turn()
            if self._now >= next_tick_s and not protocol.pending and self._port.is_empty:
                next_tick_s = self._now + TICK_S
                self._tick()
        log("draining", pending=protocol.pending)
        self._finish()

    def _turn(self) -> int:
        """Receive, step, send; how many messages there were."""
        protocol, port = self._protocol, self._port
        pending = protocol.pending
        received = 0
        budget = min(MESSAGES_PER_TURN_MAX, PENDING_MAX - pending)
        for peer, frames in port.receive(budget, wait=not pending):
            protocol.receive(peer, frames)
            received += 1
        self._now = self._clock()
        if protocol.deliver(protocol.step(self._now), port.send):
            log("overrun", level="warning", overruns=protocol.meters.overruns)
        return received

    def _tick(self) -> None:
        self._protocol.mend(self._port.send)
        evicted = self._protocol.tick()
        if evicted:
            log("evicted", sessions=evicted)

    def _finish(self) -> None:
        """Answer everything that is here, and stop."""
        protocol = self._protocol
        protocol.drain()
        self._port.patience(QUIET_MS)
        until_s = self._clock() + GRACE_S
        while self._clock() < until_s:
            received = self._turn()
            if not protocol.pending and not received:
                break
        else:
            log("drain broken off", level="error", pending=protocol.pending)
        protocol.stop()
