"""Models with a head and readings for the tests: random networks, and a real series with holes."""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import streamlstm
from networks import dense, lstm
from streamlstm import Feature, Head, Model

Array = NDArray[Any]

FLOW = Feature("flow", "l/s", 100.0, 5.0)
WATER = Path(streamlstm.__file__).parent / "demo" / "data" / "water_flow.csv"
HOUR_S = 3600.0


def headed(head: Head, seed: int = 0, units: int = 12, dtype: str = "float32") -> Model:
    """A random network under `head`; its forecasts stay near the last value."""
    rng = np.random.default_rng(seed)
    last = dense(rng, units, head.network_outputs)
    layers = [lstm(rng, head.network_inputs, units), type(last)(0.3 * last.w, 0.3 * last.b)]
    return Model(layers, head=head, name="flow", dtype=dtype)


def water() -> tuple[Array, Array]:
    """Times in seconds and flows of a real pipeline, hourly, [T] each."""
    with WATER.open(newline="") as file:
        rows = [
            (datetime.fromisoformat(t).timestamp(), float(v))
            for t, v in csv.reader(file)
            if t[:1].isdigit()
        ]
    times, flows = np.array(rows).T
    return times, flows


def holed(rows: int = 600, seed: int = 0) -> Array:
    """Readings [~rows, 2] of the real series with what sensors do to it: values missing alone and
    for long, rows missing alone and for long, rows late, repeated, early and jittered."""
    rng = np.random.default_rng(seed)
    times, flows = water()
    x = np.column_stack([times, flows])[:rows]
    x[:, 0] += rng.uniform(-0.2, 0.2, len(x)) * HOUR_S  # jitter
    x[45:][rng.random(len(x) - 45) < 0.05, 1] = np.nan
    x[120:150, 1] = np.nan  # the sensor is dead for a day
    keep = rng.random(len(x)) > 0.05
    keep[:2] = keep[38:44] = True
    keep[200:260] = False  # the line is down for days
    keep[300:450] = False  # and for longer than FILL_MAX
    order = np.arange(len(x))
    order[40:42] = order[41:39:-1]  # two rows overtake each other
    order = np.insert(order, [70, 71, 90], [70, 70, 60])  # repeated, and one from long before
    x = x[order][keep[order]]
    early = x[80].copy()
    early[0] += 0.1 * HOUR_S
    return np.insert(x, 81, early, axis=0)


def heads() -> st.SearchStrategy[Head]:
    """All policies, spacings and sizes."""
    timed = st.fixed_dictionaries(
        {
            "time": st.just("time"),
            "step_s": st.sampled_from([1.0, HOUR_S]),
            "calendar": st.sampled_from([(), ("day",), ("day", "week", "year")]),
            "spacing": st.sampled_from(["grid", "gap"]),
            "late": st.sampled_from(["drop", "reject", "step"]),
        }
    )
    return st.builds(
        lambda timed, **given: Head(FLOW, **given, **timed),
        timed=st.one_of(st.just({}), timed),
        others=st.sampled_from([(), (Feature("rain", "mm", 1.0, 0.5), Feature("level"))]),
        horizon=st.integers(1, 5),
        quantiles=st.sampled_from([(0.5,), (0.1, 0.5, 0.9), (0.05, 0.2, 0.5, 0.8, 0.95)]),
        missing=st.sampled_from(["reject", "skip", "hold", "predict"]),
        warm_up=st.sampled_from([0, 5, 20]),
    )


def readings(head: Head, seed: int, rows: int, *, refusable: bool = False) -> Array:
    """Random readings, hostile in what a head takes; what its policies refuse only if asked."""
    rng = np.random.default_rng(seed)
    values = FLOW.mean + FLOW.std * rng.standard_normal((rows, 1 + len(head.others)))
    values *= rng.choice([1.0, 1.0, 1.0, 1e3, 1e12, 0.0], (rows, 1))
    if refusable or head.missing != "reject":
        values[rng.random(values.shape) < 0.15] = np.nan
    if head.time is None:
        return values
    gaps = [1, 1, 1, 1, 1.2, 2, 3.4, 50, 101, 102, 5000]
    if refusable or head.late != "reject":
        gaps += [-5000, -2, -0.5, 0, 0, 0.3, 0.6]
    if head.spacing == "gap":
        gaps += [1e-6]
    return np.column_stack([1.7e9 + np.cumsum(rng.choice(gaps, rows)) * head.step_s, values])
