"""Messages that were sent and are unanswered, and the frames that are to leave."""

from __future__ import annotations

from math import inf
from typing import Any, Final

from streamlstm.service import operations, wire
from streamlstm.service.client.fates import LOOKS
from streamlstm.service.client.sessions import RESEND_S, Call

EVENTS: Final = (operations.STEP, operations.RUN)
"""Operations that go behind each other on a session."""


class Outbox:
    """calls: by the id of their message. due_s: nothing has to be done earlier; see
    ClientProtocol.tick. clock_offset_s: the server's clock less the caller's."""

    def __init__(self) -> None:
        self.calls: dict[wire.Ident, Call] = {}
        self.due_s = inf
        self.clock_offset_s = 0.0
        self._encode = wire.Encoder().request
        self._out: list[bytes] = []
        self._ident = 0

    def outgoing(self) -> list[bytes]:
        """Frames to send now, in order."""
        out, self._out = self._out, []
        return out

    def transmit(self, call: Call, now: float) -> None:
        """Send a call's message, encoded the first time."""
        if not call.frame:
            if not call.ident:
                self.enter(call)
            call.frame = self._encode(call.op.name, call.ident, self._fields(call))
            self.due_s = min(self.due_s, call.expire_s)
        self._out.append(call.frame)
        call.copies += 1
        call.due_s = due = now + call.wait_s
        self.due_s = min(self.due_s, due)

    def renew(self, call: Call) -> None:
        """A call's message gets another id, and is encoded anew when it is sent."""
        del self.calls[call.ident]
        self.enter(call)
        call.frame, call.copies, call.wait_s, call.due_s = b"", 0, RESEND_S, inf

    def enter(self, call: Call) -> None:
        """Give a call a new id, by which its answer is known."""
        self._ident = call.ident = ident = self._ident + 1
        self.calls[ident] = call

    def _fields(self, call: Call) -> tuple[Any, ...]:
        op, session, group = call.op, call.session, call.group
        deadline = call.deadline_s
        if deadline is not None:
            deadline += self.clock_offset_s
        if group is not None:
            return group.handles, group.epochs, call.seq.tobytes(), deadline, call.payload
        if session is None:
            return call.args
        if op in EVENTS:
            return session.handle, session.epoch, call.seq, deadline, call.payload
        if op is operations.CLOSE or op in LOOKS:
            return session.handle, session.epoch, *call.args
        return session.handle, session.epoch, call.last, *call.args
