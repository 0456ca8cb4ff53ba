"""The client as a pure state machine: requests in, frames out; no socket, clock, thread or sleep.

`ClientProtocol` makes a `Call` of each request and keeps its message until it is answered.
Whoever drives it sends what `outgoing` gives, brings what arrives to `receive`, and calls
`tick` when `next_due` has come. Times are seconds of any clock that does not go backwards.

Lanes. A session is a lane: messages sent and unanswered (`flight`), in the order of their
numbers, then those that wait (`queue`). An event gets its number, the session's last + 1, as
it is sent, so that what was never sent never had one. Up to a window of events is in flight;
anything else (run, reset, state ...) is alone there. A steps message is in flight on all
its members at once, and stands in each one's queue if it has to wait for one of them.

Sending again. A message without an answer is sent again, the same bytes, and so is all that
is in flight on its lane, in order. Whether the server did it the first time, it knows by the
number. A refusal that is no verdict (BUSY, STOPPING, the gap that follows one) only
delays that.

Re-attaching. (handle, epoch) is lost when the server restarts or the connection comes back
as another peer. Then `hello` and `open` with the epoch get a new one, the server's seq is
compared with what was acknowledged, and what is unanswered goes again: under its old numbers,
with a new id. It is also the way to use a number twice: nothing sent under an earlier epoch is
ever stepped. So wherever a message was given up whose number goes to another, the session is
`detached`: it re-attaches before it sends anything.

Fates. Where no answer tells what became of a message the session refuses to go on, until it
was opened again with resume=True and its seq compared.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import DEBUG, INFO, WARNING
from math import inf
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamlstm.errors import (
    AnswerGoneError,
    ModelError,
    SequenceError,
    ServerBusyError,
    ServerInternalError,
    ServerStoppingError,
    ServerTimeoutError,
    ServiceError,
    SessionClosedError,
    SessionEvictedError,
    SessionFencedError,
    SessionQuarantinedError,
    SessionUnknownError,
    ShapeError,
    StreamLSTMError,
)
from streamlstm.head import Head
from streamlstm.service import wire
from streamlstm.service.client.client_sessions import (
    CLOSED,
    ENDED,
    EVICTED,
    FENCED,
    IN_QUARANTINE,
    LOOKS,
    LOST,
    NOTICES,
    OPEN,
    QUARANTINED,
    RESEND_S,
    ROLLED_BACK,
    UNKNOWN_FATE,
    Call,
    ClientGroup,
    ClientSession,
    Lane,
    Ledger,
    RemoteModel,
    RunCall,
)

Array = npt.NDArray[Any]

RESEND_S_MAX: Final = 5.0
STOPPING_S: Final = 0.2
RETRY_S: Final = 0.05
"""After BUSY that does not say when."""

REATTACH_S: Final = 0.2
"""Between two re-attachments without an answer to anything else; doubled up to RESEND_S_MAX."""

HELLO_S_MAX: Final = 5.0
"""A new client's patience: an address where nobody is should be told soon."""

_DTYPES: Final = {name: np.dtype(name) for name in ("float32", "float64")}
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
        self.hello: dict[str, Any] = {}
        self.models: dict[str, RemoteModel] = {}
        self.stopping = False  # the server said so
        self._rng = rng
        self._report = report
        self._ledger = Ledger()
        self._encode = wire.Encoder().request
        self._decode = wire.Decoder(_REPLY_LIMITS).reply
        self._out: list[bytes] = []
        self._ident = 0
        self._calls: dict[wire.Ident, Call] = {}  # sent, unanswered
        self._waiting: dict[Call, None] = {}  # not sent yet
        self._bulks: dict[Call, None] = {}  # steps messages among _calls
        self._detached: set[ClientSession] = set()
        self._lobby: deque[ClientSession] = deque()  # to re-attach once the server said hello
        self._greeting: Call | None = None  # the hello they wait for
        self._paused = 0  # sessions whose next re-attachment waits a moment
        self._attaching = 0  # opens among _calls that get a session again
        self._sent = 0  # all others among _calls, but for that hello
        self._credit = 1
        self._starved: deque[Lane] = deque()
        self.due_s = inf  # nothing is due earlier; see `tick`
        self._clock_offset_s = 0.0  # the server's clock - ours
        self._ended: ServiceError | None = None

    # --- requests ---

    def say_hello(self, *, now: float) -> Call:
        """Ask what the server has; anything else comes after. The result is None."""
        call = Call("hello", Lane(), None, now + min(self.patience_s, HELLO_S_MAX))
        call.args = ({"client": "streamlstm-python"},)
        return self._submit(call, now)

    def open(self, name: str, model: str | None, resume: bool, *, now: float) -> Call:
        """The result is a ClientSession."""
        call = Call("open", Lane(), None, now + self.patience_s)
        call.args = (name, model, resume, None, self._token())
        return self._submit(call, now)

    def stats(self, *, now: float) -> Call:
        """The result is a dict."""
        return self._submit(Call("stats", Lane(), None, now + self.patience_s), now)

    def step(
        self, session: ClientSession, x: Any, deadline_s: float | None = None, *, now: float
    ) -> Call:
        """One event: x [inputs] -> [outputs]."""
        if session.ledger.row_fates[session.row]:
            session.check("step")
        model = session.model
        if type(x) is not np.ndarray or x.dtype is not model.dtype or x.shape != model.shape:
            x = model.numbers(x, 1)
        call = Call("step", session, session, now + self.patience_s)
        call.takes = 1
        call.payload = x.tobytes()
        if deadline_s is not None:
            call.deadline_s = now + deadline_s
        return self._submit(call, now)

    def run(
        self, session: ClientSession, X: Any, deadline_s: float | None = None, *, now: float
    ) -> Call:
        """A sequence of events: X [time, inputs] -> [time, outputs]. Patience is for each piece."""
        session.check("run")
        model = session.model
        X = model.numbers(X, 2)
        model.check(X)  # looked at here, because a long run goes in pieces
        call = RunCall("run", session, session, now + self.patience_s)
        if not len(X):
            call.result, call.done = model.result(b"", 0), True
            return call
        call.pieces, call.parts = model.pieces(X), []
        call.next_piece()
        if deadline_s is not None:
            call.deadline_s = now + deadline_s
        return self._submit(call, now)

    def control(self, session: ClientSession, op: str, *args: Any, now: float) -> Call:
        """reset, restore (takes bytes), close, fork (takes a name), or a look: state (the result
        is bytes), forecast (takes steps; [steps, quantiles]), counters (a dict)."""
        if op == "close" and (not session.row or session.closed):
            self._remove(session, now)
            call = Call(op, session, session, now)
            call.done = True
            return call
        if not (op == "close" and session.fate):
            session.check(op)
        call = Call(op, session, session, now + self.patience_s)
        call.alone = True
        call.takes = 1 if op in ("reset", "restore") else 0
        call.args = (*args, self._token()) if op == "fork" else args
        return self._submit(call, now)

    def group(self, sessions: Sequence[ClientSession]) -> ClientGroup:
        """Sessions of one model to be stepped together."""
        return ClientGroup(self._ledger, sessions)

    def steps(
        self, group: ClientGroup, X: Any, deadline_s: float | None = None, *, now: float
    ) -> Call:
        """One event of each member: X [n, inputs] -> [n, outputs]."""
        model = group.model
        if type(X) is not np.ndarray or X.dtype is not model.dtype or X.shape != group.shape:
            X = model.numbers(X, 2)
            if len(X) != len(group.rows):
                raise ShapeError(f"a group of {len(group.rows)} sessions needs as many rows of X")
        if group.changes != self._ledger.changes:
            group.refresh()
        call = Call("steps", Lane(), None, now + self.patience_s)
        call.group = group
        call.payload = X.tobytes()
        if deadline_s is not None:
            call.deadline_s = now + deadline_s
        if self._ended is not None:
            raise ServiceError(str(self._ended))
        if self._sent < self._credit and self._idle(group):
            self._send_bulk(call, now)
        else:
            for session in group.sessions:
                session.queue.append(call)
            self._try_bulk(call, now)
            self._note_waiting(call)
        return call

    # --- the verbs ---

    def outgoing(self) -> list[bytes]:
        """Frames to send now, in order."""
        out, self._out = self._out, []
        return out

    def next_due(self) -> float | None:
        """When `tick` has something to do, or may have; None if only frames can bring news."""
        return None if self.due_s == inf else self.due_s

    def receive(self, frame: bytes, now: float) -> None:
        """Take one message of the server."""
        try:
            message = self._decode(frame)
            call = self._calls.get(message[2])
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
            self._unreadable(bad, now)
            return
        if call is None:
            return
        if status == "error":
            self._refused(call, error, details if type(details) is dict else {}, now)
            return
        try:
            self._answer[call.op](self, call, message, now)
        except (wire.BadMessageError, TypeError, ValueError, LookupError, ArithmeticError) as bad:
            if call is self._greeting or call.attaches is not None:
                return  # sent again; those who wait for it have their patience
            self._lose(
                call, wire.BadMessageError(f"the reply to {call.op} can't be read: {bad}"), now
            )

    def tick(self, now: float) -> None:
        """Send again what is due, and end what has waited too long."""
        for call in list(self._calls.values()):
            if call.done:
                continue
            if call.expire_s <= now:
                self._expire(call, now)
            elif call.due_s <= now:
                self._resend(call, now)
        for call in list(self._waiting):
            if not call.done and call.expire_s <= now:
                self._refuse(call, self._timed_out(call), now)
        self.due_s = inf
        for call in self._calls.values():
            self.due_s = min(self.due_s, call.due_s, call.expire_s)
        for call in self._waiting:
            self.due_s = min(self.due_s, call.expire_s)

    def abandon(self, call: Call, now: float) -> None:
        """Nobody waits for a call any more. What was sent may have been done."""
        if call.done:
            return
        error = ServiceError(f"the caller of {call.op} waits no more")
        if call.ident:
            self._lose(call, error, now)
        else:
            self._finish(call, error=error)
            self._go_on(call, now)

    def end(self, error: ServiceError, now: float) -> None:
        """The client is closed: whatever waits is told."""
        self._ended = error
        for call in [*self._waiting, *self._calls.values()]:
            if call.done:
                continue
            if call.ident and call is not self._greeting and call.attaches is None:
                self._lose(call, error, now)
            elif not call.ident:
                self._finish(call, error=error)

    # --- sending ---

    def _token(self) -> int:
        return self._rng.getrandbits(63)

    def _submit(self, call: Call, now: float) -> Call:
        if self._ended is not None:
            raise ServiceError(str(self._ended))
        lane = call.lane
        lane.queue.append(call)
        self._advance(lane, now)
        if not call.ident:
            self._note_waiting(call)
        return call

    def _note_waiting(self, call: Call) -> None:
        if not call.ident and not call.done:
            self._waiting[call] = None
            self.due_s = min(self.due_s, call.expire_s)

    def _advance(self, lane: Lane, now: float) -> None:
        """Send what may be sent of a lane's queue."""
        queue, flight = lane.queue, lane.flight
        while queue:
            if lane.held:
                if lane.detached:
                    self._attach(lane, now)  # type: ignore[arg-type]
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
                    self._try_bulk(call, now)
                return
            if self._bulks and call.session is not None and self._bulk_of(call.session):
                return
            if self._sent >= self._credit:
                if not lane.starved:
                    lane.starved = True
                    self._starved.append(lane)
                return
            queue.popleft()
            if self._waiting:
                self._waiting.pop(call, None)
            call.seq = last + 1
            call.last = last + call.takes
            flight.append(call)
            self._sent += 1
            self._transmit(call, now)

    def _transmit(self, call: Call, now: float) -> None:
        """Send a call's message, encoded the first time."""
        if not call.frame:
            if not call.ident:
                self._ident = call.ident = ident = self._ident + 1
                self._calls[ident] = call
            call.frame = self._encode(call.op, call.ident, self._fields(call))
            self.due_s = min(self.due_s, call.expire_s)
        self._out.append(call.frame)
        call.copies += 1
        call.due_s = due = now + call.wait_s
        self.due_s = min(self.due_s, due)

    def _fields(self, call: Call) -> tuple[Any, ...]:
        op, session, group = call.op, call.session, call.group
        deadline = call.deadline_s
        if deadline is not None:
            deadline += self._clock_offset_s
        if group is not None:
            return group.handles, group.epochs, call.seq.tobytes(), deadline, call.payload
        if session is None:
            return call.args
        if op in ("step", "run"):
            return session.handle, session.epoch, call.seq, deadline, call.payload
        if op == "close" or op in LOOKS:
            return session.handle, session.epoch, *call.args
        return session.handle, session.epoch, call.last, *call.args

    def _resend(self, call: Call, now: float) -> None:
        """Everything in flight on a call's lane again, in order."""
        if call.attaches is not None:
            self._enter_lobby(call.attaches, now)
            return
        lane = call.lane
        if lane.detached:  # it is sent again when the session is attached
            call.due_s = inf
            self._attach(lane, now)  # type: ignore[arg-type]
            return
        if call.missing:
            call.due_s = inf
            return
        self._report(DEBUG, f"{call.op} to {self.address} is sent again")
        held, lane.held = lane.held, False
        for each in lane.flight:
            if not held:  # else it was answered: try again later
                each.wait_s = min(2 * each.wait_s, RESEND_S_MAX)
            self._transmit(each, now)
        self._advance(lane, now)

    # --- steps of many ---

    def _bulk_of(self, session: ClientSession) -> Call | None:
        """The steps message that is in flight on a session."""
        for call in self._bulks:
            if session.row in call.group.row_set:  # type: ignore[union-attr]
                return call
        return None

    def _idle(self, group: ClientGroup) -> bool:
        """Whether nothing is in flight, or waits, on any member."""
        for call in self._bulks:
            if not group.row_set.isdisjoint(call.group.row_set):  # type: ignore[union-attr]
                return False
        if len(self._calls) == len(self._bulks) and not (self._waiting or self._detached):
            return True
        return not any(s.queue or s.flight or s.held for s in group.sessions)

    def _try_bulk(self, call: Call, now: float) -> None:
        """Send a steps message that waits, if every member is ready; each is looked at once."""
        group = call.group
        assert group is not None
        members = group.sessions
        while call.ready < len(members):
            session = members[call.ready]
            if session.queue[0] is not call or session.flight or self._bulk_of(session):
                return
            if session.held:
                if session.detached:
                    self._attach(session, now)
                return
            call.ready += 1
        if self._sent >= self._credit:
            if not members[0].starved:
                members[0].starved = True
                self._starved.append(members[0])
            return
        for session in members:
            session.queue.popleft()
        self._waiting.pop(call, None)
        if group.changes != self._ledger.changes:
            group.pack()
        self._send_bulk(call, now)

    def _send_bulk(self, call: Call, now: float) -> None:
        group = call.group
        assert group is not None
        call.seq = self._ledger.seqs[group.rows] + 1
        call.lane.flight.append(call)
        self._bulks[call] = None
        self._sent += 1
        self._transmit(call, now)

    # --- what becomes of a call ---

    def _finish(self, call: Call, result: Any = None, error: StreamLSTMError | None = None) -> None:
        """It is done; `_go_on` sends what waited for it."""
        if call.ident:
            del self._calls[call.ident]
            self._sent -= 1
            lane = call.lane
            flight = lane.flight
            if flight[0] is call:
                flight.popleft()
            else:
                flight.remove(call)
            if lane.held and not flight:
                lane.held = lane.detached  # nothing is left to be sent again first
            if call.group is not None:
                del self._bulks[call]
        else:
            self._waiting.pop(call, None)
            for lane in (call.lane,) if call.group is None else call.group.sessions:
                lane.queue.remove(call)
        call.result, call.error, call.done = result, error, True
        if call.on_done is not None:
            call.on_done(call)

    def _go_on(self, call: Call, now: float) -> None:
        if call.lane.queue:
            self._advance(call.lane, now)
        if call.group is not None and self._waiting:
            for session in call.group.sessions:
                self._advance(session, now)
        while self._starved and self._sent < self._credit:
            lane = self._starved.popleft()
            lane.starved = False
            self._advance(lane, now)

    def _refuse(self, call: Call, error: StreamLSTMError, now: float, late: bool = False) -> None:
        """It was not done, and what was pipelined behind it is not either.

        late: a copy may still be on its way and be done, so that its number can't be used again
        at this epoch.
        """
        session = call.session
        behind: list[Call] = []
        if session is not None and call.takes:
            known = [*session.flight, *session.queue]
            behind = [c for c in known[known.index(call) + 1 :] if c.op in ("step", "run")]
        sent = any(c.ident for c in behind)
        self._finish(call, error=error)
        for each in behind:
            self._finish(
                each, error=SequenceError(f"not stepped: the event before it was refused: {error}")
            )
        if call.group is not None and late:
            for member in call.group.sessions:
                self._detach(member, now)
        elif session is not None and (sent or late):
            self._detach(session, now)
        self._go_on(call, now)

    def _lose(self, call: Call, error: StreamLSTMError, now: float) -> None:
        """It may have been done or not."""
        ledger, group, session = self._ledger, call.group, call.session
        self._finish(call, error=error)
        if group is not None:
            fates = ledger.fates[group.rows]
            ledger.fates[group.rows] = np.where(fates == OPEN, UNKNOWN_FATE, fates)
            ledger.changes += 1
            if self._waiting or self._detached:
                for member in group.sessions:
                    self._settle(member, now)
        elif session is not None and session.fate in (OPEN, QUARANTINED):
            self._end_session(session, UNKNOWN_FATE, now)
        self._go_on(call, now)

    def _end_session(
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
        self._settle(session, now, error, flight)
        bulk = None if fate == QUARANTINED else self._bulk_of(session)
        if bulk is not None and session in bulk.missing:
            self._broken(bulk, session.error(), now)

    def _settle(
        self,
        session: ClientSession,
        now: float,
        error: StreamLSTMError | None = None,
        flight: bool = True,
    ) -> None:
        """End the calls of a session that does not go on."""
        fate = session.fate
        if fate != QUARANTINED:
            self._found(session)
        ended = []
        closing = False
        for call in [*(session.flight if flight else ()), *session.queue]:
            if call.op == "close" and fate in ENDED:
                closing = True
                ended.append(call)
                self._finish(call)
            elif not (call.op == "close" or (fate == QUARANTINED and call.op in IN_QUARANTINE)):
                ended.append(call)
                sentence = session.error() if error is None else type(error)(str(error))
                self._finish(call, error=sentence)
        if closing:
            self._remove(session, now)
        for call in ended:
            self._go_on(call, now)
        if self._greeting is None:
            self._feed_lobby(now)  # a re-attachment that was given up leaves its place

    def _remove(self, session: ClientSession, now: float) -> None:
        """A session that has ended leaves the ledger, and no steps message may still look there."""
        bulk = self._bulk_of(session)
        if bulk is not None:
            self._broken(bulk, session.error(), now)
        session.remove()

    def _timed_out(self, call: Call) -> ServerTimeoutError:
        patience_s = self.patience_s
        if call.op == "hello":
            patience_s = min(patience_s, HELLO_S_MAX)
        return ServerTimeoutError(
            f"no answer to {call.op} from {self.address} within {patience_s:g} s: "
            "is the server running there?"
        )

    def _expire(self, call: Call, now: float) -> None:
        """A message was sent, and its caller's patience has ended."""
        refused = call.refusal if call.copies <= 0 and not call.lane.detached else None
        if refused is not None:
            self._refuse(call, refused, now, late=True)
        elif call.op == "fork" or call.op in LOOKS:  # change nothing here
            self._refuse(call, self._timed_out(call), now)
        else:
            self._lose(call, self._timed_out(call), now)

    def _unreadable(self, bad: Exception, now: float) -> None:
        """It could be the answer to anything: all that wait are told."""
        if not isinstance(bad, wire.BadMessageError):
            bad = wire.BadMessageError(f"a reply can't be read: {bad}")
        for call in list(self._calls.values()):
            if not call.done and call is not self._greeting and call.attaches is None:
                self._lose(call, wire.BadMessageError(str(bad)), now)

    # --- answers ---

    def _acknowledge(self, session: ClientSession, seq: Any, wanted: int) -> None:
        if seq != wanted:
            raise wire.BadMessageError(f"seq is {seq}, not {wanted}")
        seqs, row = session.ledger.row_seqs, session.row
        seqs[row] = max(seqs[row], seq)  # answers may overtake each other
        if session.attach_wait_s:
            session.attach_wait_s = 0.0
            self._paused -= 1

    def _stepped(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        _, _, _, seq, y = message
        session = call.session
        assert session is not None
        model = session.model
        if type(y) is not bytes or len(y) != model.output_size:
            raise wire.BadMessageError("y is not one output")
        self._acknowledge(session, seq, call.last)
        self._finish(call, np.frombuffer(bytearray(y), model.dtype))
        if session.queue or self._starved:
            self._go_on(call, now)

    def _stepped_all(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        _, _, _, seqs, y = message
        group = call.group
        assert group is not None
        n = len(group.rows)
        if seqs != call.seq.tobytes():
            raise wire.BadMessageError("seqs are not those of the request")
        if type(y) is not bytes or len(y) != n * group.model.output_size:
            raise wire.BadMessageError("Y is not one output of each session")
        self._ledger.seqs[group.rows] = call.seq
        if self._paused:
            for session in group.sessions:
                self._paused -= session.attach_wait_s > 0
                session.attach_wait_s = 0.0
        self._finish(call, group.model.result(y, n))
        if self._waiting or self._starved:
            self._go_on(call, now)

    def _ran(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        _, _, _, seq, y = message
        session = call.session
        assert isinstance(call, RunCall)
        assert session is not None
        model = session.model
        if type(y) is not bytes or len(y) != call.takes * model.output_size:
            raise wire.BadMessageError("Y is not one output of each event")
        self._acknowledge(session, seq, call.last)
        call.parts.append(y)
        if call.pieces and session.fate == OPEN:
            call.next_piece()
            call.seq, call.last = call.last + 1, call.last + call.takes
            call.expire_s, call.refusal = now + self.patience_s, None
            self._renew(call)
            if not session.detached:
                self._transmit(call, now)
        elif call.pieces:
            self._finish(call, error=session.error())
        else:
            self._finish(call, model.result(b"".join(call.parts), -1))
        self._go_on(call, now)

    def _changed(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        """reset, restore and close."""
        seq, session = message[3], call.session
        assert session is not None
        if call.op != "close":
            self._acknowledge(session, seq, call.last)
        self._finish(call)
        if call.op == "close":
            self._end_session(session, CLOSED, now)
            self._remove(session, now)
        elif call.takes and session.fate == QUARANTINED:
            session.ledger.row_fates[session.row] = OPEN
            session.ledger.changes += 1
        self._go_on(call, now)

    def _looked(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        _, _, _, seq, got = message
        session = call.session
        assert session is not None
        result = session.model.seen(call.op, got)
        if call.op == "forecast" and len(result) != call.args[0]:
            raise wire.BadMessageError(f"it has {len(result)} steps, not {call.args[0]}")
        self._acknowledge(session, seq, call.last)
        self._finish(call, result)
        self._go_on(call, now)

    def _told(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        self._finish(call, dict(message[3]))
        self._go_on(call, now)

    def _greeted(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        info = message[3]
        models = [
            RemoteModel(
                model["name"],
                model["fingerprint"],
                _DTYPES[model["dtype"]],
                model["inputs"],
                model["outputs"],
                model.get("run_rows"),
                model.get("largest"),
                max(1, int(model["window"])),
                _head(model.get("head")),
            )
            for model in info["models"]
        ]
        offset_s = float(info["clock"]) - now
        credit = max(1, int(info["limits"]["pending_messages"]) // 2)
        # Half of what the server lets wait: its other half is for what it has not yet answered.
        self._clock_offset_s, self._credit = offset_s, credit
        if info.get("boot") != self.hello.get("boot"):
            self.stopping = False
        self.hello = info
        known = self.models
        # Models that are still the same stay the same objects, for groups compare them.
        self.models = {m.name: known[m.name] if known.get(m.name) == m else m for m in models}
        if call is self._greeting:
            del self._calls[call.ident]
            self._greeting = None
            self._feed_lobby(now)
        else:
            self._finish(call)
            self._go_on(call, now)

    def _opened(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        """open and fork."""
        handle, epoch, seq, model, fingerprint = message[3:]
        if not type(handle) is type(epoch) is type(seq) is int or handle < 0 <= seq:
            raise wire.BadMessageError("handle, epoch and seq are no numbers")
        if call.attaches is not None:
            self._attached(call.attaches, (handle, epoch, seq), fingerprint, now)
            return
        opened = (handle, epoch, seq)
        self._finish(call, ClientSession(self._ledger, self.models[model], call.args[0], opened))
        self._go_on(call, now)

    _answer: Final[dict[str, Callable[[ClientProtocol, Call, tuple[Any, ...], float], None]]] = {
        "hello": _greeted,
        "open": _opened,
        "fork": _opened,
        "step": _stepped,
        "steps": _stepped_all,
        "run": _ran,
        "reset": _changed,
        "restore": _changed,
        "close": _changed,
        "state": _looked,
        "forecast": _looked,
        "counters": _looked,
        "stats": _told,
    }

    # --- refusals ---

    def _refused(
        self, call: Call, error: StreamLSTMError, details: dict[str, Any], now: float
    ) -> None:
        call.copies -= 1
        if isinstance(error, (ServerBusyError, ServerStoppingError)):
            self._later(call, error, details, now)
        elif call is self._greeting:
            pass  # it is sent again
        elif call.attaches is not None:
            self._attach_refused(call, error, details, now)
        elif isinstance(error, ServerInternalError):
            self._lose(call, error, now)
        elif call.group is not None:
            self._steps_refused(call, error, now)
        elif call.session is not None:
            self._event_refused(call, call.session, error, details, now)
        else:
            self._refuse(call, error, now)

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
        elif type(after_s) not in (int, float) or not 0 <= after_s <= self.patience_s:  # type: ignore[operator]
            after_s = RETRY_S
        due = now + after_s * (1 + self._rng.random() / 2)  # type: ignore[operator]
        for each in lane.flight or (call,):
            each.due_s = due
        lane.held = True
        self.due_s = min(self.due_s, due)

    def _event_refused(
        self,
        call: Call,
        session: ClientSession,
        error: StreamLSTMError,
        details: dict[str, Any],
        now: float,
    ) -> None:
        if isinstance(error, (SessionUnknownError, SessionFencedError)) and not session.closed:
            self._detach(session, now)
        elif isinstance(error, (SessionUnknownError, SessionFencedError)):
            if call.op == "close":
                self._settle(session, now)
            else:
                self._refuse(call, error, now)
        elif isinstance(error, (SessionClosedError, SessionEvictedError)):
            fate = CLOSED if isinstance(error, SessionClosedError) else EVICTED
            if call.op != "close":
                self._finish(call, error=error)
            self._end_session(session, fate, now)
            self._go_on(call, now)
        elif isinstance(error, SessionQuarantinedError):
            self._quarantined(call, session, error, details, now)
        elif isinstance(error, AnswerGoneError):  # something was applied, and nobody can tell what
            self._lose(call, error, now)
        elif isinstance(error, SequenceError) and type(details.get("expected")) is int:
            self._out_of_order(call, session, error, details["expected"], now)
        else:
            self._refuse(call, error, now, late=call.copies > 0)

    def _out_of_order(
        self, call: Call, session: ClientSession, error: SequenceError, expected: int, now: float
    ) -> None:
        """A gap: one before it did not arrive, or was refused BUSY. All again, in order."""
        if session.detached:
            return
        if expected > call.seq:  # the server has another event of that number
            self._lose(call, error, now)
        elif expected == call.seq:
            self._refuse(call, error, now)
        elif call.copies > 0 or session.held:
            pass  # a later copy is on its way, or will be
        elif session.flight[0] is call:  # everything before it was acknowledged
            self._detach(session, now)
        else:
            self._resend(call, now)

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
        self._finish(call, error=error)
        ledger, row = session.ledger, session.row
        if type(seq) is int and ledger.row_seqs[row] < seq < 2**63:
            ledger.row_seqs[row] = seq
        self._end_session(session, QUARANTINED, now, flight=False)
        for each in behind:
            if not each.done:
                self._finish(each, error=session.error())
        if sent or type(seq) is not int:  # the numbers of what was behind it go to others
            self._detach(session, now)
        self._go_on(call, now)

    def _steps_refused(self, call: Call, error: StreamLSTMError, now: float) -> None:
        group = call.group
        assert group is not None
        if isinstance(error, AnswerGoneError):
            self._lose(call, error, now)
            return
        if not isinstance(error, (SessionUnknownError, SessionFencedError)):
            self._refuse(call, error, now, late=call.copies > 0)
            return
        for session in group.sessions:
            if session.closed:
                self._broken(call, session.error(), now)
                return
        if not call.missing:
            call.missing = set(group.sessions)
            call.due_s = inf
            for session in group.sessions:
                self._detach(session, now)

    def _broken(self, call: Call, error: StreamLSTMError, now: float) -> None:
        """A steps message lost a member for good, and can't be sent again as it was."""
        if call.done:
            return
        assert call.group is not None
        self._finish(call, error=error)
        for session in call.group.sessions:
            if session.fate:
                continue
            if not session.detached and session.remote_seq > session.seq:
                self._end_session(session, UNKNOWN_FATE, now)  # it was done, and its answer is lost
            else:
                self._detach(session, now)  # perhaps it was: the server's seq will tell
        self._go_on(call, now)

    # --- re-attaching ---

    def _detach(self, session: ClientSession, now: float) -> None:
        """(handle, epoch) must not be used any more."""
        if session.detached:
            return
        session.detached = session.held = True
        session.ledger.changes += 1
        self._detached.add(session)
        for call in session.flight:
            call.due_s = inf
        if session.flight or session.queue or self._bulk_of(session):
            self._attach(session, now)

    def _attach(self, session: ClientSession, now: float) -> None:
        """Begin to get a session again, unless that has begun."""
        if session.attach is not None:
            return
        if session.token is None:
            session.token = self._token()
        session.attach = call = Call("open", Lane(), None, inf)
        call.attaches = session
        if session.attach_wait_s:
            self._ident = call.ident = self._ident + 1
            self._calls[call.ident] = call
            call.due_s = now + session.attach_wait_s
            self.due_s = min(self.due_s, call.due_s)
        else:
            self._enter_lobby(session, now)

    def _enter_lobby(self, session: ClientSession, now: float) -> None:
        """Ask for the session, again or at last, after a hello: the server may be another one."""
        call = session.attach
        assert call is not None
        self._forget(call)
        self._lobby.append(session)
        if self._greeting is None:
            self._greeting = hello = Call("hello", Lane(), None, inf)
            hello.args = ({"client": "streamlstm-python"},)
            hello.lane.flight.append(hello)
            self._transmit(hello, now)

    def _feed_lobby(self, now: float) -> None:
        """Opens are many when a group re-attaches, and must not wait for credit."""
        while self._lobby and self._attaching < max(1, self._credit // 2):
            session = self._lobby.popleft()
            call = session.attach
            if call is None or call.ident:
                continue  # given up, or begun anew and sent already
            call.args = (session.name, session.model.name, True, session.epoch, session.token)
            self._attaching += 1
            self._transmit(call, now)

    def _forget(self, call: Call) -> None:
        """A re-attachment's message is not waited for any more."""
        if call.frame:
            self._attaching -= 1
        if call.ident:
            del self._calls[call.ident]
        call.ident, call.frame, call.wait_s = 0, b"", min(2 * call.wait_s, RESEND_S_MAX)

    def _found(self, session: ClientSession) -> None:
        """A session is not detached any more, or has ended."""
        if session.attach is not None:
            self._forget(session.attach)
            session.attach = None
        session.detached = session.held = False
        self._detached.discard(session)

    def _renew(self, call: Call) -> None:
        """A call's message gets another id, and is encoded anew when it is sent."""
        del self._calls[call.ident]
        self._ident = call.ident = self._ident + 1
        self._calls[call.ident] = call
        call.frame, call.copies, call.wait_s, call.due_s = b"", 0, RESEND_S, inf

    def _attached(
        self, session: ClientSession, opened: tuple[int, int, int], fingerprint: str, now: float
    ) -> None:
        handle, epoch, seq = opened
        self._found(session)
        self._report(INFO, f"session {session.name!r} is attached again, at event {seq}")
        session.token = None
        self._paused += not session.attach_wait_s
        session.attach_wait_s = min(max(REATTACH_S, 2 * session.attach_wait_s), RESEND_S_MAX)
        session.moved(handle, epoch)
        session.remote_seq = seq
        model = self.models.get(session.model.name, session.model)
        session.window = model.window
        bulk = self._bulk_of(session)
        ledger, row = session.ledger, session.row
        last = max([session.seq, *(call.last for call in session.flight)]) + (bulk is not None)
        if fingerprint != session.model.fingerprint:
            sentence = f"model {session.model.name!r} of the server is not the one it was: "
            self._end_session(
                session,
                UNKNOWN_FATE,
                now,
                error=ModelError(f"{sentence}open session {session.name!r} again"),
            )
        elif seq < session.seq:
            self._end_session(session, ROLLED_BACK, now, more=f", its last is {seq}")
        elif session.fate == QUARANTINED and not session.flight:
            ledger.row_seqs[row] = seq
        elif seq > last:  # an event that was given up was applied after all, or somebody cheats
            self._end_session(session, UNKNOWN_FATE, now)
        if bulk is not None:
            self._attached_member(bulk, session, now)
        for call in session.flight:
            self._renew(call)
            self._transmit(call, now)
        self._advance(session, now)
        if self._greeting is None:
            self._feed_lobby(now)

    def _attached_member(self, bulk: Call, session: ClientSession, now: float) -> None:
        if session.fate not in (OPEN, QUARANTINED):
            self._broken(bulk, session.error(), now)
            return
        bulk.missing = bulk.missing - {session}
        if not bulk.missing and not bulk.done:
            assert bulk.group is not None
            bulk.group.pack()
            self._renew(bulk)
            self._transmit(bulk, now)

    def _attach_refused(
        self, call: Call, error: StreamLSTMError, details: dict[str, Any], now: float
    ) -> None:
        session = call.attaches
        assert session is not None
        if isinstance(error, ServerInternalError):
            call.due_s = now + RESEND_S  # with the same token
            return
        self._forget(call)
        session.attach = None
        bulk = self._bulk_of(session)
        if isinstance(error, SessionFencedError):
            self._end_session(session, FENCED, now)
        elif isinstance(error, SessionUnknownError):
            self._end_session(
                session, LOST, now, more=f", and it has {details.get('seq', 0)} stored"
            )
        elif isinstance(error, SessionEvictedError):
            self._end_session(session, EVICTED, now)
        elif isinstance(error, SessionClosedError):
            self._end_session(session, CLOSED, now)
        elif session.flight or bulk is not None:
            self._end_session(session, UNKNOWN_FATE, now, error=error)
        else:  # nothing is lost yet: it is tried again when something is asked for
            for each in list(session.queue):
                self._finish(each, error=type(error)(str(error)))
                self._go_on(each, now)
        if bulk is not None:
            self._broken(bulk, session.error(), now)
        self._feed_lobby(now)

    # --- notices ---

    def _notice(self, kind: object, entries: object, now: float) -> None:
        if kind == "stopping":
            self.stopping = True
            self._report(INFO, f"the server at {self.address} is stopping")
        elif kind == "overrun":  # answers were lost
            self._report(WARNING, "answers were lost, for they were not read in time: asked again")
            for call in list(self._calls.values()):
                if not call.done and (call.attaches or call.lane.flight[0] is call):
                    self._resend(call, now)
        fate = NOTICES.get(kind) if isinstance(kind, str) else None
        if fate is None or not isinstance(entries, tuple):
            return
        for entry in entries:
            with suppress(TypeError, ValueError):  # not an entry as we know it
                _name, handle, epoch, seq, *_ = entry
                session = self._ledger.sessions.get((handle, epoch))
                if session is None or session.fate not in (OPEN, QUARANTINED):
                    continue
                if fate == QUARANTINED and seq < session.seq:
                    continue  # it was reset since
                # What is in flight was done before, or will be refused.
                self._end_session(session, fate, now, flight=session.detached)


def _head(text: str | None) -> Head | None:
    """A model's head as hello tells it."""
    try:
        return None if text is None else Head.read(json.loads(text))
    except (ModelError, TypeError, ValueError, RecursionError) as error:
        raise wire.BadMessageError(f"a model's head can't be read: {error}") from None
