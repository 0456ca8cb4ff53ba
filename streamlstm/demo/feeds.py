"""The demo's sensors: where they stand, and their series.

Where the series come from, under which licence, and how the hours of the known events
were found: data/CREDITS.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm import csv_events

Array = NDArray[Any]

DATA = Path(__file__).parent / "data"
HORIZONS_H = (1, 3, 6, 12, 24)  # that are judged; the models forecast all up to the last
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

    name: the session's and the model's name. quantity: its column. digits: decimals worth
    showing. Rows from `unseen_from` on were not used in training.
    """

    name: str
    what: str
    quantity: str
    unit: str
    digits: int
    file: str
    unseen_from: datetime
    events: tuple[KnownEvent, ...] = ()

    @property
    def model_path(self) -> Path:
        return DATA / f"{self.name}.safetensors"

    def number(self, value: float) -> str:
        """A reading, a forecast or an error as people write it; a dash for NaN."""
        return "-" if math.isnan(value) else f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Series:
    """Readings in the order of time: times [T] and values [T]; a missing hour is no row."""

    times: tuple[datetime, ...]
    values: Array

    @cached_property
    def hours(self) -> Array:
        """Each row's hour as one running number, int64 [T]; a naive time counts as UTC."""
        return np.array([hour(time) for time in self.times])

    def at(self, hours_ahead: int, column: Array | None = None) -> Array:
        """What was read `hours_ahead` (negative: ago) of each row, [T]; NaN where there is no row.

        column [T, ...]: of this, in place of the readings.
        """
        of = self.values if column is None else column
        wanted = self.hours + hours_ahead
        rows = np.searchsorted(self.hours, wanted).clip(max=len(self.hours) - 1)
        there = self.hours[rows] == wanted
        found = np.full(of.shape, np.nan)
        found[there] = of[rows[there]]
        return found

    def row_of(self, time: datetime) -> int:
        """Number of the first row at or after `time`."""
        return sum(t < time for t in self.times)

    def first(self, rows: int | None) -> Series:
        """The first `rows` rows; None for all."""
        return Series(self.times[:rows], self.values[:rows])


def read(sensor: Sensor) -> Series:
    """The series of `sensor` that comes with the package. Raises OSError."""
    with csv_events.open_csv(str(DATA / sensor.file)) as source:
        _header, *rows = (cells for _, cells in csv_events.table(source))
    times = tuple(datetime.fromisoformat(time) for time, _ in rows)
    return Series(times, np.array([float(value) for _, value in rows]))


def hour(time: datetime) -> int:
    """A time as a running hour; a naive one counts as UTC."""
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()) // 3600


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
)
SENSORS = (WATER_FLOW, TRAFFIC)
