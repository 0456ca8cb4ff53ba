"""`streamlstm stats`: what a server says of itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, Final

from streamlstm.commands.arguments import BIND, add_command, positive_float
from streamlstm.commands.lines import printable, say
from streamlstm.errors import ServiceError
from streamlstm.wording import counted, lasting, sized

PLACES: Final = ("resident", "spilled", "quarantined", "evicted")


def add(commands: Any) -> None:
    stats = add_command(
        commands, "stats", run, "show a server's counters; fails if it is not healthy"
    )
    stats.add_argument("--connect", default=BIND, metavar="ADDRESS", help="(default: %(default)s)")
    stats.add_argument("--json", action="store_true", help="as JSON")
    stats.add_argument(
        "--timeout", type=positive_float, default=5.0, metavar="SECONDS", help="(default: 5)"
    )


def run(args: argparse.Namespace) -> int:
    from streamlstm.service.client.client import Client  # noqa: PLC0415

    with Client(args.connect, patience_s=args.timeout) as client:
        stats = client.stats()
    if args.json:
        print(json.dumps(stats, indent=2))
    else:
        for what, text in _of_server(stats):
            say(what, text)
        for name, model in stats["models"].items():
            print(f"\nmodel {printable(name)}")
            for what, text in _of_model(model):
                say(f"  {what}", text)
    if stats["state"] != "running":
        raise ServiceError(f"the server at {args.connect} is {stats['state']}")
    return 0


def _of_server(stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "server", f"{stats['server']}, {stats['state']} for {lasting(stats['uptime_s'])}"
    kept = {"memory": "in memory only", "async": "after kill -9", "sync": "after a power cut, too"}
    lasts = kept.get(stats["durability"], "")
    recovered = stats["recovered_events"]
    more = f"; {counted(recovered, 'event')} recovered at the start" if recovered else ""
    yield "durability", f"{stats['durability']}: sessions are there {lasts}{more}"
    waiting = counted(stats["pending"], "message")
    yield "clients", f"{stats['clients']:,}; {waiting} waiting, {1e3 * stats['wait_s']:.1f} ms each"
    yield "messages", f"{stats['messages']:,} received, {stats['replies']:,} answered"
    if stats["overruns"] or stats["undeliverable"] or stats["dropped"]:
        yield (
            "not read",
            f"{counted(stats['undeliverable'], 'answer')} found no room, "
            f"{counted(stats['dropped'], 'message')} left undone, of clients that did not read "
            f"(cut {counted(stats['overruns'], 'time')})",
        )
    errors = sorted(stats["errors"].items(), key=lambda error: -error[1])
    yield "refused", ", ".join(f"{n:,} {code}" for code, n in errors) or "nothing"


def _of_model(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    sessions, most = model["sessions"], model["max_sessions"]
    places = [f"{model[what]:,} {what}" for what in PLACES if model[what]]
    share = f"{sessions:,} of {most:,} ({sessions / most:.1%})"
    yield "sessions", "; ".join([share, ", ".join(places)] if places else [share])
    batches = model["micro_batches"]
    mean = f", {model['events'] / batches:.1f} at a time" if batches else ""
    alone = "; each is stepped alone" if model["stepped_alone"] else ""
    yield "events", f"{model['events']:,}{mean}{alone}"
    yield "states", sized(model["state_bytes"])
    if model["readings"]:
        yield "readings", ", ".join(f"{n:,} {what}" for what, n in model["readings"].items())
    yield "arithmetic", model["arithmetic"]
    yield "network", model["fingerprint"][:12]
