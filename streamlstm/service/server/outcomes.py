"""What comes of requests, in the order it is to be told: done, refused, or a notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from streamlstm.errors import (
    DeadlineError,
    ServerInternalError,
    StoreDamagedError,
    StoreError,
    StreamLSTMError,
)
from streamlstm.service.server.connections import Connections, Peer
from streamlstm.service.server.meters import ServerMeters
from streamlstm.service.server.requests import Done, Entry, Notice, Outcome, Refused, Request
from streamlstm.service.server.rounds import Rounds
from streamlstm.service.wire import Ident

Report = Callable[[str, Exception], None]
"""Called with what the server was doing and the exception."""

OWN_FAULT: Final = "the server failed at {doing} by its own fault; its log says more"


class Outcomes:
    """Of the turn under way, and of messages refused since the last one.

    now, served_s: the turn's time by the clock, and in time served. Whatever is told of a request
    also takes it off the books of those that wait.
    """

    def __init__(
        self,
        rounds: Rounds,
        connections: Connections,
        meters: ServerMeters,
        report: Report | None,
    ) -> None:
        self._rounds = rounds
        self._connections = connections
        self._meters = meters
        self._report = report
        self._list: list[Outcome] = []
        self.now = self.served_s = 0.0

    def take(self) -> list[Outcome]:
        outcomes, self._list = self._list, []
        return outcomes

    def done(self, request: Request, values: tuple[object, ...]) -> None:
        peer = request.peer
        self._list.append(Done(peer.address, request.ident, values))
        self._rounds.done(request)
        if not peer.sessions:
            self._connections.forget_if_done(peer)

    def failed(self, request: Request, error: Exception) -> None:
        """It was refused, or it could not be done. Raises an error of the store on: the end."""
        if isinstance(error, StoreError) and not isinstance(error, StoreDamagedError):
            raise error
        if not isinstance(error, StreamLSTMError):
            self.fault(request.op.name, error)
            error = ServerInternalError(OWN_FAULT.format(doing=request.op.name))
        self.refused(request.peer.address, request.ident, error)
        self._rounds.done(request)
        self._connections.forget_if_done(request.peer)

    def refused(self, address: bytes, ident: Ident, error: StreamLSTMError) -> None:
        """Of a message that was never queued."""
        self._meters.errors[type(error).code] += 1
        self._list.append(Refused(address, ident, error))

    def notify(self, peer: Peer, kind: str, entries: list[Entry]) -> None:
        self._list.append(Notice(peer.address, kind, entries))

    def fault(self, doing: str, error: Exception) -> None:
        if self._report is not None:
            self._report(doing, error)

    def check_deadline(self, deadline: float | None) -> None:
        """Raise DeadlineError if a request's turn came too late."""
        if deadline is not None and self.now > deadline:
            raise DeadlineError(
                f"its turn came {self.now - deadline:.3f} s after the deadline: not stepped"
            )
