"""Sessions that were lost, on their way back; and how they end.

(handle, epoch) is lost when the server restarts or the connection comes back as another peer. Then
`hello` and `open` with the epoch get a new one, the server's seq is compared with what was
acknowledged, and what is unanswered goes again: under its old numbers, with a new id. It is also
the way to use a number twice: nothing sent under an earlier epoch is ever stepped. So wherever a
message was given up whose number goes to another, the session is detached: it is attached again
before it sends anything.

Fates. Where no answer tells what became of a message the session refuses to go on, until it was
opened again with resume=True and its seq compared.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from logging import DEBUG, INFO
from math import inf
from typing import Any, Final

from streamlstm.errors import (
    ModelError,
    ServerInternalError,
    SessionClosedError,
    SessionEvictedError,
    SessionFencedError,
    SessionUnknownError,
    StreamLSTMError,
)
from streamlstm.service import operations
from streamlstm.service.client.attachment import Attachment
from streamlstm.service.client.fates import ENDED, IN_QUARANTINE, Fate
from streamlstm.service.client.lanes import Lanes
from streamlstm.service.client.models import RemoteModel
from streamlstm.service.client.sessions import RESEND_S, Call, ClientSession, Lane

RESEND_S_MAX: Final = 5.0
REATTACH_S: Final = 0.2
"""Between two re-attachments without an answer to anything else; doubled up to RESEND_S_MAX."""

CLIENT: Final = {"client": "streamlstm-python"}
"""What a client says of itself."""


class Attachments:
    """models: the server's, by name. greeting: the hello that those in the lobby wait for. paused:
    sessions whose next re-attachment waits a moment. attaching: opens that are sent."""

    def __init__(
        self,
        lanes: Lanes,
        models: dict[str, RemoteModel],
        address: str,
        rng: random.Random,
        report: Callable[[int, str], None],
    ) -> None:
        self.outbox = lanes.outbox
        self.lanes = lanes
        self.models = models
        self.address = address
        self.greeting: Call | None = None
        self.paused = 0
        self.attaching = 0
        self._lobby: deque[ClientSession] = deque()
        self._rng = rng
        self._report = report
        lanes.attach = self.attach

    def detach(self, session: ClientSession, now: float) -> None:
        """(handle, epoch) must not be used any more."""
        if session.detached or not session.row:  # or it was closed, and has left
            return
        session.become(Attachment.DETACHED)
        session.held = True
        session.ledger.changes += 1
        self.lanes.detached.add(session)
        for call in session.flight:
            call.due_s = inf
        if session.flight or session.queue or self.lanes.bulk_of(session):
            self.attach(session, now)

    def attach(self, session: ClientSession, now: float) -> None:
        """Begin to get a session again, unless that has begun."""
        if session.attach is not None:
            return
        if session.token is None:
            session.token = self._rng.getrandbits(63)
        session.attach = call = Call(operations.OPEN, Lane(), None, inf)
        call.attaches = session
        if session.attach_wait_s:
            session.become(Attachment.PAUSED)
            self.outbox.enter(call)
            call.due_s = now + session.attach_wait_s
            self.outbox.due_s = min(self.outbox.due_s, call.due_s)
        else:
            self.enter_lobby(session, now)

    def resend(self, call: Call, now: float) -> None:
        """Everything in flight on a call's lane again, in order."""
        if call.attaches is not None:
            self.enter_lobby(call.attaches, now)
            return
        lane = call.lane
        if lane.detached:  # it is sent again when the session is attached
            call.due_s = inf
            self.attach(lane, now)  # type: ignore[arg-type]
            return
        if call.missing:
            call.due_s = inf
            return
        self._report(DEBUG, f"{call.op.name} to {self.address} is sent again")
        held, lane.held = lane.held, False
        for each in lane.flight:
            if not held:  # else it was answered: try again later
                each.wait_s = min(2 * each.wait_s, RESEND_S_MAX)
            self.outbox.transmit(each, now)
        self.lanes.advance(lane, now)

    def enter_lobby(self, session: ClientSession, now: float) -> None:
        """Ask for the session, again or at last, after a hello: the server may be another one."""
        call = session.attach
        assert call is not None
        self._forget(call)
        session.become(Attachment.LOBBY)
        self._lobby.append(session)
        if self.greeting is None:
            self.greeting = hello = Call(operations.HELLO, Lane(), None, inf)
            hello.args = (CLIENT,)
            hello.lane.flight.append(hello)
            self.outbox.transmit(hello, now)

    def feed_lobby(self, now: float) -> None:
        """Opens are many when a group re-attaches, and must not wait for credit."""
        while self._lobby and self.attaching < max(1, self.lanes.credit // 2):
            session = self._lobby.popleft()
            call = session.attach
            if call is None or session.attachment is not Attachment.LOBBY:
                continue  # given up, or begun anew and sent already
            session.become(Attachment.ASKED)
            call.args = (session.name, session.model.name, True, session.epoch, session.token)
            self.attaching += 1
            self.outbox.transmit(call, now)

    def _forget(self, call: Call) -> None:
        """A re-attachment's message is not waited for any more."""
        if call.frame:
            self.attaching -= 1
        if call.ident:
            del self.outbox.calls[call.ident]
        call.ident, call.frame, call.wait_s = 0, b"", min(2 * call.wait_s, RESEND_S_MAX)

    def release(self, session: ClientSession) -> None:
        """A session is not detached any more, or has ended."""
        if session.attach is not None:
            self._forget(session.attach)
            session.attach = None
        if session.detached:
            session.become(Attachment.ATTACHED)
        session.held = False
        self.lanes.detached.discard(session)

    def attached(
        self, session: ClientSession, opened: tuple[int, int, int], fingerprint: str, now: float
    ) -> None:
        """The session is ours again, as (handle, epoch, seq); is seq what was acknowledged?"""
        handle, epoch, seq = opened
        self.release(session)
        self._report(INFO, f"session {session.name!r} is attached again, at event {seq}")
        session.token = None
        self.paused += not session.attach_wait_s
        session.attach_wait_s = min(max(REATTACH_S, 2 * session.attach_wait_s), RESEND_S_MAX)
        session.moved(handle, epoch)
        session.remote_seq = seq
        model = self.models.get(session.model.name, session.model)
        session.window = model.window
        bulk = self.lanes.bulk_of(session)
        ledger, row = session.ledger, session.row
        last = max([session.seq, *(call.last for call in session.flight)]) + (bulk is not None)
        if fingerprint != session.model.fingerprint:
            sentence = f"model {session.model.name!r} of the server is not the one it was: "
            self.end(
                session,
                Fate.UNKNOWN_FATE,
                now,
                error=ModelError(f"{sentence}open session {session.name!r} again"),
            )
        elif seq < session.seq:
            self.end(session, Fate.ROLLED_BACK, now, more=f", its last is {seq}")
        elif session.fate == Fate.QUARANTINED and not session.flight:
            ledger.row_seqs[row] = seq
        elif seq > last:  # an event that was given up was applied after all, or somebody cheats
            self.end(session, Fate.UNKNOWN_FATE, now)
        if bulk is not None:
            self._member_attached(bulk, session, now)
        for call in session.flight:
            self.outbox.renew(call)
            self.outbox.transmit(call, now)
        self.lanes.advance(session, now)
        if self.greeting is None:
            self.feed_lobby(now)

    def _member_attached(self, bulk: Call, session: ClientSession, now: float) -> None:
        if session.fate not in (Fate.OPEN, Fate.QUARANTINED):
            self.break_up(bulk, session.error(), now)
            return
        bulk.missing = bulk.missing - {session}
        if not bulk.missing and not bulk.done:
            assert bulk.group is not None
            bulk.group.pack()
            self.outbox.renew(bulk)
            self.outbox.transmit(bulk, now)

    def attach_refused(
        self, call: Call, error: StreamLSTMError, details: dict[str, Any], now: float
    ) -> None:
        """An open that was to get a session again was refused."""
        session = call.attaches
        assert session is not None
        if isinstance(error, ServerInternalError):
            call.due_s = now + RESEND_S  # with the same token
            return
        self._forget(call)
        session.attach = None
        session.become(Attachment.DETACHED)
        bulk = self.lanes.bulk_of(session)
        if isinstance(error, SessionFencedError):
            self.end(session, Fate.FENCED, now)
        elif isinstance(error, SessionUnknownError):
            self.end(session, Fate.LOST, now, more=f", and it has {details.get('seq', 0)} stored")
        elif isinstance(error, SessionEvictedError):
            self.end(session, Fate.EVICTED, now)
        elif isinstance(error, SessionClosedError):
            self.end(session, Fate.CLOSED, now)
        elif session.flight or bulk is not None:
            self.end(session, Fate.UNKNOWN_FATE, now, error=error)
        else:  # nothing is lost yet: it is tried again when something is asked for
            for each in list(session.queue):
                self.lanes.finish(each, error=type(error)(str(error)))
                self.lanes.go_on(each, now)
        if bulk is not None:
            self.break_up(bulk, session.error(), now)
        self.feed_lobby(now)

    def end(
        self,
        session: ClientSession,
        fate: int,
        now: float,
        *,
        more: str = "",
        error: StreamLSTMError | None = None,
        flight: bool = True,
    ) -> None:
        """Give a session its fate; what waits, and what is in flight unless told, ends with it."""
        session.ledger.row_fates[session.row] = fate
        session.ledger.changes += 1
        session.more = more
        self.settle(session, now, error, flight)
        bulk = None if fate == Fate.QUARANTINED else self.lanes.bulk_of(session)
        if bulk is not None and session in bulk.missing:
            self.break_up(bulk, session.error(), now)

    def settle(
        self,
        session: ClientSession,
        now: float,
        error: StreamLSTMError | None = None,
        flight: bool = True,
    ) -> None:
        """End the calls of a session that does not go on."""
        fate = session.fate
        if fate != Fate.QUARANTINED:
            self.release(session)
        ended = []
        closing = False
        for call in [*(session.flight if flight else ()), *session.queue]:
            if call.op is operations.CLOSE and fate in ENDED:
                closing = True
                ended.append(call)
                self.lanes.finish(call)
            elif call.op is not operations.CLOSE and not (
                fate == Fate.QUARANTINED and call.op in IN_QUARANTINE
            ):
                ended.append(call)
                sentence = session.error() if error is None else type(error)(str(error))
                self.lanes.finish(call, error=sentence)
        if closing:
            self.remove(session, now)
        for call in ended:
            self.lanes.go_on(call, now)
        if self.greeting is None:
            self.feed_lobby(now)  # a re-attachment that was given up leaves its place

    def remove(self, session: ClientSession, now: float) -> None:
        """A session that has ended leaves the ledger, and no steps message may still look there."""
        bulk = self.lanes.bulk_of(session)
        if bulk is not None:
            self.break_up(bulk, session.error(), now)
        if session.attach_wait_s:
            session.attach_wait_s = 0.0
            self.paused -= 1
        self.release(session)
        session.remove()

    def break_up(self, call: Call, error: StreamLSTMError, now: float) -> None:
        """A steps message lost a member for good, and can't be sent again as it was."""
        if call.done:
            return
        assert call.group is not None
        self.lanes.finish(call, error=error)
        for session in call.group.sessions:
            if session.fate:
                continue
            if not session.detached and session.remote_seq > session.seq:
                self.end(session, Fate.UNKNOWN_FATE, now)  # it was done, and its answer is lost
            else:
                self.detach(session, now)  # perhaps it was: the server's seq will tell
        self.lanes.go_on(call, now)
