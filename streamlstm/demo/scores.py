"""How good forecasts were beside naive rivals, and alerts beside the known events.

A forecast and its rivals know no reading later than the hour they are made in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamlstm.demo.feeds import HORIZONS_H, Array, KnownEvent, Series, hour

WEEK_H = 168
RIVALS = ("repeat last value", "same hour yesterday", "same hour last week")


@dataclass(frozen=True)
class ForecastErrors:
    """Mean absolute errors of forecasts made `hours` ahead, in the sensor's unit.

    rows: readings forecast; the same for the model and each of its rivals.
    """

    hours: int
    rows: int
    model: float
    rivals: dict[str, float]

    @property
    def lost_to(self) -> list[str]:
        """The naive rivals that were at least as good as the model."""
        return [name for name, error in self.rivals.items() if not self.model < error]


def forecast_errors(series: Series, forecasts: Array, first_row: int) -> list[ForecastErrors]:
    """Scores of `forecasts` [T, horizons], those made in rows from `first_row` on.

    A row counts when its reading-to-be and all that the rivals need are there; a horizon
    without such rows is left out.
    """
    results = []
    for column, hours in enumerate(HORIZONS_H):
        truth = series.at(hours)
        rivals = (series.values, series.at(hours - 24), series.at(hours - WEEK_H))
        table = np.stack([truth, forecasts[:, column], *rivals])[:, first_row:]
        table = table[:, np.isfinite(table).all(axis=0)]
        if not table.size:
            continue
        model, *others = np.abs(table[1:] - table[0]).mean(axis=1).tolist()
        results.append(
            ForecastErrors(hours, table.shape[1], model, dict(zip(RIVALS, others, strict=True)))
        )
    return results


@dataclass(frozen=True)
class AlertScore:
    """Alerts against the known events: found[k] tells whether event k has one."""

    found: tuple[bool, ...]
    false_alerts: int


WAY_BACK_H = 3  # a reading that jumps back to normal still belongs to its event


def alert_score(series: Series, alerted: Array, events: tuple[KnownEvent, ...]) -> AlertScore:
    """Compare `alerted` [T] with `events`; WAY_BACK_H hours after one still belong to it."""
    found, in_an_event = [], np.zeros(len(alerted), dtype=bool)
    for event in events:
        first, last = hour(event.first), hour(event.last)
        rows = (series.hours >= first) & (series.hours <= last + WAY_BACK_H)
        found.append(bool(alerted[rows].any()))
        in_an_event |= rows
    return AlertScore(tuple(found), int((alerted & ~in_an_event).sum()))
