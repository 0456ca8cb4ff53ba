"""The rim of the server: one ROUTER socket around the protocol, one thread, one loop.

A turn of the loop drains what has arrived (a bounded number of messages),
takes one step of the protocol and sends its replies. No timer: when
messages come one at a time each is stepped at once, and batches form only
when messages come faster than they are stepped.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

import zmq

from streamlstm.errors import ServiceError, StoreError
from streamlstm.service.contract import EngineLike
from streamlstm.service.server.protocol import Reply, ServerProtocol
from streamlstm.store import open_store
from streamlstm.wording import reason

MESSAGES_PER_TURN_MAX: Final = 1024
UNREAD_HERE_MAX: Final = 64
"""Messages of a peer that libzmq holds, some 8 KiB each; more wait in the peer's connection."""

PENDING_MAX: Final = 4096
"""While so many messages of all clients wait, new ones are left in the socket."""

UNREAD_MAX: Final = 4
"""Replies and notices that may lie unread, times a peer's `QueueLimits.peer_messages`.

libzmq hears of what was read in steps of half its limit, so that half of this is sure.
"""

QUEUED_S: Final = 50e-6
"""A message received faster than this was there already; waking up takes longer."""

WAIT_MS: Final = 200
"""Longest sleep of an idle loop, and so the longest reaction to a signal."""

TICK_S: Final = 1.0
GRACE_S: Final = 5.0
"""A drain that takes longer is broken off."""

QUIET_MS: Final = 20
"""At the end: nothing came for so long, so that nothing more is in the connections."""

LINGER_MS: Final = 1000

# Plain integers: operations on the enums of pyzmq cost microseconds, and a turn has few.
_DONTWAIT: Final = int(zmq.DONTWAIT)
_SNDMORE: Final = int(zmq.SNDMORE) | _DONTWAIT
_RCVMORE: Final = zmq.RCVMORE


def log(event: str, level: str = "info", **fields: Any) -> None:
    """One line of JSON on stderr, if anybody still reads it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"time": stamp, "level": level, "event": event, **fields}
    try:
        print(json.dumps(line, default=str), file=sys.stderr, flush=True)
    except BrokenPipeError:
        # What stays in the buffer would fail again at exit, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except OSError:
        pass  # a full disk must not end the service


class Broker:
    """Binds, then `run`s until `stop` was called and everything waiting is answered.

    A context manager that closes the socket. `endpoint` is the actual address,
    with the port that ``tcp://127.0.0.1:0`` got.
    Raises ServiceError when the address can't be bound.
    """

    def __init__(
        self,
        protocol: ServerProtocol,
        bind: str,
        *,
        frame_bytes_max: int = 8 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._protocol = protocol
        self._clock = clock
        self._stopping = False
        self._ipc_path = ""
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        # What is a little too large still gets a reply; what is far too large, a closed connection.
        self._socket.set(zmq.MAXMSGSIZE, 2 * frame_bytes_max)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.RCVHWM, UNREAD_HERE_MAX)
        self._socket.set(zmq.SNDHWM, UNREAD_MAX * protocol.peer_messages)
        self._socket.set(zmq.RCVTIMEO, WAIT_MS)
        self._socket.set(zmq.LINGER, LINGER_MS)
        try:
            _refuse_taken_ipc(bind)
            self._socket.bind(bind)
        except (zmq.ZMQError, ServiceError) as error:
            self.close()
            raise ServiceError(f"can't listen on {bind}: {reason(error)}") from None
        self.endpoint = str(self._socket.get_string(zmq.LAST_ENDPOINT))
        self._ipc_path = _ipc_path(self.endpoint)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Ask `run` to drain and return. Safe in signal handlers and from other threads."""
        self._stopping = True

    def run(self) -> None:
        """Serve until stopped."""
        protocol, clock = self._protocol, self._clock
        next_tick_s = clock() + TICK_S
        while not self._stopping:
            self._drain_socket()
            now = clock()
            self._send(protocol.step(now))
            if now >= next_tick_s and self._is_drained():
                next_tick_s = now + TICK_S
                self._tick()
        log("draining", pending=protocol.pending)
        self._finish()

    def _finish(self) -> None:
        """Answer everything that is here, and stop."""
        protocol, sock = self._protocol, self._socket
        protocol.drain()
        sock.set(zmq.RCVTIMEO, QUIET_MS)
        until_s = self._clock() + GRACE_S
        while self._clock() < until_s:
            received = self._drain_socket()
            self._send(protocol.step(self._clock()))
            if not protocol.pending and not received:
                break
        else:
            log("drain broken off", level="error", pending=protocol.pending)
        protocol.stop()

    def close(self) -> None:
        """Close the socket; replies already sent get up to a second to leave."""
        if self._ipc_path and not self._socket.closed:
            # libzmq leaves the file. Before the close: afterwards it could be another server's.
            with suppress(FileNotFoundError):
                os.unlink(self._ipc_path)
        self._socket.close()
        self._context.term()

    def _drain_socket(self) -> int:
        """Receive what has arrived, and wait for a first message when nothing is pending.

        How many messages there were.
        """
        pending = self._protocol.pending
        budget = min(MESSAGES_PER_TURN_MAX, PENDING_MAX - pending)
        received = 0
        try:
            if not pending:
                started_s = self._clock()
                peer = self._socket.recv()
                waited_s = self._clock() - started_s
                self._receive(peer)
                received = 1
                # What had to be waited for is most likely alone: not worth a look.
                if waited_s > QUEUED_S and not self._stopping:
                    return received
            while received < budget:
                self._receive(self._socket.recv(_DONTWAIT))
                received += 1
        except zmq.Again:
            pass
        return received

    def _is_drained(self) -> bool:
        """Whether all that has arrived was received and done."""
        return not self._protocol.pending and not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN

    def _receive(self, peer: bytes) -> None:
        """The rest of a message; of too many frames only as many are kept as show that."""
        sock = self._socket
        frames = [sock.recv()]  # a ROUTER's message has its peer and at least one frame
        while sock.get(_RCVMORE):
            frames[1:] = [sock.recv()]
        self._protocol.receive(peer, frames)

    def _send(self, replies: list[Reply]) -> None:
        send, overrun = self._socket.send, self._protocol.overrun
        for peer, message in replies:
            if overrun and peer in overrun:
                self._protocol.undeliverable += 1
                continue
            try:
                send(peer, _SNDMORE)
                send(message, _DONTWAIT)
            except zmq.ZMQError as error:
                if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                    raise
                self._protocol.undeliverable += 1
                if error.errno == zmq.EAGAIN:  # there, but it does not read
                    self._protocol.cut(peer)
                    log("overrun", level="warning", overruns=self._protocol.overruns)

    def _mend(self) -> None:
        """Tell peers that were cut, once they read again; forget those that are gone."""
        for peer in list(self._protocol.overrun):
            try:
                self._socket.send(peer, _SNDMORE)
                self._socket.send(self._protocol.overrun_notice(), _DONTWAIT)
            except zmq.ZMQError as error:
                if error.errno == zmq.EAGAIN:
                    continue
                if error.errno != zmq.EHOSTUNREACH:
                    raise
            self._protocol.mend(peer)

    def _tick(self) -> None:
        self._mend()
        before = self._protocol.evicted
        self._protocol.tick()
        evicted = self._protocol.evicted - before
        if evicted:
            log("evicted", sessions=evicted)


def serve(
    engines: Sequence[EngineLike[Any]],
    read_state: Callable[[bytes], Any],
    bind: str,
    *,
    state: Path | None = None,
    durability: str = "async",
    max_resident: int | None = None,
    ttl_s: float | None = None,
    server: str = "streamlstm",
) -> int:
    """Serve in the main thread until SIGTERM or SIGINT; returns the exit code, 143 or 130.

    state: the directory in which sessions last; None keeps them in memory. A store that can't
    be written ends the server with exit code 1: what was not committed was not answered.

    The last thing a process does: it keeps both signals for itself.

    Logs to stderr; the line with event "listening" has the actual endpoint.
    """
    caught: list[int] = []
    brokers: list[Broker] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        caught.append(number)
        for broker in brokers:
            broker.stop()

    # Before there is a socket file to leave behind, and for the rest of the process:
    # a second signal must not cut the first one's drain short.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    with ExitStack() as stack:
        store = None
        if state is not None:
            store = stack.enter_context(closing(open_store(state, durability)))
        started_s = time.monotonic()
        protocol = ServerProtocol(
            engines,
            read_state,
            store=store,
            max_resident=max_resident,
            ttl_s=ttl_s,
            server=server,
            now=started_s,
            clock=time.monotonic,
            report=_Faults(),
        )
        broker = stack.enter_context(Broker(protocol, bind))
        brokers.append(broker)
        if caught:
            broker.stop()
        _warn_of_others(protocol)
        log(
            "listening",
            endpoint=broker.endpoint,
            pid=os.getpid(),
            models=[engine.model.name for engine in engines],
            **_told(protocol, time.monotonic() - started_s),
        )
        gc.collect()
        gc.freeze()  # models and code are never garbage: keep them out of every collection
        try:
            broker.run()
        except StoreError as error:
            log("store failed", level="error", error=str(error))
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # Python's own end would restore the default
    stats = protocol.stats(time.monotonic())
    name = signal.Signals(caught[0]).name
    log("stopped", signal=name, messages=stats["messages"], undeliverable=stats["undeliverable"])
    return 128 + caught[0]


def _told(protocol: ServerProtocol, took_s: float) -> dict[str, Any]:
    """What the log says of the store."""
    stats = protocol.stats(0.0)
    told = {"durability": stats["durability"]}
    if protocol.journal is not None:
        told |= {"recovered_events": stats["recovered_events"], "recovery_s": round(took_s, 3)}
        told["sessions"] = {name: model["sessions"] for name, model in stats["models"].items()}
    return told


def _warn_of_others(protocol: ServerProtocol) -> None:
    """Say which stored sessions can't be had here, because their model is not served."""
    if protocol.journal is None:
        return
    store = protocol.journal.store
    served = {sessions.model_id for sessions in protocol.tables}
    for model in store.models:
        waiting = 0 if model.id in served else store.count(model.id)
        if waiting:
            log(
                "stored sessions of a model that is not served",
                level="warning",
                model=model.name,
                fingerprint=model.fingerprint,
                sessions=waiting,
            )


class _Faults:
    """Logs engine failures, at most one a second: a client must not be able to fill the disk."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._unlogged = 0

    def __call__(self, doing: str, error: Exception) -> None:
        now = time.monotonic()
        if now < self._next_s:
            self._unlogged += 1
            return
        trace = "".join(traceback.format_exception(error))
        log("fault", level="error", doing=doing, traceback=trace, unlogged=self._unlogged)
        self._next_s, self._unlogged = now + 1.0, 0


def _refuse_taken_ipc(bind: str) -> None:
    """libzmq silently takes an ipc path from a living server, and any file away; look first."""
    path = _ipc_path(bind)
    if not path or not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ServiceError("a file that is no socket is there; give another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return  # left over from a server that was killed
    raise ServiceError("another server listens there")


def _ipc_path(address: str) -> str:
    """The socket file of an ipc address; "" for others, and where libzmq picks the name."""
    path = address.removeprefix("ipc://")
    return "" if path == address or path.startswith(("@", "*")) else path
