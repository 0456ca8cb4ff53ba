"""The client's state machine against a small server that answers by the contract, over a bad wire.

The server's sessions are folds, s = s / 2 + x; what it did is in `applied`. Frames of either
direction lie in queues until a test delivers, drops or doubles them; the clock is a number.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm import errors
from streamlstm.service import operations
from streamlstm.service.client.protocol import ClientProtocol
from streamlstm.service.client.sessions import Call, ClientSession

WINDOW = 4
NAN = float("nan")


class Fold:
    """A session of the server."""

    def __init__(self, name: str, token: int) -> None:
        self.name, self.token = name, token
        self.epoch = 1
        self.seq = 0
        self.sum = np.float32(0)
        self.ring: dict[int, tuple[bytes, list[Any]]] = {}  # first seq: message, answer
        self.peer = 0
        self.handle = 0
        self.quarantined = False
        self.applied: list[float] = []

    def step(self, x: float) -> bytes:
        self.sum = np.float32(self.sum / 2 + np.float32(x))
        self.applied.append(x)
        return self.sum.tobytes()


class Refusal(Exception):  # noqa: N818
    def __init__(self, code: str, **details: Any) -> None:
        self.code, self.details = code, details


class FoldServer:
    """Knows one model and any sessions; a client is a peer's number."""

    def __init__(self) -> None:
        self.boot = 1
        self.clock_s = 5000.0
        self.fingerprint = "f"
        self.folds: dict[str, Fold] = {}
        self.busy = 0  # messages that it refuses next
        self.stopping = 0
        self.greetings = 0
        self.seen: list[list[Any]] = []

    def restart(self, keep: bool = True) -> None:
        self.boot += 1
        if not keep:
            self.folds.clear()
        for fold in self.folds.values():
            fold.peer = fold.handle = 0

    def answer(self, peer: int, frame: bytes) -> bytes:
        message = msgpack.unpackb(frame)
        self.seen.append(message)
        _, op, ident, *fields = message
        try:
            values = getattr(self, f"_{op}")(peer, message, *fields)
        except Refusal as refusal:
            reply = [1, "error", ident, refusal.code, "because", refusal.details]
            return bytes(msgpack.packb(reply))
        return bytes(msgpack.packb([1, "ok", ident, *values]))

    def _hello(self, *_: Any) -> list[Any]:
        self.greetings += 1
        model = {"name": "fold", "fingerprint": self.fingerprint, "dtype": "float32"}
        model |= {"inputs": [["x", ""]], "outputs": [["y", ""]], "run_rows": 3, "window": WINDOW}
        limits = {"pending_messages": 32}
        return [{"models": [model], "limits": limits, "boot": self.boot, "clock": self.clock_s}]

    def _bind(self, fold: Fold, peer: int) -> list[Any]:
        fold.peer = peer
        if not fold.handle:
            fold.handle = 1000 * self.boot + 1 + list(self.folds).index(fold.name)
        return [fold.handle, fold.epoch, fold.seq, "fold", self.fingerprint]

    def _open(self, peer: int, _: Any, name: str, *rest: Any) -> list[Any]:
        self._refuse_some()
        _model, resume, epoch, token = rest
        fold = self.folds.get(name)
        if fold is None:
            if epoch is not None:
                raise Refusal("SESSION_UNKNOWN", seq=0)
            fold = self.folds[name] = Fold(name, token)
        elif fold.token != token:
            if not resume:
                raise Refusal("SESSION_EXISTS")
            if epoch not in (None, fold.epoch):
                raise Refusal("FENCED")
            fold.epoch, fold.token = fold.epoch + 1, token
        elif epoch is not None and epoch != fold.epoch - 1:
            raise Refusal("FENCED")
        return self._bind(fold, peer)

    def _refuse_some(self) -> None:
        if self.stopping:
            self.stopping -= 1
            raise Refusal("STOPPING")
        if self.busy:
            self.busy -= 1
            raise Refusal("BUSY", retry_after_s=0.01)

    def _owned(self, peer: int, handle: int, epoch: int) -> Fold:
        for fold in self.folds.values():
            if fold.handle == handle:
                if (fold.peer, fold.epoch) != (peer, epoch):
                    raise Refusal("FENCED")
                return fold
        raise Refusal("SESSION_UNKNOWN", seq=0)

    def _numbered(
        self, fold: Fold, message: list[Any], seq: int, do: Callable[[], list[Any]]
    ) -> list[Any]:
        digest = msgpack.packb([message[1], message[-1] if message[1] != "reset" else 0])
        if seq <= fold.seq:
            if seq not in fold.ring:
                raise Refusal("ANSWER_GONE")
            if fold.ring[seq][0] != digest:
                raise Refusal("SEQUENCE", expected=fold.seq + 1)
            return fold.ring[seq][1]
        if seq > fold.seq + 1:
            raise Refusal("SEQUENCE", expected=fold.seq + 1)
        values = do()
        fold.ring[seq] = digest, values
        for old in [s for s in fold.ring if s <= seq - WINDOW]:
            del fold.ring[old]
        return values

    def _events(self, peer: int, message: list[Any], *fields: Any) -> list[Any]:
        handle, epoch, seq, deadline, payload = fields
        fold = self._owned(peer, handle, epoch)
        self._refuse_some()

        def do() -> list[Any]:
            xs = np.frombuffer(payload, np.float32).tolist()
            if not np.isfinite(xs).all():
                raise Refusal("NON_FINITE")
            if deadline is not None and deadline < self.clock_s:
                raise Refusal("DEADLINE")
            if fold.quarantined or 666 in xs:
                if not fold.quarantined:
                    fold.quarantined, fold.seq = True, fold.seq + 1
                raise Refusal("QUARANTINED")
            Y = b"".join(fold.step(x) for x in xs)
            fold.seq += len(xs)
            return [fold.seq, Y]

        return self._numbered(fold, message, seq, do)

    _step = _run = _events

    def _steps(self, peer: int, _message: list[Any], *fields: Any) -> list[Any]:
        handles, epochs, seqs, _, payload = fields
        xs = np.frombuffer(payload, np.float32).tolist()
        folds = [
            self._owned(peer, int(h), int(e))
            for h, e in zip(
                np.frombuffer(handles, "<u8"), np.frombuffer(epochs, "<u4"), strict=True
            )
        ]
        self._refuse_some()
        given_seqs = np.frombuffer(seqs, "<i8").tolist()
        news = [seq - fold.seq for seq, fold in zip(given_seqs, folds, strict=True)]
        if len({new == 1 for new in news}) != 1 or max(news) > 1:
            raise Refusal("SEQUENCE", expected=0, index=0)
        Y = b""
        for fold, seq, x in zip(folds, given_seqs, xs, strict=True):

            def do(fold: Fold = fold, x: float = x) -> list[Any]:
                if not np.isfinite(xs).all():
                    raise Refusal("NON_FINITE")
                fold.seq += 1
                return [fold.step(x)]

            Y += self._numbered(fold, ["", "step", x], seq, do)[0]
        return [seqs, Y]

    def _reset(self, peer: int, message: list[Any], handle: int, epoch: int, seq: int) -> list[Any]:
        fold = self._owned(peer, handle, epoch)

        def do() -> list[Any]:
            fold.sum, fold.seq, fold.quarantined = np.float32(0), fold.seq + 1, False
            fold.applied.append(NAN)
            return [fold.seq]

        return self._numbered(fold, message, seq, do)

    def _restore(self, peer: int, message: list[Any], handle: int, *rest: Any) -> list[Any]:
        epoch, seq, blob = rest
        fold = self._owned(peer, handle, epoch)

        def do() -> list[Any]:
            fold.sum, fold.seq = np.frombuffer(blob, np.float32)[0], fold.seq + 1
            fold.quarantined = False
            return [fold.seq]

        return self._numbered(fold, message, seq, do)

    def _state(self, peer: int, _: Any, handle: int, epoch: int) -> list[Any]:
        fold = self._owned(peer, handle, epoch)
        return [fold.seq, fold.sum.tobytes()]

    def _fork(self, peer: int, _: Any, handle: int, epoch: int, *rest: Any) -> list[Any]:
        seq, name, token = rest
        fold = self._owned(peer, handle, epoch)
        assert seq == fold.seq
        if name not in self.folds:
            self.folds[name] = Fold(name, token)
            self.folds[name].sum = fold.sum
        elif self.folds[name].token != token:
            raise Refusal("SESSION_EXISTS")
        return self._bind(self.folds[name], peer)

    def _close(self, peer: int, _: Any, handle: int, epoch: int) -> list[Any]:
        fold = self._owned(peer, handle, epoch)
        del self.folds[fold.name]
        return [fold.seq]

    def _stats(self, *_: Any) -> list[Any]:
        return [{"boot": self.boot}]


class Wire:
    """A client, a server and what lies between them."""

    def __init__(self, patience_s: float = 30.0) -> None:
        self.now = 100.0
        self.server = FoldServer()
        self.client = ClientProtocol("the test", patience_s, random.Random(1))
        self.peer = 1
        self.up: deque[tuple[int, bytes]] = deque()
        self.down: deque[tuple[int, bytes]] = deque()
        self.wait(self.client.say_hello(now=self.now))

    def pull(self) -> None:
        self.client.check()
        self.up.extend((self.peer, frame) for frame in self.client.outgoing())

    def deliver_up(self) -> None:
        peer, frame = self.up.popleft()
        self.down.append((peer, self.server.answer(peer, frame)))

    def deliver_down(self) -> None:
        peer, frame = self.down.popleft()
        if peer == self.peer:
            self.client.receive(frame, self.now)

    def settle(self) -> None:
        """Deliver until nothing is on its way."""
        self.pull()
        while self.up or self.down:
            while self.up:
                self.deliver_up()
            while self.down:
                self.deliver_down()
            self.pull()

    def sleep(self) -> None:
        """Until something is due."""
        due = self.client.next_due()
        assert due is not None
        passed = max(0.0, due - self.now)
        self.now += passed
        self.server.clock_s += passed
        self.client.tick(self.now)
        self.pull()

    def lose(self) -> None:
        """What is on its way."""
        self.pull()
        self.up.clear()
        self.down.clear()

    def wait(self, call: Call) -> Any:
        self.settle()
        while not call.done:
            self.sleep()
            self.settle()
        return call.value()

    def open(self, name: str = "a", resume: bool = False) -> ClientSession:
        session: ClientSession = self.wait(self.client.open(name, None, resume, now=self.now))
        return session

    def step(self, session: ClientSession, x: float, deadline_s: float | None = None) -> Call:
        return self.client.step(session, [x], deadline_s, now=self.now)

    def ask(self, session: ClientSession, op: str, *args: Any) -> Call:
        return self.client.control(session, operations.OPERATIONS[op], *args, now=self.now)

    def reconnect(self) -> None:
        """The connection comes back as another peer; what was on its way is lost."""
        self.lose()
        self.peer += 1


def fold(xs: list[float]) -> list[float]:
    """Outputs of an uninterrupted run; NaN stands for a reset, which has none."""
    s, ys = np.float32(0), []
    for x in xs:
        if np.isnan(x):
            s = np.float32(0)
        else:
            s = np.float32(s / 2 + np.float32(x))
            ys.append(float(s))
    return ys


@pytest.fixture
def wire() -> Wire:
    return Wire()


# --- sending again --------------------------------------------------------------------------------


def test_events_are_pipelined_up_to_the_window(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in range(10)]
    wire.pull()
    assert len(wire.up) == WINDOW
    assert [float(wire.wait(call)[0]) for call in calls] == fold(list(range(10)))
    assert a.seq == 10
    assert wire.server.folds["a"].applied == list(range(10))


@pytest.mark.parametrize("answered", [False, True])
def test_without_an_answer_the_same_message_is_sent_again(wire: Wire, answered: bool) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in (1, 2, 3)]
    wire.pull()
    sent = list(wire.up)
    if answered:
        while wire.up:
            wire.deliver_up()
    wire.lose()
    start = wire.now
    wire.sleep()
    assert wire.now == start + 1.0
    assert list(wire.up) == sent
    wire.lose()
    wire.sleep()
    assert wire.now == start + 3.0
    for call in calls:
        wire.wait(call)
    assert wire.server.folds["a"].applied == [1, 2, 3]
    assert a.seq == 3


def test_patience_ends_and_the_fate_is_open(wire: Wire) -> None:
    a = wire.open()
    start = wire.now
    calls = [wire.step(a, x) for x in (1, 2)]
    while not calls[0].done:
        wire.lose()
        wire.sleep()
    assert wire.now == start + 30
    with pytest.raises(errors.ServerTimeoutError, match="no answer to step from the test"):
        calls[0].value()
    with pytest.raises(errors.SequenceError, match="resume=True"):
        calls[1].value()
    for ask in (lambda: wire.step(a, 1), lambda: wire.ask(a, "state")):
        with pytest.raises(errors.SequenceError, match="resume=True and compare seq"):
            ask()
    b = wire.open(resume=True)
    assert (b.seq, b.epoch) == (0, 2)
    wire.wait(wire.step(b, 1))


def test_the_first_hello_has_less_patience() -> None:
    client = ClientProtocol("nowhere", 30.0, random.Random(1))
    call = client.say_hello(now=0.0)
    times = []
    while not call.done:
        times.append(client.next_due())
        client.tick(times[-1])
    assert times == [1.0, 3.0, 5.0]
    with pytest.raises(errors.ServerTimeoutError, match="within 5 s: is the server running"):
        call.value()
    with pytest.raises(errors.ServiceError, match="patience_s"):
        ClientProtocol("nowhere", 0, random.Random(1))


def test_late_and_double_answers_are_ignored(wire: Wire) -> None:
    a = wire.open()
    call = wire.step(a, 1)
    wire.pull()
    wire.up.extend(wire.up)
    wire.settle()
    assert float(call.value()[0]) == 1
    wire.client.receive(msgpack.packb([1, "ok", 99, "what"]), wire.now)
    wire.client.receive(msgpack.packb([1, "error", 99, "BUSY", "what", {}]), wire.now)
    assert wire.client.outgoing() == []


def test_a_lost_first_message_takes_those_behind_it_along(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in (1, 2, 3)]
    wire.pull()
    wire.up.popleft()
    wire.settle()  # the gap is told, and all go again in order, at once
    assert [float(c.value()[0]) for c in calls] == fold([1, 2, 3])
    # 2 and 3 refused, then 1 2 3 again
    assert len([m for m in wire.server.seen if m[1] == "step"]) == 5


def test_the_window_counts_from_the_first_unanswered(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in range(8)]
    wire.pull()
    while wire.up:
        wire.deliver_up()
    first = wire.down.popleft()
    while wire.down:
        wire.deliver_down()
    wire.pull()
    assert not wire.up  # the server would forget the answer to the first
    wire.down.append(first)
    assert [float(wire.wait(call)[0]) for call in calls] == fold(list(range(8)))


# --- overload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["busy", "stopping"])
def test_refused_for_now_is_sent_again(wire: Wire, code: str) -> None:
    a = wire.open()
    setattr(wire.server, code, 2)
    calls = [wire.step(a, x) for x in range(6)]
    start = wire.now
    for call in calls:
        wire.wait(call)
    assert wire.server.folds["a"].applied == list(range(6))
    least = 0.01 if code == "busy" else 0.2
    assert least <= wire.now - start <= 3 * least


@pytest.mark.parametrize(
    ("code", "error"),
    [("busy", errors.ServerBusyError), ("stopping", errors.ServerStoppingError)],
)
def test_refused_until_patience_ends_was_not_stepped(
    wire: Wire, code: str, error: type[Exception]
) -> None:
    a = wire.open()
    setattr(wire.server, code, 1 << 30)
    first = wire.step(a, 1)
    wire.settle()
    wire.now += 0.005
    second = wire.step(a, 2)
    with pytest.raises(error):
        wire.wait(first)
    with pytest.raises(errors.SequenceError, match="not stepped"):
        wire.wait(second)
    setattr(wire.server, code, 0)
    assert float(wire.wait(wire.step(a, 3))[0]) == 3
    assert a.epoch == 2  # so that no late copy of 1 is ever stepped
    assert wire.server.folds["a"].applied == [3]


def test_a_late_copy_of_what_was_given_up_is_noticed(wire: Wire) -> None:
    a = wire.open()
    wire.server.busy = 1 << 30
    call = wire.step(a, 1)
    wire.pull()
    late = wire.up[0]
    with pytest.raises(errors.ServerBusyError):
        wire.wait(call)
    wire.server.busy = 0
    wire.server.answer(*late)
    with pytest.raises(errors.SequenceError, match="may or may not"):
        wire.wait(wire.step(a, 2))
    assert wire.server.folds["a"].applied == [1]


def test_credit_of_the_client(wire: Wire) -> None:
    sessions = [wire.open(str(i)) for i in range(10)]
    calls = [wire.step(s, x) for x in range(3) for s in sessions]
    wire.pull()
    assert len(wire.up) == 16  # half of pending_messages
    for call in calls:
        wire.wait(call)
    assert all(wire.server.folds[str(i)].applied == [0, 1, 2] for i in range(10))


# --- the server or the connection was lost --------------------------------------------------------


@pytest.mark.parametrize("how", ["restart", "reconnect"])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_sessions_are_attached_again(wire: Wire, how: str, done: int) -> None:
    a = wire.open()
    wire.wait(wire.step(a, 5))
    calls = [wire.step(a, x) for x in (1, 2, 3)]
    wire.pull()
    for _ in range(done):
        wire.deliver_up()
    wire.reconnect()
    if how == "restart":
        wire.server.restart()
    for call, y in zip(calls, fold([5, 1, 2, 3])[1:], strict=True):
        assert float(wire.wait(call)[0]) == y
    assert wire.server.folds["a"].applied == [5, 1, 2, 3]
    assert (a.epoch, a.seq) == (2, 4)
    assert wire.server.greetings == 2
    wire.wait(wire.ask(a, "close"))
    assert wire.server.folds == {}


def test_a_lost_attachment_keeps_its_token(wire: Wire) -> None:
    a = wire.open()
    wire.reconnect()
    call = wire.step(a, 1)
    wire.pull()
    for _ in range(3):  # the step, the hello, the open
        wire.deliver_up()
        if wire.server.seen[-1][1] == "open":
            break
        wire.deliver_down()
        wire.pull()
    assert wire.server.folds["a"].epoch == 2
    wire.reconnect()  # its answer is lost
    assert float(wire.wait(call)[0]) == 1
    opens = [m for m in wire.server.seen if m[1] == "open" and m[6] == 1]
    assert len({m[7] for m in opens}) == 1 < len(opens)
    assert len({m[2] for m in wire.server.seen}) == len(wire.server.seen) - 0


def test_somebody_else_took_it(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in range(6)]
    wire.server.folds["a"].epoch, wire.server.folds["a"].token = 2, 77
    for call in calls:
        with pytest.raises(errors.SessionFencedError, match="resume=True to take it back"):
            wire.wait(call)
    assert a.closed
    with pytest.raises(errors.SessionFencedError):
        wire.step(a, 1)
    wire.wait(wire.ask(a, "close"))
    assert "a" in wire.server.folds


def test_a_server_that_forgot_everything(wire: Wire) -> None:
    a = wire.open()
    wire.wait(wire.step(a, 1))
    wire.reconnect()
    wire.server.restart(keep=False)
    with pytest.raises(errors.SessionUnknownError, match=r"event 1 acknowledged.*0 stored"):
        wire.wait(wire.step(a, 2))
    assert wire.server.folds == {}
    assert a.closed


def test_a_server_that_lost_acknowledged_events(wire: Wire) -> None:
    a = wire.open()
    for x in (1, 2):
        wire.wait(wire.step(a, x))
    wire.reconnect()
    wire.server.restart()
    wire.server.folds["a"].seq = 1
    with pytest.raises(
        errors.SequenceError, match=r"event 2 was acknowledged.*last is 1.*seq \+ 1"
    ):
        wire.wait(wire.step(a, 3))
    assert wire.open(resume=True).seq == 1


def test_a_server_with_another_model(wire: Wire) -> None:
    a = wire.open()
    wire.reconnect()
    wire.server.restart()
    wire.server.fingerprint = "g"
    with pytest.raises(errors.ModelError, match="not the one it was"):
        wire.wait(wire.step(a, 3))
    assert wire.server.folds["a"].applied == []


def test_an_attachment_refused_for_another_reason(wire: Wire) -> None:
    a = wire.open()
    wire.reconnect()

    def refuse(*_: Any) -> list[Any]:
        raise Refusal("CAPACITY")

    wire.server._open = refuse  # type: ignore[method-assign]
    with pytest.raises(errors.CapacityError):
        wire.wait(wire.step(a, 3))
    del wire.server._open
    with pytest.raises(errors.SequenceError):  # it was sent, and nobody knows
        wire.step(a, 3)


@pytest.mark.parametrize(
    ("code", "error", "closed"),
    [
        ("SESSION_CLOSED", errors.SessionClosedError, True),
        ("EVICTED", errors.SessionEvictedError, True),
        ("CAPACITY", errors.CapacityError, False),
    ],
)
def test_an_attachment_refused_with_nothing_in_flight(
    wire: Wire, code: str, error: type[Exception], closed: bool
) -> None:
    a = wire.open()
    refuse_one_behind_another(wire, a)
    bulk = wire.client.steps(wire.client.group([a, wire.open("b")]), [[1], [2]], now=wire.now)
    wire.settle()
    assert bulk.value().shape == (2, 1)
    refuse_one_behind_another(wire, a)

    def refuse(*_: Any) -> list[Any]:
        raise Refusal(code)

    wire.server._open = refuse  # type: ignore[method-assign]
    call = wire.step(a, 3)
    with pytest.raises(error):
        wire.wait(call)
    assert a.closed == closed
    del wire.server._open
    if not closed:
        wire.wait(wire.step(a, 3))


def refuse_one_behind_another(wire: Wire, session: ClientSession) -> None:
    """Leaves the session detached, with nothing in flight."""
    for call in [wire.step(session, x) for x in (NAN, 1)]:
        with pytest.raises(errors.StreamLSTMError):
            wire.wait(call)
    assert session.detached


def test_an_internal_error_of_an_attachment_is_asked_again(wire: Wire) -> None:
    a = wire.open()
    wire.reconnect()

    def fail(*_: Any) -> list[Any]:
        del wire.server._open
        raise Refusal("INTERNAL")

    wire.server._open = fail  # type: ignore[method-assign]
    assert float(wire.wait(wire.step(a, 3))[0]) == 3


def test_an_internal_error_leaves_the_fate_open(wire: Wire) -> None:
    a = wire.open()

    def fail(*_: Any) -> list[Any]:
        raise Refusal("INTERNAL")

    wire.server._reset = fail  # type: ignore[method-assign]
    with pytest.raises(errors.ServerInternalError):
        wire.wait(wire.ask(a, "reset"))
    with pytest.raises(errors.SequenceError, match="compare seq"):
        wire.step(a, 1)


def test_many_reattachments_are_not_a_storm(wire: Wire) -> None:
    a = wire.open()
    call = wire.step(a, 1)
    wire.pull()
    for _ in range(5):
        wire.reconnect()
        wire.server.restart()
        for _ in range(40):
            if wire.up:
                wire.deliver_up()
            elif wire.down:
                wire.deliver_down()
            else:
                wire.sleep()
            wire.pull()
            if wire.server.folds["a"].peer == wire.peer:
                break
    assert float(wire.wait(call)[0]) == 1
    assert wire.server.folds["a"].applied == [1]


# --- refusals -------------------------------------------------------------------------------------


def test_a_refusal_ends_what_is_behind_it(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in (1, NAN, 2, 3, 4, 5)]
    close = wire.ask(a, "state")
    for call in calls:
        wire.settle()
        assert call.done
    assert float(calls[0].value()[0]) == 1
    with pytest.raises(errors.NonFiniteError):
        calls[1].value()
    for call in calls[2:]:
        with pytest.raises(errors.SequenceError, match="not stepped: the event before it"):
            call.value()
    assert wire.wait(close) == np.float32(1).tobytes()
    assert a.epoch == 2  # numbers are used again
    assert float(wire.wait(wire.step(a, 7))[0]) == 7.5
    assert wire.server.folds["a"].applied == [1, 7]


def test_a_refusal_alone_changes_nothing(wire: Wire) -> None:
    a = wire.open()
    with pytest.raises(errors.NonFiniteError):
        wire.wait(wire.step(a, NAN))
    wire.wait(wire.step(a, 1))
    assert (a.epoch, a.seq) == (1, 1)


def test_another_event_of_that_number(wire: Wire) -> None:
    a = wire.open()
    wire.server.folds["a"].seq = 3
    wire.server.folds["a"].ring[1] = b"", []
    with pytest.raises(errors.SequenceError):
        wire.wait(wire.step(a, 1))
    with pytest.raises(errors.SequenceError, match="compare seq"):
        wire.step(a, 1)


def test_an_answer_that_is_gone(wire: Wire) -> None:
    a = wire.open()
    wire.server.folds["a"].seq = 1
    with pytest.raises(errors.AnswerGoneError):
        wire.wait(wire.step(a, 1))
    with pytest.raises(errors.SequenceError, match="may or may not have been applied"):
        wire.step(a, 4)


def test_deadlines_are_of_the_servers_clock(wire: Wire) -> None:
    a = wire.open()
    wire.wait(wire.step(a, 1, 0.5))
    assert wire.server.seen[-1][6] == wire.server.clock_s + 0.5
    late = wire.step(a, 2, 0.5)
    wire.lose()
    with pytest.raises(errors.DeadlineError):
        wire.wait(late)
    wire.wait(wire.step(a, 3))
    wire.reconnect()
    wire.server.restart()
    wire.server.clock_s = 20.0  # another machine's
    wire.wait(wire.client.run(a, [[1], [2], [3], [4]], 0.5, now=wire.now))
    assert wire.server.folds["a"].applied == [1, 3, 1, 2, 3, 4]
    assert wire.server.seen[-1][6] == 20.5


def test_quarantine(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in (1, 666, 2)]
    for call in calls[1:]:
        with pytest.raises(errors.SessionQuarantinedError):
            wire.wait(call)
    with pytest.raises(errors.SessionQuarantinedError, match="reset it or restore"):
        wire.step(a, 1)
    assert wire.wait(wire.ask(a, "state")) == np.float32(1).tobytes()
    wire.wait(wire.ask(a, "reset"))
    assert a.seq == 3
    assert float(wire.wait(wire.step(a, 4))[0]) == 4


def test_a_session_that_was_quarantined_before(wire: Wire) -> None:
    wire.open()
    wire.server.folds["a"].quarantined = True
    a = wire.open(resume=True)
    with pytest.raises(errors.SessionQuarantinedError):
        wire.wait(wire.step(a, 1))
    wire.wait(wire.ask(a, "restore", np.float32(2).tobytes()))
    assert float(wire.wait(wire.step(a, 4))[0]) == 5
    assert a.seq == 2


# --- everything else that a session does ----------------------------------------------------------


def test_order_of_operations(wire: Wire) -> None:
    a = wire.open()
    calls = [
        wire.step(a, 1),
        wire.client.run(a, [[x] for x in range(7)], now=wire.now),
        wire.step(a, 2),
        wire.ask(a, "state"),
        wire.ask(a, "reset"),
        wire.step(a, 3),
        wire.ask(a, "fork", "b"),
        wire.step(a, 4),
        wire.ask(a, "close"),
    ]
    values = [wire.wait(call) for call in calls]
    ys = fold([1, *range(7), 2])
    assert values[1].shape == (7, 1)
    assert [float(values[0][0]), *values[1][:, 0].tolist(), float(values[2][0])] == ys
    assert values[3] == np.float32(ys[-1]).tobytes()
    b = values[6]
    assert (b.name, b.seq, a.seq, a.closed) == ("b", 0, 12, True)
    assert float(wire.wait(wire.step(b, 0))[0]) == 1.5
    with pytest.raises(errors.SessionClosedError):
        wire.step(a, 1)
    assert wire.client.run(b, np.zeros((0, 1)), now=wire.now).value().shape == (0, 1)
    assert wire.wait(wire.client.stats(now=wire.now)) == {"boot": 1}


@pytest.mark.parametrize("op", ["run", "reset", "restore", "state", "fork", "close"])
@pytest.mark.parametrize("restart", [False, True])
def test_every_operation_survives_a_lost_answer(wire: Wire, op: str, restart: bool) -> None:
    a = wire.open()
    wire.wait(wire.step(a, 8))
    if op == "run":
        call = wire.client.run(a, [[x] for x in range(7)], now=wire.now)
    else:
        args = {"restore": (np.float32(1).tobytes(),), "fork": ("b",)}.get(op, ())
        call = wire.ask(a, op, *args)
    wire.pull()
    wire.deliver_up()
    wire.reconnect() if restart else wire.lose()
    value = wire.wait(call)
    if op == "run":
        assert value[:, 0].tolist() == fold([8, *range(7)])[1:]
    assert a.seq == {"run": 8, "reset": 2, "restore": 2}.get(op, 1)
    if op == "close":
        assert a.closed
        assert wire.server.folds == {}
    else:
        wire.wait(wire.step(a, 1))
        fork = wire.server.folds.get("b")
        assert (fork is not None) == (op == "fork")


def test_open_is_sent_again_with_its_token(wire: Wire) -> None:
    call = wire.client.open("a", None, False, now=wire.now)
    wire.pull()
    wire.deliver_up()
    wire.lose()
    assert wire.wait(call).epoch == 1
    with pytest.raises(errors.SessionExistsError):
        wire.open()


def test_closing_the_client_tells_those_who_wait(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in range(6)]
    done: list[Call] = []
    calls[5].on_done = done.append
    wire.client.end(errors.ServiceError("the end"), wire.now)
    with pytest.raises(errors.ServiceError, match="the end"):
        calls[0].value()
    assert done == [calls[5]]
    for call in calls[1:]:
        with pytest.raises(errors.StreamLSTMError):
            call.value()
    with pytest.raises(errors.SequenceError):
        wire.step(a, 1)
    for ask in (wire.client.stats, wire.client.say_hello):
        with pytest.raises(errors.ServiceError, match="the end"):
            ask(now=wire.now)


def test_abandoned_calls(wire: Wire) -> None:
    a, b = wire.open("a"), wire.open("b")
    calls = [wire.step(a, x) for x in range(5)]
    wire.client.abandon(calls[4], wire.now)  # was not sent
    for call in calls[:4]:
        wire.wait(call)
    wire.client.abandon(calls[0], wire.now)
    wire.wait(wire.step(a, 1))
    assert wire.server.folds["a"].applied == [0, 1, 2, 3, 1]
    wire.client.abandon(wire.step(b, 1), wire.now)
    with pytest.raises(errors.SequenceError):
        wire.step(b, 1)


def test_strange_messages(wire: Wire) -> None:
    a = wire.open()
    call = wire.step(a, 1)
    wire.client.receive(msgpack.packb([1, "notice", None, "news", 3]), wire.now)
    wire.client.receive(msgpack.packb([1, "notice", None, {}, 3]), wire.now)
    assert not call.done
    wire.client.receive(b"\xc1", wire.now)
    with pytest.raises(errors.ProtocolError):
        call.value()
    with pytest.raises(errors.SequenceError):
        wire.step(a, 1)


# --- notices --------------------------------------------------------------------------------------


def notice(wire: Wire, kind: str, *entries: Any) -> None:
    wire.client.receive(msgpack.packb([1, "notice", None, kind, list(entries)]), wire.now)


def test_overrun_sends_everything_again(wire: Wire) -> None:
    a, b = wire.open("a"), wire.open("b")
    calls = [wire.step(a, 1), wire.step(a, 2), wire.step(b, 1)]
    group = wire.client.group([wire.open("c")])
    calls.append(wire.client.steps(group, [[1]], now=wire.now))
    wire.lose()
    start = wire.now
    notice(wire, "overrun")
    wire.settle()
    assert all(call.done for call in calls)
    assert wire.now == start


def test_notices_of_an_earlier_epoch_are_ignored(wire: Wire) -> None:
    a = wire.open()
    old = [a.name, a.handle, a.epoch, 0]
    wire.reconnect()
    wire.wait(wire.step(a, 1))
    notice(wire, "fenced", old)
    wire.wait(wire.step(a, 2))
    notice(wire, "fenced", [a.name, a.handle, a.epoch, 2])
    with pytest.raises(errors.SessionFencedError):
        wire.step(a, 3)


def test_a_fenced_notice_lets_answers_come(wire: Wire) -> None:
    a = wire.open()
    calls = [wire.step(a, x) for x in range(6)]
    notice(wire, "fenced", [a.name, a.handle, a.epoch, 4])
    for call in calls[:4]:
        wire.wait(call)
    with pytest.raises(errors.SessionFencedError):
        calls[4].value()


def test_quarantine_notices(wire: Wire) -> None:
    a = wire.open()
    wire.wait(wire.step(a, 1))
    notice(wire, "quarantined", [a.name, a.handle, a.epoch, 1])
    with pytest.raises(errors.SessionQuarantinedError, match="event 1"):
        wire.step(a, 1)
    wire.wait(wire.ask(a, "reset"))
    notice(wire, "quarantined", [a.name, a.handle, a.epoch, 1])  # a late one
    wire.wait(wire.step(a, 1))


def test_stopping_is_told_until_another_server_comes(wire: Wire) -> None:
    a = wire.open()
    notice(wire, "stopping")
    assert wire.client.stopping
    wire.reconnect()
    wire.server.restart()
    wire.wait(wire.step(a, 1))
    assert not wire.client.stopping


# --- steps of many --------------------------------------------------------------------------------


def many(wire: Wire, n: int = 3) -> tuple[list[ClientSession], Any]:
    sessions = [wire.open(f"m{i}") for i in range(n)]
    return sessions, wire.client.group(sessions)


def test_groups_and_sessions_wait_for_each_other(wire: Wire) -> None:
    sessions, group = many(wire)
    other = wire.client.group(sessions[1:][::-1])
    calls: list[list[Call]] = [[], [], []]
    for x in range(4):
        for i, session in enumerate(sessions):
            calls[i].append(wire.step(session, x))
        for g in (group, other):
            call = wire.client.steps(g, np.full((len(g.sessions), 1), 10 + x), now=wire.now)
            for session in g.sessions:
                calls[sessions.index(session)].append(call)
    for call in calls[1]:
        wire.wait(call)
    xs = [0, 10, 10, 1, 11, 11, 2, 12, 12, 3, 13, 13]
    assert wire.server.folds["m1"].applied == wire.server.folds["m2"].applied == xs
    assert wire.server.folds["m0"].applied == [0, 10, 1, 11, 2, 12, 3, 13]
    assert group.seqs.tolist() == [8, 12, 12]
    assert calls[1][1].value()[:, 0].tolist() == [10, 10, 10]


def test_steps_wait_for_credit(wire: Wire) -> None:
    others = [wire.open(str(i)) for i in range(20)]
    _, group = many(wire)
    calls = [wire.step(other, 1) for other in others]
    calls.append(wire.client.steps(group, np.ones((3, 1)), now=wire.now))
    calls.append(wire.step(group.sessions[0], 1))
    wire.pull()
    assert len(wire.up) == 16
    for call in calls[::-1]:
        wire.wait(call)
    assert wire.server.folds["m0"].applied == [1, 1]


@pytest.mark.parametrize("done", [False, True])
def test_steps_after_a_restart(wire: Wire, done: bool) -> None:
    sessions, group = many(wire, 20)
    wire.wait(wire.client.steps(group, np.ones((20, 1)), now=wire.now))
    call = wire.client.steps(group, np.arange(20.0)[:, None], now=wire.now)
    wire.pull()
    if done:
        wire.deliver_up()
    wire.reconnect()
    wire.server.restart()
    after = wire.step(sessions[3], 9)
    np.testing.assert_array_equal(wire.wait(call)[:, 0], 0.5 + np.arange(20))
    wire.wait(after)
    assert wire.server.greetings == 2
    assert wire.server.folds["m7"].applied == [1, 7]
    assert wire.server.folds["m3"].applied == [1, 3, 9]
    wire.wait(wire.client.steps(group, np.ones((20, 1)), now=wire.now))


@pytest.mark.parametrize("done", [False, True])
def test_steps_that_lost_a_member(wire: Wire, done: bool) -> None:
    sessions, group = many(wire)
    call = wire.client.steps(group, np.ones((3, 1)), now=wire.now)
    wire.pull()
    if done:
        wire.deliver_up()
    wire.reconnect()
    wire.server.folds["m1"].epoch, wire.server.folds["m1"].token = 5, 0
    with pytest.raises(errors.SessionFencedError):
        wire.wait(call)
    wire.settle()
    with pytest.raises(errors.SessionError):
        wire.client.steps(group, np.ones((3, 1)), now=wire.now)
    for session in (sessions[0], sessions[2]):
        if done:  # its answer is lost
            with pytest.raises(errors.SequenceError, match="compare seq"):
                wire.wait(wire.step(session, 2))
        else:
            wire.wait(wire.step(session, 2))


def test_steps_refused_and_lost(wire: Wire) -> None:
    sessions, group = many(wire)
    with pytest.raises(errors.NonFiniteError):
        wire.wait(wire.client.steps(group, np.full((3, 1), NAN), now=wire.now))
    wire.server.busy = 1 << 30
    with pytest.raises(errors.ServerBusyError):
        wire.wait(wire.client.steps(group, np.ones((3, 1)), now=wire.now))
    wire.server.busy = 0
    wire.wait(wire.client.steps(group, np.ones((3, 1)), now=wire.now))
    assert [s.epoch for s in sessions] == [2, 2, 2]
    call = wire.client.steps(group, np.ones((3, 1)), now=wire.now)
    behind = wire.step(sessions[1], 1)
    while not call.done:
        wire.lose()
        wire.sleep()
    with pytest.raises(errors.ServerTimeoutError):
        call.value()
    with pytest.raises(errors.SequenceError):
        behind.value()
    for stuck in sessions:
        with pytest.raises(errors.SequenceError, match="compare seq"):
            wire.step(stuck, 1)


# --- schedules ------------------------------------------------------------------------------------


class Schedule:
    """Random requests over a wire that loses, doubles, reorders and breaks."""

    def __init__(self, names: str = "ab") -> None:
        self.wire = Wire(patience_s=1e9)
        self.sessions = [self.wire.open(name) for name in names]
        self.group = self.wire.client.group(self.sessions)
        self.calls: list[list[tuple[Call, list[float], int]]] = [[] for _ in names]
        self.x = 0.0

    def request(self, kind: int, i: int) -> None:
        wire, session = self.wire, self.sessions[i]
        self.x += 1
        if kind < 6:
            self.calls[i].append((wire.step(session, self.x), [self.x], 0))
        elif kind == 6:
            self.calls[i].append((wire.step(session, NAN), [self.x], 0))
        elif kind == 7:
            xs = [self.x + k for k in range(5)]
            call = wire.client.run(session, [[x] for x in xs], now=wire.now)
            self.calls[i].append((call, xs, 0))
            self.x += 5
        elif kind == 8:
            self.calls[i].append((wire.ask(session, "reset"), [NAN], 0))
        else:
            xs = [self.x + k for k in range(len(self.sessions))]
            call = wire.client.steps(self.group, [[x] for x in xs], now=wire.now)
            for row, x in enumerate(xs):
                self.calls[row].append((call, [x], row))

    def act(self, action: int, i: int) -> None:
        wire = self.wire
        wire.pull()
        queue = wire.up if i % 2 else wire.down
        if action < 10:
            self.request(action, i % len(self.sessions))
        elif action < 16:
            if wire.up:
                wire.deliver_up()
        elif action < 22:
            if wire.down:
                wire.deliver_down()
        elif action == 22:
            if queue:
                queue.popleft()
        elif action == 23:
            if queue:
                queue.append(queue[0])
        elif action == 24:
            queue.rotate(1 + i)
        elif action == 25:
            wire.server.busy += i % 3
        elif action == 26:
            wire.peer += 1  # what was sent may still arrive, as the old peer's
        elif action == 27:
            wire.reconnect()
            wire.server.restart()
        elif wire.client.next_due() is not None:
            wire.sleep()

    def check(self) -> None:
        self.wire.server.busy = 0
        for calls in self.calls:
            for call, _, _ in calls:
                with suppress(errors.NonFiniteError, errors.SequenceError):
                    self.wire.wait(call)
                if isinstance(call.error, errors.SequenceError):
                    assert "not stepped" in str(call.error)
        for session, calls in zip(self.sessions, self.calls, strict=True):
            done = [(call, xs, row) for call, xs, row in calls if call.error is None]
            applied = [x for _, xs, _ in done for x in xs]
            server = self.wire.server.folds[session.name]
            np.testing.assert_array_equal(server.applied, applied)
            assert session.seq == server.seq == len(applied)
            got: list[float] = []
            for call, xs, row in done:
                if not np.isnan(xs[0]):
                    Y = np.atleast_2d(call.result)
                    got += [Y[row, 0]] if call.op is operations.STEPS else Y[:, 0].tolist()
            assert got == fold(applied)


@pytest.mark.untraced
@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 7)), min_size=20, max_size=120))
def test_outputs_are_those_of_an_uninterrupted_run(actions: list[tuple[int, int]]) -> None:
    schedule = Schedule()
    for action, i in actions:
        schedule.act(action, i)
    schedule.check()


@pytest.mark.parametrize("seed", range(200))
def test_seeded_schedules(seed: int) -> None:
    rng = random.Random(seed)
    schedule = Schedule("abc"[: 1 + seed % 3])
    for _ in range(200):
        schedule.act(rng.randrange(30), rng.randrange(8))
    schedule.check()
