"""The demo's picture: series, forecasts, alerts and errors, as one SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from streamlstm import plot
from streamlstm.demo.feeds import HEADLINE, HEADLINE_H, HORIZONS_H, hour
from streamlstm.demo.scores import RIVALS, forecast_errors
from streamlstm.demo.streaming import Stream
from streamlstm.plot import FORECAST, MUTED

CLOSE_UP_H = 10 * 24
EVENT, EVENT_NAME = "#fde68a", "#92400e"
RIVAL_COLORS = ("#9ca3af", "#14b8a6", "#8b5cf6")


def draw(streams: Sequence[Stream], path: Path) -> None:
    """Write the picture of all streams to `path`. Raises OSError."""
    with mpl.rc_context(plot.STYLE):
        figure = Figure(figsize=(12, 2.9 * len(streams) + 3.6), layout="constrained")
        rows = figure.add_gridspec(
            len(streams) + 1, len(streams), height_ratios=[1.0] * len(streams) + [0.95]
        )
        figure.suptitle(
            "streamlstm demo: forecasts, one event at a time",
            x=0.012,
            ha="left",
            fontsize=13,
            fontweight="bold",
        )
        for k, stream in enumerate(streams):
            _draw_readings(figure, rows[k, :], stream)
        plot.legend(figure, figure.axes, "upper right")
        errors = [figure.add_subplot(rows[-1, k]) for k in range(len(streams))]
        for axes, stream in zip(errors, streams, strict=True):
            _draw_errors(axes, stream)
        plot.legend(figure, errors, "outside lower left")
        plot.save(figure, path)


def _draw_readings(figure: Figure, place: Any, stream: Stream) -> None:
    """With known events: the whole series, and a close-up of ordinary days; else its end."""
    sensor, hours = stream.sensor, stream.series.hours
    if not sensor.events:
        axes = figure.add_subplot(place)
        _draw_series(axes, stream, max(hours[0], hours[-1] - CLOSE_UP_H), hours[-1])
        axes.set_title(f"{sensor.what}: its last days", pad=8)
        return
    parts = place.subgridspec(1, 2, width_ratios=[2.6, 1.0])
    axes = figure.add_subplot(parts[0])
    _draw_series(axes, stream, hours[0], hours[-1])
    _mark_events(axes, stream)
    axes.set_title(sensor.what, pad=16)
    begin = min(hour(sensor.events[-1].last) + 24, max(hours[0], hours[-1] - CLOSE_UP_H))
    axes = figure.add_subplot(parts[1])
    _draw_series(axes, stream, begin, begin + CLOSE_UP_H)
    axes.set_title("Close-up", pad=16)


def _draw_series(axes: Any, stream: Stream, begin: int, end: int) -> None:
    """Readings of the hours `begin` to `end`, what was said of them HEADLINE_H before, alerts."""
    hours = stream.series.hours
    shown = (hours >= begin) & (hours <= end)
    columns = stream.series.values[shown], stream.said(HEADLINE)[shown]
    at, readings, said = plot.broken(3600.0 * hours[shown], *columns)
    plot.readings(axes, plot.time(at), readings, said, f"forecast of it, {HEADLINE_H} h before")
    odd = shown & stream.alerted
    plot.alerts(axes, _time(hours[odd]), stream.series.values[odd])
    axes.set_ylabel(stream.sensor.unit)


def _mark_events(axes: Any, stream: Stream) -> None:
    """Bands where the known events are, and a line where the rows not trained on begin."""
    hours = stream.series.hours
    for event in stream.sensor.events:
        first, last = hour(event.first), hour(event.last)
        if first <= hours[-1]:
            axes.axvspan(_time(first - 2), _time(last + 2), color=EVENT, lw=0, zorder=0.5)
            axes.annotate(
                event.what,
                (_time((first + last) // 2), 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=EVENT_NAME,
                fontsize=8,
            )
    first_unseen = hour(stream.sensor.unseen_from)
    if first_unseen <= hours[-1]:
        axes.axvline(_time(first_unseen), color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.annotate(
            "not used in training →",
            (_time(first_unseen), 0.04),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            color=MUTED,
            fontsize=8,
        )


def _draw_errors(axes: Any, stream: Stream) -> None:
    """The error against the hours ahead, of the LSTM and its naive rivals."""
    sensor = stream.sensor
    first_unseen = stream.series.row_of(sensor.unseen_from)
    errors = forecast_errors(stream.series, stream.medians, first_unseen)
    axes.set_title(f"{sensor.name}: mean absolute error on rows not used in training")
    if not errors:
        axes.text(0.5, 0.5, "no such rows yet", ha="center", color=MUTED, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    at = [HORIZONS_H.index(e.hours) for e in errors]
    for name, color in zip(RIVALS, RIVAL_COLORS, strict=True):
        values = [e.rivals[name] for e in errors]
        axes.plot(at, values, color=color, lw=1.4, marker="o", ms=3, label=name)
    axes.plot(
        at, [e.model for e in errors], color=FORECAST, lw=2.2, marker="o", ms=4.5, label="LSTM"
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(HORIZONS_H)), [f"{hours} h" for hours in HORIZONS_H])
    axes.set_xlabel("hours ahead")
    axes.set_ylabel(f"{sensor.unit}, log scale")
    axes.margins(y=0.12)


def _time(hours: Any) -> Any:
    """Running hours as what matplotlib draws."""
    return plot.time(3600.0 * np.asarray(hours))
