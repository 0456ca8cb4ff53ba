"""What a refusal means for a call, and what it means that no answer came.

Sending again. A message without an answer is sent again, the same bytes, and so is all that is in
flight on its lane, in order. Whether the server did it the first time, it knows by the number. A
refusal that is no verdict (BUSY, STOPPING, the gap that follows one) only delays that.
"""

from __future__ import annotations

import random
from math import inf
from typing import Any, Final

import numpy as np

from streamlstm.errors import (
    AnswerGoneError,
    SequenceError,
    ServerBusyError,
    ServerInternalError,
    ServerStoppingError,
    ServerTimeoutError,
    SessionClosedError,
    SessionEvictedError,
    SessionFencedError,
    SessionQuarantinedError,
    SessionUnknownError,
    StreamLSTMError,
)
from streamlstm.service import operations, wire
from streamlstm.service.client.attachments import Attachments
from streamlstm.service.client.fates import LOOKS, Fate
from streamlstm.service.client.outbox import EVENTS
from streamlstm.service.client.sessions import Call, ClientSession

STOPPING_S: Final = 0.2
RETRY_S: Final = 0.05
"""After BUSY that does not say when."""

HELLO_S_MAX: Final = 5.0
"""A new client's patience: an address where nobody is should be told soon."""


class Refusals:
    """address, patience_s: for sentences, and how long a server may ask to wait."""

    def __init__(
        self, attachments: Attachments, address: str, patience_s: float, rng: random.Random
    ) -> None:
        self.outbox = attachments.outbox
        self.lanes = attachments.lanes
        self.attachments = attachments
        self._address = address
        self._patience_s = patience_s
        self._rng = rng

    def refused(
        self, call: Call, error: StreamLSTMError, details: dict[str, Any], now: float
    ) -> None:
        """The server refused a call's message."""
        call.copies -= 1
        if isinstance(error, (ServerBusyError, ServerStoppingError)):
            self._later(call, error, details, now)
        elif call is self.attachments.greeting:
            pass  # it is sent again
        elif call.attaches is not None:
            self.attachments.attach_refused(call, error, details, now)
        elif isinstance(error, ServerInternalError):
            self.lose(call, error, now)
        elif call.group is not None:
            self._steps_refused(call, error, now)
        elif call.session is not None:
            self._event_refused(call, call.session, error, details, now)
        else:
            self.refuse(call, error, now)

    def refuse(self, call: Call, error: StreamLSTMError, now: float, late: bool = False) -> None:
        """It was not done, and what was pipelined behind it is not either.

        late: a copy may still be on its way and be done, so that its number can't be used again
        at this epoch.
        """
        session = call.session
        behind: list[Call] = []
        if session is not None and call.takes:
            known = [*session.flight, *session.queue]
            behind = [c for c in known[known.index(call) + 1 :] if c.op in EVENTS]
        sent = any(c.ident for c in behind)
        self.lanes.finish(call, error=error)
        for each in behind:
            self.lanes.finish(
                each, error=SequenceError(f"not stepped: the event before it was refused: {error}")
            )
        if call.group is not None and late:
            for member in call.group.sessions:
                self.attachments.detach(member, now)
        elif session is not None and (sent or late):
            self.attachments.detach(session, now)
        self.lanes.go_on(call, now)

    def lose(self, call: Call, error: StreamLSTMError, now: float) -> None:
        """It may have been done or not."""
        ledger, group, session = self.lanes.ledger, call.group, call.session
        self.lanes.finish(call, error=error)
        if group is not None:
            fates = ledger.fates[group.rows]
            ledger.fates[group.rows] = np.where(fates == Fate.OPEN, Fate.UNKNOWN_FATE, fates)
            ledger.changes += 1
            if self.lanes.waiting or self.lanes.detached:
                for member in group.sessions:
                    self.attachments.settle(member, now)
        elif session is not None and session.fate in (Fate.OPEN, Fate.QUARANTINED):
            self.attachments.end(session, Fate.UNKNOWN_FATE, now)
        self.lanes.go_on(call, now)

    def expire(self, call: Call, now: float) -> None:
        """A message was sent, and its caller's patience has ended."""
        refused = call.refusal if call.copies <= 0 and not call.lane.detached else None
        if refused is not None:
            self.refuse(call, refused, now, late=True)
        elif call.op is operations.FORK or call.op in LOOKS:  # change nothing here
            self.refuse(call, self.timed_out(call), now)
        else:
            self.lose(call, self.timed_out(call), now)

    def timed_out(self, call: Call) -> ServerTimeoutError:
        patience_s = self._patience_s
        if call.op is operations.HELLO:
            patience_s = min(patience_s, HELLO_S_MAX)
        return ServerTimeoutError(
            f"no answer to {call.op.name} from {self._address} within {patience_s:g} s: "
            "is the server running there?"
        )

    def unreadable(self, bad: Exception, now: float) -> None:
        """It could be the answer to anything: all that wait are told."""
        if not isinstance(bad, wire.BadMessageError):
            bad = wire.BadMessageError(f"a reply can't be read: {bad}")
        for call in list(self.outbox.calls.values()):
            if not call.done and call is not self.attachments.greeting and call.attaches is None:
                self.lose(call, wire.BadMessageError(str(bad)), now)

    def _later(
        self, call: Call, error: StreamLSTMError, details: dict[str, Any], now: float
    ) -> None:
        """Not done now: again, with all that is behind it."""
        call.refusal = error
        lane = call.lane
        if lane.detached or call.missing:
            return
        after_s = details.get("retry_after_s")
        if isinstance(error, ServerStoppingError):
            after_s = STOPPING_S
        elif type(after_s) not in (int, float) or not 0 <= after_s <= self._patience_s:  # type: ignore[operator]
            after_s = RETRY_S
        due = now + after_s * (1 + self._rng.random() / 2)  # type: ignore[operator]
        for each in lane.flight or (call,):
            each.due_s = due
        lane.held = True
        self.outbox.due_s = min(self.outbox.due_s, due)

    def _event_refused(
        self,
        call: Call,
        session: ClientSession,
        error: StreamLSTMError,
        details: dict[str, Any],
        now: float,
    ) -> None:
        if isinstance(error, (SessionUnknownError, SessionFencedError)) and not session.closed:
            self.attachments.detach(session, now)
        elif isinstance(error, (SessionUnknownError, SessionFencedError)):
            if call.op is operations.CLOSE:
                self.attachments.settle(session, now)
            else:
                self.refuse(call, error, now)
        elif isinstance(error, (SessionClosedError, SessionEvictedError)):
            fate = Fate.CLOSED if isinstance(error, SessionClosedError) else Fate.EVICTED
            if call.op is not operations.CLOSE:
                self.lanes.finish(call, error=error)
            self.attachments.end(session, fate, now)
            self.lanes.go_on(call, now)
        elif isinstance(error, SessionQuarantinedError):
            self._quarantined(call, session, error, details, now)
        elif isinstance(error, AnswerGoneError):  # something was applied, and nobody can tell what
            self.lose(call, error, now)
        elif isinstance(error, SequenceError) and type(details.get("expected")) is int:
            self._out_of_order(call, session, error, details["expected"], now)
        else:
            self.refuse(call, error, now, late=call.copies > 0)

    def _out_of_order(
        self, call: Call, session: ClientSession, error: SequenceError, expected: int, now: float
    ) -> None:
        """A gap: one before it did not arrive, or was refused BUSY. All again, in order."""
        if session.detached:
            return
        if expected > call.seq:  # the server has another event of that number
            self.lose(call, error, now)
        elif expected == call.seq:
            self.refuse(call, error, now)
        elif call.copies > 0 or session.held:
            pass  # a later copy is on its way, or will be
        elif session.flight[0] is call:  # everything before it was acknowledged
            self.attachments.detach(session, now)
        else:
            self.attachments.resend(call, now)

    def _quarantined(
        self,
        call: Call,
        session: ClientSession,
        error: StreamLSTMError,
        details: dict[str, Any],
        now: float,
    ) -> None:
        """An event made the state non-finite: this one, or one before it."""
        seq = details.get("seq")
        behind = [each for each in session.flight if each.seq > call.seq]
        sent = session.flight[-1] is not call
        self.lanes.finish(call, error=error)
        ledger, row = session.ledger, session.row
        if type(seq) is int and ledger.row_seqs[row] < seq < 2**63:
            ledger.row_seqs[row] = seq
        self.attachments.end(session, Fate.QUARANTINED, now, flight=False)
        for each in behind:
            if not each.done:
                self.lanes.finish(each, error=session.error())
        if sent or type(seq) is not int:  # the numbers of what was behind it go to others
            self.attachments.detach(session, now)
        self.lanes.go_on(call, now)

    def _steps_refused(self, call: Call, error: StreamLSTMError, now: float) -> None:
        group = call.group
        assert group is not None
        if isinstance(error, AnswerGoneError):
            self.lose(call, error, now)
            return
        if not isinstance(error, (SessionUnknownError, SessionFencedError)):
            self.refuse(call, error, now, late=call.copies > 0)
            return
        for session in group.sessions:
            if session.closed:
                self.attachments.break_up(call, session.error(), now)
                return
        if not call.missing:
            call.missing = set(group.sessions)
            call.due_s = inf
            for session in group.sessions:
                self.attachments.detach(session, now)
