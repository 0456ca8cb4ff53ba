"""The server's process: signals, the store, the shard behind its port, and the exit code."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import Any

from streamlstm.errors import StoreError
from streamlstm.service.contract import EngineLike
from streamlstm.service.server.log import Faults, log
from streamlstm.service.server.loop import Loop
from streamlstm.service.server.port_zmq import Port
from streamlstm.service.server.protocol import ServerProtocol
from streamlstm.service.wire import Limits
from streamlstm.store import open_store


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
    loops: list[Loop] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        caught.append(number)
        for loop in loops:
            loop.stop()

    # Before there is a socket file to leave behind, and for the rest of the process:
    # a second signal must not cut the first one's drain short.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    with ExitStack() as stack:
        store = None
        if state is not None:
            store = stack.enter_context(closing(open_store(state, durability)))
        started_s, limits = time.monotonic(), Limits()
        protocol = ServerProtocol(
            engines,
            read_state,
            store=store,
            max_resident=max_resident,
            ttl_s=ttl_s,
            limits=limits,
            server=server,
            now=started_s,
            clock=time.monotonic,
            report=Faults(),
        )
        port = stack.enter_context(
            Port(
                bind,
                peer_messages=protocol.peer_messages,
                frame_bytes_max=limits.frame_bytes,
                clock=time.monotonic,
            )
        )
        loop = Loop(protocol, port, time.monotonic)
        loops.append(loop)
        if caught:
            loop.stop()
        _warn_of_others(protocol)
        log(
            "listening",
            endpoint=port.endpoint,
            pid=os.getpid(),
            models=[engine.model.name for engine in engines],
            **_store_facts(protocol, time.monotonic() - started_s),
        )
        gc.collect()
        gc.freeze()  # models and code are never garbage: keep them out of every collection
        try:
            loop.run()
        except StoreError as error:
            log("store failed", level="error", error=str(error))
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # Python's own end would restore the default
    stats = protocol.stats(time.monotonic())
    name = signal.Signals(caught[0]).name
    log("stopped", signal=name, messages=stats["messages"], undeliverable=stats["undeliverable"])
    return 128 + caught[0]


def _store_facts(protocol: ServerProtocol, took_s: float) -> dict[str, Any]:
    """What the log says of the store."""
    stats = protocol.stats(0.0)
    facts = {"durability": stats["durability"]}
    if protocol.shard.journal is not None:
        facts |= {"recovered_events": stats["recovered_events"], "recovery_s": round(took_s, 3)}
        facts["sessions"] = {name: model["sessions"] for name, model in stats["models"].items()}
    return facts


def _warn_of_others(protocol: ServerProtocol) -> None:
    """Say which stored sessions can't be had here, because their model is not served."""
    if protocol.shard.journal is None:
        return
    store = protocol.shard.journal.store
    served = {sessions.model_id for sessions in protocol.shard.tables}
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
