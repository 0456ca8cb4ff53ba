"""What the server counts and measures: each declared once, with its kind, unit and meaning.

A meter is a field of one of the records here. Counters are moved by those who see it happen,
gauges and facts are set when somebody asks; `stats` is these fields, and so is any other report.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

_METER: Final = "meter"


class Kind(enum.Enum):
    COUNTER = "counter"  # only grows
    GAUGE = "gauge"
    FACT = "fact"  # text, or what stays


class Meter(NamedTuple):
    name: str
    kind: Kind
    unit: str
    help: str


def _declare(kind: Kind, unit: str, help: str, **how: Any) -> Any:
    return field(metadata={_METER: (kind, unit, help)}, **(how or {"default": 0}))


def _counter(unit: str, help: str) -> Any:
    return _declare(Kind.COUNTER, unit, help)


def _by_name(unit: str, help: str) -> Any:
    return _declare(Kind.COUNTER, unit, help, default_factory=Counter)


def _gauge(unit: str, help: str) -> Any:
    return _declare(Kind.GAUGE, unit, help)


def _fact(help: str) -> Any:
    return _declare(Kind.FACT, "", help, default="")


@dataclass(slots=True)
class ModelMeters:
    """Of one model; in the order that `stats` tells them."""

    sessions: int = _gauge("sessions", "here or in the store")
    resident: int = _gauge("sessions", "with their state in the engine")
    spilled: int = _counter("sessions", "moved from the engine to the store to make room")
    quarantined: int = _gauge("sessions", "whose state an event made non-finite")
    stepped_alone: bool = _fact("whether each is stepped by itself, so that replay is exact")
    max_sessions: int = _gauge("sessions", "that there may be")
    state_bytes: int = _gauge("bytes", "of one session's state in the engine")
    events: int = _counter("events", "stepped")
    readings: Counter[str] = _by_name(  # noqa: RUF009  (a field)
        "readings", "what happened to readings, by name"
    )
    micro_batches: int = _counter("batches", "calls of the engine that stepped events")
    evicted: int = _counter("sessions", "idle longer than the time-to-live")
    fingerprint: str = _fact("of the model")
    arithmetic: str = _fact("class of the bits")


@dataclass(slots=True)
class ServerMeters:
    """Of the whole server; in the order that `stats` tells them."""

    server: str = _fact("name and version")
    state: str = _fact("running, draining or stopped")
    uptime_s: float = _gauge("seconds", "since the start")
    durability: str = _fact("memory, async or sync")
    recovered_events: int = _counter("events", "replayed from the journal at the start")
    clients: int = _gauge("connections", "that own a session")
    pending: int = _gauge("messages", "that wait")
    wait_s: float = _gauge("seconds", "that what waits will take")
    messages: int = _counter("messages", "received")
    replies: int = _counter("messages", "made for clients: replies and notices")
    undeliverable: int = _counter("messages", "that could not be delivered, of those made")
    dropped: int = _counter("messages", "of clients that do not read, left undone")
    overruns: int = _counter("connections", "that left too much unread")
    errors: Counter[str] = _by_name("replies", "refusals, by code")  # noqa: RUF009


def declared(record: type[ModelMeters | ServerMeters]) -> list[Meter]:
    """All meters of a record."""
    return [Meter(each.name, *each.metadata[_METER]) for each in fields(record)]


def values(record: ModelMeters | ServerMeters) -> dict[str, Any]:
    """The values by name, as they can be sent."""
    pairs = ((each.name, getattr(record, each.name)) for each in fields(record))
    return {name: dict(v) if isinstance(v, Counter) else v for name, v in pairs}
