"""The demo's sensors: where they stand, their series, and what a model is told of an event.

Where the series come from, under which licence, and how the hours of the known events
were found: data/CREDITS.md.
"""

from __future__ import annotations

import csv
import gzip
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DATA = Path(__file__).parent / "data"
HORIZONS_H = (1, 3, 6, 12, 24)
HEADLINE = 2  # index of the one that is shown when there is room for one
HEADLINE_H = HORIZONS_H[HEADLINE]


@dataclass(frozen=True)
class KnownEvent:
    """Something that happened at a sensor, as its source tells it; both ends belong to it."""

    what: str
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Sensor:
    """One sensor: an hourly series, and the model that forecasts it.

    name: the session's and the model's name. digits: decimals worth showing. Rows from
    `unseen_from` on were not used in training. weekly: the model is told the hour of the
    week beside the hour of the day.
    """

    name: str
    what: str
    quantity: str
    unit: str
    digits: int
    file: str
    unseen_from: datetime
    weekly: bool
    events: tuple[KnownEvent, ...] = ()

    @property
    def model_path(self) -> Path:
        return DATA / f"{self.name}.safetensors"

    @property
    def input_names(self) -> tuple[str, ...]:
        calendar = ("hour_sin", "hour_cos", "week_sin", "week_cos")
        return (self.quantity, *calendar[: 4 if self.weekly else 2])

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"{self.quantity}_in_{hours}h" for hours in HORIZONS_H)

    def number(self, value: float) -> str:
        """A reading, a forecast or an error as people write it; a dash for NaN."""
        return "-" if math.isnan(value) else f"{value:,.{self.digits}f}"

    def inputs(self, time: datetime, value: float) -> list[float]:
        """One event as the model's inputs: the reading, and where its hour stands on the
        clock (on a circle, so that 23 h and 0 h are neighbours)."""
        day = 2 * math.pi * (time.hour + time.minute / 60) / 24
        week = (2 * math.pi * time.weekday() + day) / 7
        circles = [math.sin(day), math.cos(day), math.sin(week), math.cos(week)]
        return [value, *circles[: 4 if self.weekly else 2]]


@dataclass(frozen=True)
class Series:
    """Readings in the order of time: times [T] and values [T]; a missing hour is no row."""

    times: tuple[datetime, ...]
    values: Array

    @cached_property
    def hours(self) -> Array:
        """Each row's hour as one running number, int64 [T]; a naive time counts as UTC."""
        stamps = [(t if t.tzinfo else t.replace(tzinfo=UTC)).timestamp() for t in self.times]
        return np.array(stamps, dtype=np.int64) // 3600

    def at(self, hours_ahead: int) -> Array:
        """The reading `hours_ahead` (negative: ago) of each row, [T]; NaN where there is none."""
        known = dict(zip(self.hours.tolist(), self.values.tolist(), strict=True))
        return np.array([known.get(hour + hours_ahead, np.nan) for hour in self.hours.tolist()])

    def row_of(self, time: datetime) -> int:
        """Number of the first row at or after `time`."""
        return sum(t < time for t in self.times)

    def first(self, rows: int | None) -> Series:
        """The first `rows` rows; None for all."""
        return Series(self.times[:rows], self.values[:rows])


def read(sensor: Sensor) -> Series:
    """The series of `sensor` that comes with the package. Raises OSError."""
    path = DATA / sensor.file
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = list(csv.reader(text.decode().splitlines()))[1:]
    times = tuple(datetime.fromisoformat(time) for time, _ in rows)
    return Series(times, np.array([float(value) for _, value in rows]))


def _event(what: str, first: str, last: str) -> KnownEvent:
    return KnownEvent(what, datetime.fromisoformat(first), datetime.fromisoformat(last))


WATER_FLOW = Sensor(
    name="water-flow",
    what="Water flow in a branch of a pipeline, Italy, spring 2022",
    quantity="flow",
    unit="l/s",
    digits=2,
    file="water_flow.csv",
    unseen_from=datetime.fromisoformat("2022-04-17T00:00+02:00"),
    weekly=False,  # four weeks of training rows are too few to learn a week
    events=(
        _event("low flow", "2022-03-24T08:00+01:00", "2022-03-25T01:00+01:00"),
        _event("low flow", "2022-03-29T07:00+02:00", "2022-03-29T20:00+02:00"),
        _event("peak", "2022-04-03T06:00+02:00", "2022-04-03T06:00+02:00"),
        _event("low flow", "2022-04-27T15:00+02:00", "2022-04-28T06:00+02:00"),
    ),
)
TRAFFIC = Sensor(
    name="traffic",
    what="Traffic on Interstate 94 westbound, Minneapolis-St Paul, 2016-2018",
    quantity="traffic",
    unit="vehicles/h",
    digits=0,
    file="traffic.csv.gz",
    unseen_from=datetime.fromisoformat("2018-04-01T00:00"),
    weekly=True,
)
SENSORS = (WATER_FLOW, TRAFFIC)
