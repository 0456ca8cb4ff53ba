"""Pictures of readings, their forecasts and alerts: SVG, PNG, PDF (by matplotlib: extra [plot])."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from streamlstm.head import ALERT

Array = NDArray[Any]

SERIES_MOST: Final = 8
CLOSE_UP: Final = 240  # rows at the end of a series that are shown again, where it is long
LONG: Final = 4 * CLOSE_UP
GAP: Final = 3.0  # usual distances between rows from which on a line breaks
POINTS_MOST: Final = 20_000  # of a line that is drawn as one; a longer one becomes a bitmap
DPI: Final = 150  # of such
INK, MUTED, FAINT, RULE = "#1f2937", "#6b7280", "#cbd5e1", "#e5e7eb"
READING, FORECAST, ALERTED = "#2563eb", "#ea580c", "#dc2626"
_METADATA: Any = {
    "svg": {"Date": None, "Creator": "streamlstm"},
    "png": {"Software": "streamlstm"},
    "pdf": {"CreationDate": None, "Creator": "streamlstm"},
}
STYLE: Any = {
    "font.size": 9,
    "date.converter": "concise",
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "streamlstm",  # the same picture has the same bytes
}


@dataclass(frozen=True, eq=False)
class Track:
    """One series as it was streamed.

    at [T]: seconds since 1970 where `timed`, else line numbers. step: the model's, as in `at`.
    value [T]: readings, NaN where missing. expected [T, 3]: low, median and high of what was
    forecast for them. score [T], alert [T]. warming [T]: where nothing can alert yet. trained: so
    many of them at the start trained the model. ahead [steps, 3]: forecasts of the steps to come.
    """

    name: str
    unit: str
    timed: bool
    step: float
    at: Array
    value: Array
    expected: Array
    score: Array
    alert: Array
    warming: Array
    trained: int
    ahead: Array

    def last(self, rows: int) -> Track:
        """Its last rows, so many, under a name that says so."""
        names = ("at", "value", "expected", "score", "alert", "warming")
        columns = {name: getattr(self, name)[-rows:] for name in names}
        trained = max(0, self.trained - len(self.at) + rows)
        return replace(self, name=f"its last {rows} rows", trained=trained, **columns)


def detection(tracks: Sequence[Track], path: str | Path) -> None:
    """Series with forecast bands and alerts, scores below, a close-up of the end of long ones.

    SERIES_MOST at most. Raises OSError.
    """
    shown = tracks[:SERIES_MOST]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.2 * len(shown) + 0.6), layout="constrained")
        grid = figure.add_gridspec(len(shown), 1)
        for k, track in enumerate(shown):
            if len(track.at) <= LONG:
                _draw_track(track, grid[k])
                continue
            parts = grid[k].subgridspec(1, 2, width_ratios=[2, 1])
            _draw_track(track, parts[0])
            _draw_track(track.last(CLOSE_UP), parts[1])
        legend(figure, figure.axes, "outside upper right")
        if len(tracks) > len(shown):
            figure.suptitle(f"the first {len(shown)} of {len(tracks):,} series", x=0.01, ha="left")
        save(figure, path)


def legend(figure: Figure, panels: Sequence[Any], loc: Any) -> None:
    """What is drawn in any of the panels, each thing once, in one row."""
    drawn = [axes.get_legend_handles_labels() for axes in panels]
    lines = {name: line for panel in drawn for line, name in zip(*panel, strict=True)}
    figure.legend([*lines.values()], [*lines], loc=loc, ncols=max(1, len(lines)))


def save(figure: Figure, path: str | Path) -> None:
    """Write a picture, in the format of its name's ending, without the date and so on.

    Raises OSError.
    """
    ending = Path(path).suffix.lstrip(".")
    figure.savefig(path, format=ending, dpi=DPI, metadata=_METADATA[ending])


def readings(axes: Any, at: Array, value: Array, said: Array, label: str = "expected") -> None:
    """A line of readings [T] and what was forecast for them [T, 3]: low, median, high."""
    bitmap = {"rasterized": True} if len(at) > POINTS_MOST else {}
    low, median, high = said.T
    band = {"color": FORECAST, "alpha": 0.18, "lw": 0, **bitmap}
    axes.fill_between(at, low, high, label="range of the forecast", **band)
    # The reading lies on what was said of it, so that a long series shows it.
    line = {"color": READING, "zorder": 3, **bitmap}
    axes.plot(at, value, lw=1.1, label="reading", **line)
    there = np.pad(~np.isnan(value), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]  # no line goes there
    axes.plot(at[alone], value[alone], ".", ms=2.5, **line)
    axes.plot(at, median, color=FORECAST, lw=1.6, label=label, **bitmap)
    axes.margins(x=0.01)
    known = value[~np.isnan(value)]
    if known.size and np.ptp(known):  # readings set the scale; a wild band may leave the picture
        margin = 0.25 * np.ptp(known)
        # What is never negative, and comes near zero, is a share of something: its axis has a zero.
        counts = 0 <= known.min() < margin
        axes.set_ylim(0 if counts else known.min() - margin, known.max() + margin)


def alerts(axes: Any, at: Array, value: Array) -> None:
    """Points that stand out."""
    axes.plot(at, value, "o", color=ALERTED, ms=3.6, label="alert", zorder=4)


def broken(at: Array, *columns: Array) -> tuple[Array, ...]:
    """at [T] and columns [T, ...] with a row of NaN in each long gap, so that lines break there."""
    gap = np.diff(at)
    long = 1 + np.flatnonzero(gap > GAP * np.median(gap)) if len(gap) else np.array([], np.int64)
    filled = [np.insert(column, long, np.nan, axis=0) for column in columns]
    return np.insert(at, long, at[long - 1]), *filled


def time(seconds: Any) -> Any:
    """Seconds since 1970 as what matplotlib draws."""
    return (1000 * np.asarray(seconds)).round().astype("datetime64[ms]")


def _draw_track(track: Track, place: Any) -> None:
    above, below = place.subgridspec(2, 1, height_ratios=[3, 1]).subplots(sharex=True)
    x = time if track.timed else np.asarray
    in_order = np.argsort(track.at, kind="stable")
    warming = np.where(track.warming, track.score, np.nan)
    columns = (track.at, track.value, track.expected, track.score, warming)
    at, value, said, score, warming = broken(*(column[in_order] for column in columns))
    readings(above, x(at), value, said)
    alerts(above, x(track.at[track.alert]), track.value[track.alert])
    if len(track.ahead) > 1:
        to_come = track.at[-1] + track.step * np.arange(1, len(track.ahead) + 1)
        low, median, high = track.ahead.T
        above.fill_between(x(to_come), low, high, color=FORECAST, alpha=0.18, lw=0)
        above.plot(x(to_come), median, color=FORECAST, lw=1.4, ls=(0, (3, 2)), label="to come")
    if track.trained:
        for axes in (above, below):
            axes.axvspan(
                *(x(track.at[[0, track.trained - 1]])),
                **{"color": RULE, "alpha": 0.5, "lw": 0, "zorder": 0.5, "label": "trained on"},
            )
    above.set_title(track.name)
    above.set_ylabel(track.unit)
    bitmap = {"rasterized": True} if len(at) > POINTS_MOST else {}
    below.plot(x(at), score, color=INK, lw=1, **bitmap)
    if track.warming.any():
        below.plot(x(at), warming, color=FAINT, lw=1.4, label="warming up: can't alert", **bitmap)
    below.plot(x(track.at[track.alert]), track.score[track.alert], "o", color=ALERTED, ms=3.6)
    below.axhline(ALERT, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    below.margins(x=0.01)
    below.set(ylim=(0, 1.05), ylabel="score", xlabel="UTC" if track.timed else "line")
