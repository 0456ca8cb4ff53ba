"""The client as a pure state machine: requests in, frames out; no socket, clock, thread or sleep.

`ClientProtocol` makes a `Call` of each request and keeps its message until it is answered.
Whoever drives it sends what `outgoing` gives, brings what arrives to `receive`, and calls
`tick` when `next_due` has come. Times are seconds of any clock that does not go backwards.

    outbox       messages that are unanswered, frames that are to leave
    lanes        what may be sent when
    attachments  sessions that were lost, on their way back; how they end
    refusals     what a refusal means, or that no answer came
    answers      what an answer means
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import INFO, WARNING
from math import inf
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import ServiceError, ShapeError
from streamlstm.service import operations, wire
from streamlstm.service.client.answers import Answers
from streamlstm.service.client.attachments import CLIENT, Attachments
from streamlstm.service.client.fates import NOTICES, Fate
from streamlstm.service.client.lanes import Lanes
from streamlstm.service.client.models import RemoteModel
from streamlstm.service.client.outbox import Outbox
from streamlstm.service.client.refusals import HELLO_S_MAX, Refusals
from streamlstm.service.client.sessions import (
    Call,
    ClientGroup,
    ClientSession,
    Lane,
    Ledger,
    RunCall,
)
from streamlstm.service.operations import Operation

Array = npt.NDArray[Any]

_REPLY_LIMITS: Final = wire.Limits(
    frame_bytes=1 << 30,
    items=1 << 20,
    depth=8,
    str_bytes=1 << 20,  # a head
)


class ClientProtocol:
    """Requests, replies, numbers and fates of one client.

    address: for sentences only.
    patience_s: how long a request may take, with all that is sent again.
    rng: draws tokens and jitter.
    report: called with a level of logging and a sentence, when something happens by itself.

    Methods that take `now` and return a Call raise at once what is wrong with their
    arguments; what becomes of the request is in the call.
    """

    def __init__(
        self,
        address: str,
        patience_s: float,
        rng: random.Random,
        report: Callable[[int, str], None] = lambda _level, _sentence: None,
    ) -> None:
        if not patience_s > 0:
            raise ServiceError(f"patience_s must be more than 0, got {patience_s}")
        self.address = address
        self.patience_s = patience_s
        self.models: dict[str, RemoteModel] = {}
        self.ledger = Ledger()
        self.outbox = Outbox()
        self.lanes = Lanes(self.outbox, self.ledger)
        self.attachments = Attachments(self.lanes, self.models, address, rng, report)
        self.refusals = Refusals(self.attachments, address, patience_s, rng)
        self.answers = Answers(self.refusals, self.models, patience_s)
        self._rng = rng
        self._report = report
        self._decode = wire.Decoder(_REPLY_LIMITS).reply

    @property
    def hello(self) -> dict[str, Any]:
        """What the server said of itself."""
        return self.answers.hello

    @property
    def stopping(self) -> bool:
        """Whether the server said that it stops."""
        return self.answers.stopping

    @property
    def due_s(self) -> float:
        """Nothing is due earlier; see `tick`."""
        return self.outbox.due_s

    def say_hello(self, *, now: float) -> Call:
        """Ask what the server has; anything else comes after. The result is None."""
        call = Call(operations.HELLO, Lane(), None, now + min(self.patience_s, HELLO_S_MAX))
        call.args = (CLIENT,)
        return self.lanes.submit(call, now)

    def open(self, name: str, model: str | None, resume: bool, *, now: float) -> Call:
        """The result is a ClientSession."""
        call = Call(operations.OPEN, Lane(), None, now + self.patience_s)
        call.args = (name, model, resume, None, self._token())
        return self.lanes.submit(call, now)

    def stats(self, *, now: float) -> Call:
        """The result is a dict."""
        return self.lanes.submit(Call(operations.STATS, Lane(), None, now + self.patience_s), now)

    def step(
        self, session: ClientSession, x: Any, deadline_s: float | None = None, *, now: float
    ) -> Call:
        """One event: x [inputs] -> [outputs]."""
        if session.ledger.row_fates[session.row]:
            session.check(operations.STEP)
        model = session.model
        if type(x) is not np.ndarray or x.dtype is not model.dtype or x.shape != model.shape:
            x = model.numbers(x, 1)
        call = Call(operations.STEP, session, session, now + self.patience_s)
        call.takes = 1
        call.payload = x.tobytes()
        if deadline_s is not None:
            call.deadline_s = now + deadline_s
        return self.lanes.submit(call, now)

    def run(
        self, session: ClientSession, X: Any, deadline_s: float | None = None, *, now: float
    ) -> Call:
        """A sequence of events: X [time, inputs] -> [time, outputs]. Patience is for each piece."""
        session.check(operations.RUN)
        model = session.model
        X = model.numbers(X, 2)
        model.check(X)  # looked at here, because a long run goes in pieces
        call = RunCall(operations.RUN, session, session, now + self.patience_s)
        if not len(X):
            call.result, call.done = model.result(b"", 0), True
            return call
        call.pieces, call.parts = model.pieces(X), []
        call.next_piece()
        if deadline_s is not None:
            call.deadline_s = now + deadline_s
        return self.lanes.submit(call, now)

    def control(self, session: ClientSession, op: Operation, *args: Any, now: float) -> Call:
        """reset, restore (takes bytes), close, fork (takes a name), or a look: state (the result
        is bytes), forecast (takes steps; [steps, quantiles]), counters (a dict)."""
        if op is operations.CLOSE and (not session.row or session.closed):
            self.attachments.remove(session, now)
            call = Call(op, session, session, now)
            call.done = True
            return call
        if not (op is operations.CLOSE and session.fate):
            session.check(op)
        call = Call(op, session, session, now + self.patience_s)
        call.alone = True
        call.takes = 1 if op in (operations.RESET, operations.RESTORE) else 0
        call.args = (*args, self._token()) if op is operations.FORK else args
        return self.lanes.submit(call, now)

    def group(self, sessions: Sequence[ClientSession]) -> ClientGroup:
        """Sessions of one model to be stepped together."""
        return ClientGroup(self.ledger, sessions)

    def steps(
        self, group: ClientGroup, X: Any, deadline_s: float | None = None, *, now: float
    ) -> Call:
        """One event of each member: X [n, inputs] -> [n, outputs]."""
        model = group.model
        if type(X) is not np.ndarray or X.dtype is not model.dtype or X.shape != group.shape:
            X = model.numbers(X, 2)
            if len(X) != len(group.rows):
                raise ShapeError(f"a group of {len(group.rows)} sessions needs as many rows of X")
        if group.changes != self.ledger.changes:
            group.refresh()
        call = Call(operations.STEPS, Lane(), None, now + self.patience_s)
        call.group = group
        call.payload = X.tobytes()
        if deadline_s is not None:
            call.deadline_s = now + deadline_s
        if self.lanes.ended is not None:
            raise ServiceError(str(self.lanes.ended))
        if self.lanes.sent < self.lanes.credit and self.lanes.is_idle(group):
            self.lanes.send_bulk(call, now)
        else:
            for session in group.sessions:
                session.queue.append(call)
            self.lanes.try_bulk(call, now)
            self.lanes.note_waiting(call)
        return call

    def outgoing(self) -> list[bytes]:
        """Frames to send now, in order."""
        return self.outbox.outgoing()

    def next_due(self) -> float | None:
        """When `tick` has something to do, or may have; None if only frames can bring news."""
        return None if self.outbox.due_s == inf else self.outbox.due_s

    def receive(self, frame: bytes, now: float) -> None:
        """Take one message of the server."""
        try:
            message = self._decode(frame)
            call = self.outbox.calls.get(message[2])
            status = message[1]
            if status == "notice" and message[2] is None and len(message) >= 4:
                self._notice(message[3], message[4] if len(message) > 4 else None, now)
            elif status == "error" and len(message) >= 5:
                error = wire.error_from_wire(message[3], message[4])
                details = message[5] if len(message) > 5 else None
            elif status != "ok":
                raise wire.BadMessageError(
                    f"the server sent a {status!r} message that makes no sense here"
                )
        except (wire.BadMessageError, TypeError) as bad:  # TypeError: an id of lists or maps
            self.refusals.unreadable(bad, now)
            return
        if call is None:
            return
        if status == "error":
            self.refusals.refused(call, error, details if type(details) is dict else {}, now)
            return
        try:
            self.answers.read(call, message, now)
        except (wire.BadMessageError, TypeError, ValueError, LookupError, ArithmeticError) as bad:
            if call is self.attachments.greeting or call.attaches is not None:
                return  # sent again; those who wait for it have their patience
            self.refusals.lose(
                call, wire.BadMessageError(f"the reply to {call.op.name} can't be read: {bad}"), now
            )

    def tick(self, now: float) -> None:
        """Send again what is due, and end what has waited too long."""
        for call in list(self.outbox.calls.values()):
            if call.done:
                continue
            if call.expire_s <= now:
                self.refusals.expire(call, now)
            elif call.due_s <= now:
                self.attachments.resend(call, now)
        for call in list(self.lanes.waiting):
            if not call.done and call.expire_s <= now:
                self.refusals.refuse(call, self.refusals.timed_out(call), now)
        self.outbox.due_s = inf
        for call in self.outbox.calls.values():
            self.outbox.due_s = min(self.outbox.due_s, call.due_s, call.expire_s)
        for call in self.lanes.waiting:
            self.outbox.due_s = min(self.outbox.due_s, call.expire_s)

    def abandon(self, call: Call, now: float) -> None:
        """Nobody waits for a call any more. What was sent may have been done."""
        if call.done:
            return
        error = ServiceError(f"the caller of {call.op.name} waits no more")
        if call.ident:
            self.refusals.lose(call, error, now)
        else:
            self.lanes.finish(call, error=error)
            self.lanes.go_on(call, now)

    def end(self, error: ServiceError, now: float) -> None:
        """The client is closed: whatever waits is told."""
        self.lanes.ended = error
        for call in [*self.lanes.waiting, *self.outbox.calls.values()]:
            if call.done:
                continue
            if call.ident and call is not self.attachments.greeting and call.attaches is None:
                self.refusals.lose(call, error, now)
            elif not call.ident:
                self.lanes.finish(call, error=error)

    def _token(self) -> int:
        return self._rng.getrandbits(63)

    def _notice(self, kind: object, entries: object, now: float) -> None:
        if kind == "stopping":
            self.answers.stopping = True
            self._report(INFO, f"the server at {self.address} is stopping")
        elif kind == "overrun":  # answers were lost
            self._report(WARNING, "answers were lost, for they were not read in time: asked again")
            for call in list(self.outbox.calls.values()):
                if not call.done and (call.attaches or call.lane.flight[0] is call):
                    self.attachments.resend(call, now)
        fate = NOTICES.get(kind) if isinstance(kind, str) else None
        if fate is None or not isinstance(entries, tuple):
            return
        for entry in entries:
            with suppress(TypeError, ValueError):  # not an entry as we know it
                _name, handle, epoch, seq, *_ = entry
                session = self.ledger.sessions.get((handle, epoch))
                if session is None or session.fate not in (Fate.OPEN, Fate.QUARANTINED):
                    continue
                if fate == Fate.QUARANTINED and seq < session.seq:
                    continue  # it was reset since
                # What is in flight was done before, or will be refused.
                self.attachments.end(session, fate, now, flight=session.detached)

    def check(self) -> None:
        """Raise AssertionError unless what the parts keep fits together; for tests."""
        lanes, attachments = self.lanes, self.attachments
        calls = list(self.outbox.calls.values())
        assert all(self.outbox.calls[call.ident] is call for call in calls)
        back = [call for call in calls if call.attaches is not None]
        others = [c for c in calls if c.attaches is None and c is not attachments.greeting]
        assert lanes.sent == len(others)
        assert attachments.attaching == sum(1 for call in back if call.frame)
        assert set(lanes.bulks) == {call for call in others if call.group is not None}
        assert not any(call.ident or call.done for call in lanes.waiting)
        sessions = set(self.ledger.sessions.values())
        assert lanes.detached == {session for session in sessions if session.detached}
        assert all(session.held for session in lanes.detached)
        assert all(s.detached for s in sessions if s.attach is not None)
        assert attachments.paused == sum(1 for s in sessions if s.attach_wait_s)
