"""What an answer means for its call, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from streamlstm.service import operations, wire
from streamlstm.service.client.fates import Fate
from streamlstm.service.client.models import RemoteModel, read_model
from streamlstm.service.client.refusals import Refusals
from streamlstm.service.client.sessions import Call, ClientSession, RunCall
from streamlstm.service.operations import Operation


class Answers:
    """hello: what the server said of itself. models: the same, by name. stopping: it said so."""

    def __init__(
        self, refusals: Refusals, models: dict[str, RemoteModel], patience_s: float
    ) -> None:
        self.outbox = refusals.outbox
        self.lanes = refusals.lanes
        self.attachments = refusals.attachments
        self.refusals = refusals
        self.models = models
        self.hello: dict[str, Any] = {}
        self.stopping = False
        self._patience_s = patience_s

    def read(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        """Take the "ok" reply to a call. Raises what a reply that makes no sense raises."""
        _READERS[call.op](self, call, message, now)

    def _acknowledge(self, session: ClientSession, seq: Any, wanted: int) -> None:
        if seq != wanted:
            raise wire.BadMessageError(f"seq is {seq}, not {wanted}")
        seqs, row = session.ledger.row_seqs, session.row
        seqs[row] = max(seqs[row], seq)  # answers may overtake each other
        if session.attach_wait_s:
            session.attach_wait_s = 0.0
            self.attachments.paused -= 1

    def _stepped(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        _, _, _, seq, y = message
        session = call.session
        assert session is not None
        model = session.model
        if type(y) is not bytes or len(y) != model.output_size:
            raise wire.BadMessageError("y is not one output")
        self._acknowledge(session, seq, call.last)
        self.lanes.finish(call, np.frombuffer(bytearray(y), model.dtype))
        if session.queue or self.lanes._starved:
            self.lanes.go_on(call, now)

    def _stepped_all(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        _, _, _, seqs, y = message
        group = call.group
        assert group is not None
        n = len(group.rows)
        if seqs != call.seq.tobytes():
            raise wire.BadMessageError("seqs are not those of the request")
        if type(y) is not bytes or len(y) != n * group.model.output_size:
            raise wire.BadMessageError("Y is not one output of each session")
        self.lanes.ledger.seqs[group.rows] = call.seq
        if self.attachments.paused:
            for session in group.sessions:
                self.attachments.paused -= session.attach_wait_s > 0
                session.attach_wait_s = 0.0
        self.lanes.finish(call, group.model.result(y, n))
        if self.lanes.waiting or self.lanes._starved:
            self.lanes.go_on(call, now)

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
        if call.pieces and session.fate == Fate.OPEN:
            call.next_piece()
            call.seq, call.last = call.last + 1, call.last + call.takes
            call.expire_s, call.refusal = now + self._patience_s, None
            self.outbox.renew(call)
            if not session.detached:
                self.outbox.transmit(call, now)
        elif call.pieces:
            self.lanes.finish(call, error=session.error())
        else:
            self.lanes.finish(call, model.result(b"".join(call.parts), -1))
        self.lanes.go_on(call, now)

    def _changed(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        """reset, restore and close."""
        seq, session = message[3], call.session
        assert session is not None
        if call.op is not operations.CLOSE:
            self._acknowledge(session, seq, call.last)
        self.lanes.finish(call)
        if call.op is operations.CLOSE:
            self.attachments.end(session, Fate.CLOSED, now)
            self.attachments.remove(session, now)
        elif call.takes and session.fate == Fate.QUARANTINED:
            session.ledger.row_fates[session.row] = Fate.OPEN
            session.ledger.changes += 1
        self.lanes.go_on(call, now)

    def _looked(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        _, _, _, seq, got = message
        session = call.session
        assert session is not None
        result = session.model.seen(call.op, got)
        if call.op is operations.FORECAST and len(result) != call.args[0]:
            raise wire.BadMessageError(f"it has {len(result)} steps, not {call.args[0]}")
        self._acknowledge(session, seq, call.last)
        self.lanes.finish(call, result)
        self.lanes.go_on(call, now)

    def _told(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        self.lanes.finish(call, dict(message[3]))
        self.lanes.go_on(call, now)

    def _greeted(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        info = message[3]
        models = [read_model(model) for model in info["models"]]
        offset_s = float(info["clock"]) - now
        credit = max(1, int(info["limits"]["pending_messages"]) // 2)
        # Half of what the server lets wait: its other half is for what it has not yet answered.
        self.outbox.clock_offset_s, self.lanes.credit = offset_s, credit
        if info.get("boot") != self.hello.get("boot"):
            self.stopping = False
        self.hello = info
        known = dict(self.models)
        self.models.clear()
        # Models that are still the same stay the same objects, for groups compare them.
        self.models |= {m.name: known[m.name] if known.get(m.name) == m else m for m in models}
        if call is self.attachments.greeting:
            del self.outbox.calls[call.ident]
            self.attachments.greeting = None
            self.attachments.feed_lobby(now)
        else:
            self.lanes.finish(call)
            self.lanes.go_on(call, now)

    def _opened(self, call: Call, message: tuple[Any, ...], now: float) -> None:
        """open and fork."""
        handle, epoch, seq, model, fingerprint = message[3:]
        if not type(handle) is type(epoch) is type(seq) is int or handle < 0 <= seq:
            raise wire.BadMessageError("handle, epoch and seq are no numbers")
        if call.attaches is not None:
            self.attachments.attached(call.attaches, (handle, epoch, seq), fingerprint, now)
            return
        opened = (handle, epoch, seq)
        self.lanes.finish(
            call, ClientSession(self.lanes.ledger, self.models[model], call.args[0], opened)
        )
        self.lanes.go_on(call, now)


_READERS: Final[dict[Operation, Callable[[Answers, Call, tuple[Any, ...], float], None]]] = {
    operations.HELLO: Answers._greeted,
    operations.OPEN: Answers._opened,
    operations.FORK: Answers._opened,
    operations.STEP: Answers._stepped,
    operations.STEPS: Answers._stepped_all,
    operations.RUN: Answers._ran,
    operations.RESET: Answers._changed,
    operations.RESTORE: Answers._changed,
    operations.CLOSE: Answers._changed,
    operations.STATE: Answers._looked,
    operations.FORECAST: Answers._looked,
    operations.COUNTERS: Answers._looked,
    operations.STATS: Answers._told,
}
