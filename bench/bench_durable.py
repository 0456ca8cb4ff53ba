"""What durable sessions cost, and how fast they come back.

python bench/bench_durable.py [--rounds N] [--json PATH]

For (I, H) = (16, 64), with servers in the modes memory, async and sync beside a bare echo,
taking short turns in one run:
round trip   `Client.step` over tcp against the echo of the same bytes, p50
bulk         `steps` of 512 sessions from one client; durable events/s
capacity     single-event messages with 64 on their way; durable events/s
recovery     100,000 journaled events replayed at the start: as bulks of 512 over 512 sessions,
             and as 100,000 micro-batches of one event
pause        the longest of 20,000 commits of a 10 kB record, and how many took over 5 ms
Where the state lies decides what sync costs: --folder (default: the system's temporary one).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zmq

import machine
import streamlstm as sl
from bench_service import (
    BULK,
    INPUTS,
    Events,
    capacity,
    make_model,
    pair,
    percentiles,
    timed,
)
from streamlstm.service import wire
from streamlstm.service.server.protocol import ServerProtocol
from streamlstm.store import open_store

MODES = ("memory", "async", "sync")
JOURNALED = 100_000


def options(mode: str, folder: Path) -> tuple[str, ...]:
    if mode == "memory":
        return ()
    return ("--state", str(folder / mode), "--durability", mode)


def modes(model: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Every mode's round trip, bulk and capacity, in turns."""
    steps, echoes, bulks, rates = ({mode: [] for mode in MODES} for _ in range(4))
    with ExitStack() as stack:
        pairs = {}
        groups = {}
        events = {}
        context = stack.enter_context(zmq.Context())
        for mode in MODES:
            place = folder / f"of-{mode}"
            place.mkdir()
            p = stack.enter_context(pair(model, "tcp", place, *options(mode, folder)))
            client = p.session._client
            pairs[mode] = p
            groups[mode] = client.group([client.open(f"bulk-{i}") for i in range(BULK)])
            sock = stack.enter_context(context.socket(zmq.DEALER))
            sock.linger = 0
            sock.connect(client.address)
            events[mode] = (sock, Events(sock, p.x))
        X = np.random.default_rng(1).standard_normal((BULK, INPUTS)).astype(np.float32)
        for _ in range(rounds):
            for mode in MODES:
                few = 20 if mode == "sync" else 200
                p, group = pairs[mode], groups[mode]
                timed(lambda p=p: p.session.step(p.x), few, steps[mode])
                timed(lambda p=p: (p.sock.send(p.request), p.sock.recv()), few, echoes[mode])
                timed(lambda group=group: group.step(X), 10, bulks[mode])
                sock, source = events[mode]
                rates[mode].append(capacity(sock, source.take(10 * few)))
    return {
        mode: {
            "step_p50_us": percentiles(steps[mode])["p50_us"],
            "echo_p50_us": percentiles(echoes[mode])["p50_us"],
            "bulk_events_per_s": BULK / float(np.median(bulks[mode])),
            "single_events_per_s": float(np.median(rates[mode])),
        }
        for mode in MODES
    }


class Direct:
    """A server without its socket, to fill a journal that no checkpoint trims."""

    def __init__(self, model: Path, state: Path) -> None:
        self.store = open_store(state, "async")
        start = time.perf_counter()
        engine = sl.Engine(sl.load(model))
        self.protocol = ServerProtocol([engine], sl.State.from_bytes, store=self.store)
        self.took_s = time.perf_counter() - start
        self._encoder = wire.Encoder()
        self._decode = wire.Decoder().reply

    def ask(self, op: str, *fields: Any) -> Any:
        self.protocol.receive(b"bench", [self._encoder.request(op, 1, fields)])
        ((_, reply),) = self.protocol.step(0.0)
        answer = self._decode(reply)
        if answer[1] != "ok":
            raise RuntimeError(f"{op}: {answer}")
        return answer[3:]


def recovery(model: Path, folder: Path, batch: int) -> float:
    """Seconds to come back with JOURNALED events, `batch` of them in a micro-batch."""
    server = Direct(model, folder)
    opened = [server.ask("open", f"s{i}", None, False, None, None)[:2] for i in range(batch)]
    X = np.random.default_rng(2).standard_normal((batch, INPUTS)).astype(np.float32).tobytes()
    handles = np.array([handle for handle, _ in opened], "<u8").tobytes()
    epochs = np.array([epoch for _, epoch in opened], "<u4").tobytes()
    for _ in range(-(-JOURNALED // batch)):
        if batch == 1:
            server.ask("step", *opened[0], None, None, X)
        else:
            server.ask("steps", handles, epochs, None, None, X)
    server.store.close()  # as a kill does: no checkpoint
    again = Direct(model, folder)
    again.store.close()
    if again.protocol.meters.recovered_events < JOURNALED:
        raise RuntimeError("not all came back")
    return again.took_s


def pauses(folder: Path) -> dict[str, float]:
    store = open_store(folder, "async")
    record = np.random.default_rng(3).bytes(10_000)
    times: list[float] = []

    def commit() -> None:
        number = store.append(record)
        if number % 5000 == 0:
            store.trim(number)
        store.commit()

    timed(commit, 20_000, times)
    store.close()
    return {
        "p50_us": float(np.median(times)) * 1e6,
        "longest_ms": max(times) * 1e3,
        "over_5_ms": sum(t > 5e-3 for t in times),
    }


def measure(rounds: int, where: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        model = folder / "bench.safetensors"
        make_model(model)
        return {
            "machine": machine.facts(),
            "modes": modes(model, folder, rounds),
            "recovery_s": {
                f"bulks of {BULK}": recovery(model, folder / "many", BULK),
                "one by one": recovery(model, folder / "one", 1),
            },
            "pause": pauses(folder / "pauses"),
        }


def report(results: dict[str, Any]) -> str:
    heads = f"{'step p50 us':>12}{'echo':>8}{'ratio':>7}{'bulk/s':>12}{'of memory':>10}"
    lines = [f"{'':8}{heads}{'singles/s':>11}"]
    memory = results["modes"]["memory"]["bulk_events_per_s"]
    for mode, got in results["modes"].items():
        step, echo, bulk = got["step_p50_us"], got["echo_p50_us"], got["bulk_events_per_s"]
        lines.append(
            f"{mode:8}{step:12.1f}{echo:8.1f}{step / echo:7.2f}{bulk:12,.0f}{bulk / memory:10.2f}"
            f"{got['single_events_per_s']:11,.0f}"
        )
    for what, seconds in results["recovery_s"].items():
        lines.append(f"recovery of {JOURNALED:,} journaled events, {what}: {seconds:.2f} s")
    pause = results["pause"]
    lines.append(
        f"commit of 10 kB: p50 {pause['p50_us']:.0f} us, longest {pause['longest_ms']:.1f} ms, "
        f"{pause['over_5_ms']} of 20,000 over 5 ms"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", help="where the state lies")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    results = measure(args.rounds, args.folder)
    print(report(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
