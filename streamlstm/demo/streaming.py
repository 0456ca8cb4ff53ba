"""One sensor's series, event by event, through its session on the server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from streamlstm.demo.feeds import HORIZONS_H, Array, Sensor, Series
from streamlstm.service.client.client import RemoteSession

QUANTILES = 3


class Stream:
    """Steps a session through a series and keeps what came of it.

    forecasts [T, horizons, QUANTILES] float64, NaN where not there yet; alerted [T] bool;
    round_trips_s: seconds from sending an event to having its answer, [row].
    """

    def __init__(self, sensor: Sensor, series: Series, session: RemoteSession) -> None:
        self.sensor = sensor
        self.series = series
        self.session = session
        self.forecasts = np.full((len(series.values), len(HORIZONS_H), QUANTILES), np.nan)
        self.alerted = np.zeros(len(series.values), dtype=bool)
        self.round_trips_s: list[float] = []

    def __len__(self) -> int:
        return len(self.series.values)

    @property
    def row(self) -> int:
        """Rows streamed so far."""
        return len(self.round_trips_s)

    @property
    def medians(self) -> Array:
        """The forecasts' medians, [T, horizons]."""
        return self.forecasts[:, :, QUANTILES // 2]

    def step(self) -> None:
        """Send the next row as one event; keep what is forecast now, and whether it is odd."""
        row = self.row
        reading = [3600.0 * self.series.hours[row], self.series.values[row]]
        sent_s = time.perf_counter()
        y = self.session.step(reading)
        self.round_trips_s.append(time.perf_counter() - sent_s)
        head = self.session.model.head
        assert head is not None
        self.alerted[row] = head.report(y.tolist()).alert
        self.forecasts[row] = self.session.forecast(HORIZONS_H[-1])[np.array(HORIZONS_H) - 1]

    def said(self, horizon: int) -> Array:
        """What was forecast for each row, HORIZONS_H[horizon] hours before it, [T, QUANTILES]; NaN
        if nothing."""
        return self.series.at(-HORIZONS_H[horizon], self.forecasts[:, horizon])


def interleaved(streams: Sequence[Stream]) -> Iterator[Stream]:
    """Each stream once for each of its rows, so spread that all end together."""
    turns = sorted((row / len(s), k) for k, s in enumerate(streams) for row in range(len(s)))
    return (streams[k] for _, k in turns)
