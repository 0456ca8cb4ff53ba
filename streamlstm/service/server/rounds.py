"""What waits to be done, in rounds: the order of messages, fairness and the queue's bounds.

A round holds at most one message of a session, so that a micro-batch never
has a session twice and one session's messages keep their order: a message
goes into the first round after its session's last one. Sessions wait for
their own messages only. A turn takes as much of a round as TURN_WORK.

Work is counted in multiply-adds, as many as a model has parameters for each
event, and MESSAGE_WORK for what is done around them. How long a unit takes is
measured. The queue is bounded by the messages and bytes of one peer, and by the
time that what waits will take: beyond it a message is refused BUSY and nothing
of it was done. Who has nothing waiting yet gets in until twice that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from streamlstm.errors import ServerBusyError
from streamlstm.service.server.connections import Peer
from streamlstm.service.server.requests import Request

QUEUE_S_MAX: Final = 0.25
TURN_WORK: Final = 20_000_000
"""Some 10 ms in which nobody else gets in."""
RETRY_S_MIN: Final = 0.01
PACE: Final = 0.2
"""Weight of the last turn in what is measured."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much of one peer may wait; beyond it a message is answered BUSY and not stepped."""

    peer_messages: int = 1024
    peer_bytes: int = 32 << 20


class BusyError(ServerBusyError):
    """Keeps the time for the reply's details."""

    def __init__(self, why: str, retry_after_s: float) -> None:
        super().__init__(
            f"{why}: the event was not stepped, send it again after {retry_after_s:.3f} s"
        )
        self.details = {"retry_after_s": retry_after_s}


class Rounds:
    """The queue. `number` is that of the round which is taken next."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.number = 0
        self.pending = 0  # messages
        self._work = 0
        self._turn_s = 0.0  # a turn takes so long, and does so much work
        self._turn_work = 1.0
        self._rounds: deque[list[Request]] = deque()
        self._begun = False  # a part of the next round was taken

    @property
    def earliest(self) -> int:
        """The round for what waits for nobody: one that has begun takes no more."""
        return self.number + self._begun

    @property
    def wait_s(self) -> float:
        """How long what waits will take."""
        return self._work * self._turn_s / self._turn_work

    def admit(self, peer: Peer, size: int) -> None:
        """Raise BusyError if there is no room for a message of `size` bytes."""
        limits, wait_s = self.limits, self.wait_s
        if peer.pending >= limits.peer_messages or peer.pending_bytes + size > limits.peer_bytes:
            raise BusyError(
                f"{peer.pending} messages of this client wait", max(RETRY_S_MIN, wait_s)
            )
        if wait_s > QUEUE_S_MAX and (peer.pending or wait_s > 2 * QUEUE_S_MAX):
            raise BusyError("the server has more to do than it can soon", wait_s)

    def after(self, last: int, window: int) -> int:
        """The round for a message of a session whose last one is in round `last`.

        Raises BusyError when `window` of it wait: the answers of more would not be kept.
        """
        number = max(self.earliest, last + 1)
        if number - self.number >= window:
            raise BusyError(
                f"{window} messages of this session wait", max(RETRY_S_MIN, self.wait_s)
            )
        return number

    def put(self, request: Request, number: int) -> None:
        """Into the round of that number, or the next one."""
        peer = request.peer
        peer.pending += 1
        peer.pending_bytes += request.size
        self.pending += 1
        self._work += request.work
        index = number - self.number
        while index >= len(self._rounds):
            self._rounds.append([])
        self._rounds[index].append(request)

    def take(self) -> list[Request]:
        """The next turn's requests, at most one of a session; `done` with each later."""
        if not self._rounds:
            return []
        requests = self._rounds[0]
        if len(requests) > 1 and self._work > TURN_WORK:
            work = 0
            for count, request in enumerate(requests, 1):
                work += request.work
                if work >= TURN_WORK and count < len(requests):
                    self._rounds[0] = requests[count:]
                    self._begun = True
                    return requests[:count]
        self._rounds.popleft()
        self._begun = False
        self.number += 1
        return requests

    def measured(self, requests: list[Request], elapsed_s: float) -> None:
        """A turn took that long."""
        # Apart, so that a turn of much work weighs more than one of little.
        self._turn_s += PACE * (elapsed_s - self._turn_s)
        work = requests[0].work if len(requests) == 1 else sum(each.work for each in requests)
        self._turn_work += PACE * (work - self._turn_work)

    def done(self, request: Request) -> None:
        peer = request.peer
        peer.pending -= 1
        peer.pending_bytes -= request.size
        self.pending -= 1
        self._work -= request.work

    def drop(self, address: bytes) -> list[Request]:
        """Take out everything of one peer."""
        dropped: list[Request] = []
        for number, requests in enumerate(self._rounds):
            mine = [request for request in requests if request.peer.address == address]
            if mine:
                self._rounds[number] = [r for r in requests if r.peer.address != address]
                dropped += mine
        for request in dropped:
            self.done(request)
        return dropped

    def check(self) -> None:
        """What holds between two turns. Raises AssertionError."""
        waiting = [request for requests in self._rounds for request in requests]
        assert self.pending == len(waiting), "messages that wait are not counted"
        assert self._work == sum(request.work for request in waiting)
        of_peers: dict[Peer, int] = {}
        for request in waiting:
            of_peers[request.peer] = of_peers.get(request.peer, 0) + 1
        for peer, count in of_peers.items():
            assert peer.pending == count, "a peer's messages that wait are not counted"
        for requests in self._rounds:
            seats = [(id(r.sessions), r.seat) for r in requests if r.op.to_session]
            assert len(seats) == len(set(seats)), "a session stands twice in a round"
