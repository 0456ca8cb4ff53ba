"""What may be sent when: calls wait on the lanes of their sessions, and go in order.

A session is a lane: messages sent and unanswered (`flight`), in the order of their numbers, then
those that wait (`queue`). An event gets its number, the session's last + 1, as it is sent, so that
what was never sent never had one. Up to a window of events is in flight; anything else (run, reset,
state ...) is alone there. A steps message is in flight on all its members at once, and stands in
each one's queue if it has to wait for one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from streamlstm.errors import ServiceError, StreamLSTMError
from streamlstm.service.client.outbox import Outbox
from streamlstm.service.client.sessions import Call, ClientGroup, ClientSession, Lane, Ledger


class Lanes:
    """waiting: calls not sent yet. bulks: steps messages that are in flight. detached: sessions
    that may not send. sent: messages that count against the client's `credit`. attach: called with
    a session that has something to send, and has to be attached first. ended: why no more is taken.
    """

    attach: Callable[[ClientSession, float], None]

    def __init__(self, outbox: Outbox, ledger: Ledger) -> None:
        self.outbox = outbox
        self.ledger = ledger
        self.waiting: dict[Call, None] = {}
        self.bulks: dict[Call, None] = {}
        self.detached: set[ClientSession] = set()
        self.sent = 0
        self.credit = 1
        self.ended: ServiceError | None = None
        self._starved: deque[Lane] = deque()

    def submit(self, call: Call, now: float) -> Call:
        """Send a call when its turn on its lane comes. Raises ServiceError after the end."""
        if self.ended is not None:
            raise ServiceError(str(self.ended))
        lane = call.lane
        lane.queue.append(call)
        self.advance(lane, now)
        if not call.ident:
            self.note_waiting(call)
        return call

    def note_waiting(self, call: Call) -> None:
        """A call that could not be sent is watched for its caller's patience."""
        if not call.ident and not call.done:
            self.waiting[call] = None
            self.outbox.due_s = min(self.outbox.due_s, call.expire_s)

    def advance(self, lane: Lane, now: float) -> None:
        """Send what may be sent of a lane's queue."""
        queue, flight = lane.queue, lane.flight
        while queue:
            if lane.held:
                if lane.detached:
                    self.attach(lane, now)  # type: ignore[arg-type]
                return
            call = queue[0]
            last = lane.seq
            if flight:
                if call.alone or flight[-1].alone:
                    return
                last = max(last, flight[-1].last)
                # Counted from the first, for answers may overtake each other and the server
                # keeps those to the last `window` numbers.
                if last - flight[0].seq + 1 >= lane.window:
                    return
            if call.group is not None:
                members = call.group.sessions
                if call.ready == len(members) or members[call.ready] is lane:
                    self.try_bulk(call, now)
                return
            if self.bulks and call.session is not None and self.bulk_of(call.session):
                return
            if self.sent >= self.credit:
                if not lane.starved:
                    lane.starved = True
                    self._starved.append(lane)
                return
            queue.popleft()
            if self.waiting:
                self.waiting.pop(call, None)
            call.seq = last + 1
            call.last = last + call.takes
            flight.append(call)
            self.sent += 1
            self.outbox.transmit(call, now)

    def is_idle(self, group: ClientGroup) -> bool:
        """Whether nothing is in flight, or waits, on any member."""
        for call in self.bulks:
            if not group.row_set.isdisjoint(call.group.row_set):  # type: ignore[union-attr]
                return False
        if len(self.outbox.calls) == len(self.bulks) and not (self.waiting or self.detached):
            return True
        return not any(s.queue or s.flight or s.held for s in group.sessions)

    def bulk_of(self, session: ClientSession) -> Call | None:
        """The steps message that is in flight on a session."""
        for call in self.bulks:
            if session.row in call.group.row_set:  # type: ignore[union-attr]
                return call
        return None

    def try_bulk(self, call: Call, now: float) -> None:
        """Send a steps message that waits, if every member is ready; each is looked at once."""
        group = call.group
        assert group is not None
        members = group.sessions
        while call.ready < len(members):
            session = members[call.ready]
            if session.queue[0] is not call or session.flight or self.bulk_of(session):
                return
            if session.held:
                if session.detached:
                    self.attach(session, now)
                return
            call.ready += 1
        if self.sent >= self.credit:
            if not members[0].starved:
                members[0].starved = True
                self._starved.append(members[0])
            return
        for session in members:
            session.queue.popleft()
        self.waiting.pop(call, None)
        if group.changes != self.ledger.changes:
            group.pack()
        self.send_bulk(call, now)

    def send_bulk(self, call: Call, now: float) -> None:
        """Send a steps message, with the next number of each member."""
        group = call.group
        assert group is not None
        call.seq = self.ledger.seqs[group.rows] + 1
        call.lane.flight.append(call)
        self.bulks[call] = None
        self.sent += 1
        self.outbox.transmit(call, now)

    def finish(self, call: Call, result: Any = None, error: StreamLSTMError | None = None) -> None:
        """It is done; `go_on` sends what waited for it."""
        if call.ident:
            del self.outbox.calls[call.ident]
            self.sent -= 1
            lane = call.lane
            flight = lane.flight
            if flight[0] is call:
                flight.popleft()
            else:
                flight.remove(call)
            if lane.held and not flight:
                lane.held = lane.detached  # nothing is left to be sent again first
            if call.group is not None:
                del self.bulks[call]
        else:
            self.waiting.pop(call, None)
            for lane in (call.lane,) if call.group is None else call.group.sessions:
                lane.queue.remove(call)
        call.result, call.error, call.done = result, error, True
        if call.on_done is not None:
            call.on_done(call)

    def go_on(self, call: Call, now: float) -> None:
        """Send what waited for a call that is done."""
        if call.lane.queue:
            self.advance(call.lane, now)
        if call.group is not None and self.waiting:
            for session in call.group.sessions:
                self.advance(session, now)
        while self._starved and self.sent < self.credit:
            lane = self._starved.popleft()
            lane.starved = False
            self.advance(lane, now)
