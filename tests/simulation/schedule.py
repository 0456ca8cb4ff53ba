"""A seed's schedule: how the world is, what clients do, and what goes wrong when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from simulation.engine import CRASH_PLACES

EVENTS_MIN = 30
LAST_EVENT_S = 12.0

ACTIONS = {
    "step": 40,
    "burst": 14,
    "steps": 16,
    "run": 9,
    "reset": 3,
    "state": 3,
    "restore": 3,
    "fork": 3,
    "close": 4,
    "open": 6,
    "take over": 4,
    "hurry": 8,
    "poison": 2,
}
FAULTS = {
    "storm": 8,
    "partition": 4,
    "crash": 7,
    "client crash": 3,
    "drain": 1.5,
    "disk full": 1,
    "crash in recovery": 2,
    "stall": 1,
    "power loss": 0,
}


@dataclass
class Plan:
    """What a seed decides before anything happens; the rest is drawn on the way."""

    seed: int
    durable: bool
    power_loss: bool
    clients: int
    max_resident: int | None
    ttl_s: float | None
    queue: int
    window: int
    work_s: float
    waits_s: tuple[float, ...]
    run_piece: int
    checkpoint_s: float
    slice_rows: int
    events: list[tuple[float, str]] = field(default_factory=list)
    faults: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)


def draw(seed: int, rng: random.Random) -> Plan:
    durable = rng.random() < 0.85
    power_loss = durable and rng.random() < 0.2
    plan = Plan(
        seed=seed,
        durable=durable,
        power_loss=power_loss,
        clients=rng.choice((1, 2, 2, 3)),
        max_resident=rng.choice((None, None, 2, 3)),
        ttl_s=rng.choice((None, None, None, 3.0)),
        queue=rng.choice((2, 4, 64, 64, 64)),
        window=rng.choice((2, 4, 16)),
        work_s=rng.choice((0.0, 0.0, 0.0, 0.0, 0.1)),
        waits_s=rng.choice(((0.0,), (0.0, 0.002), (0.0, 0.01, 0.1))),
        run_piece=rng.choice((1, 2, 5)),
        checkpoint_s=rng.choice((0.05, 0.3, 1.0, 5.0)),
        slice_rows=rng.choice((1, 1, 2, 64)),
    )
    span_s = rng.choice((1.0, 4.0, LAST_EVENT_S))
    actions, weights = list(ACTIONS), list(ACTIONS.values())
    for kind in rng.choices(actions, weights, k=rng.randint(EVENTS_MIN, EVENTS_MIN + 15)):
        plan.events.append((0.1 + rng.random() * span_s, kind))
    plan.events.sort()
    weigh = dict(FAULTS)
    if power_loss:
        weigh["power loss"] = 12
    if not durable:
        weigh |= {"disk full": 0, "crash in recovery": 0, "crash": 1, "drain": 0.3}
    kinds = rng.choices(list(weigh), list(weigh.values()), k=rng.choice((1, 1, 2, 2, 3, 5)))
    for kind in kinds:
        plan.faults.append((0.1 + rng.random() * span_s, kind, _details(kind, durable, rng)))
    plan.faults.sort(key=lambda fault: fault[:2])
    return plan


def _details(kind: str, durable: bool, rng: random.Random) -> dict[str, Any]:
    lasts_s = rng.choice((0.05, 0.5, 2.0, 6.0))
    if rng.random() < 0.05:
        lasts_s = 40.0  # longer than a client's patience
    if kind == "storm":
        return {
            "lasts_s": min(lasts_s * 4, 12.0),
            "drop": rng.choice((0.0, 0.05, 0.3)),
            "duplicate": rng.choice((0.0, 0.1, 0.4)),
            "late": rng.choice((0.0, 0.05, 0.2)),
            "jitter_s": rng.choice((0.002, 0.05, 0.5)),
            "reorder": rng.random() < 0.7,
        }
    if kind == "partition":
        return {"lasts_s": lasts_s, "loses": rng.random() < 0.5}
    if kind in ("crash", "disk full", "crash in recovery"):
        places = CRASH_PLACES if durable else ("idle", "engine", "replies")
        place = rng.choice(places)
        if kind == "disk full":
            place = rng.choice(("append", "commit", "put", "trim"))
        return {"lasts_s": lasts_s, "place": place, "left": rng.choice((1, 1, 2, 4))}
    return {"lasts_s": lasts_s}
