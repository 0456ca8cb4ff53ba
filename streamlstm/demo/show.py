"""What the demo prints: a live table while it streams, a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamlstm.demo.feeds import HEADLINE, HEADLINE_H
from streamlstm.demo.scores import WAY_BACK_H, alert_score, forecast_errors
from streamlstm.demo.streaming import QUANTILES, Stream
from streamlstm.wording import counted

REFRESH_S = 0.1
BAR = 8  # all columns together fit into 80
PLAIN_LINES = 10  # for each sensor, where the output is not a terminal


class Progress:
    """The streams as they go: a live table on a terminal, else a line now and then."""

    def __init__(self, console: Console, streams: Sequence[Stream]) -> None:
        self._console = console
        self._streams = streams
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.__exit__(kind, error, trace)

    def stepped(self, stream: Stream) -> None:
        """`stream` took a step; show it when it is time to."""
        if self._live:
            now_s = time.monotonic()
            if now_s >= self._next_s:
                self._next_s = now_s + REFRESH_S
                self._live.update(self._table(), refresh=True)
        elif (stream.row * PLAIN_LINES) % len(stream) < PLAIN_LINES:  # a tenth is full
            self._console.print(self._line(stream))

    def _table(self) -> RenderableType:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("\nsensor")
        table.add_column("hour\nof its data", min_width=16)
        for title in ("\nreading", f"said\n{HEADLINE_H} h ago", f"\nin {HEADLINE_H} h"):
            table.add_column(title, justify="right", min_width=7)
        table.add_column("\nalerts", justify="right")
        table.add_column("\nstreamed", min_width=BAR)
        for stream in self._streams:
            hour, *numbers, ahead = _now(stream)
            alerts = Text(f"{stream.alerted.sum()}", style="red")
            bar = ProgressBar(total=len(stream), completed=stream.row, width=BAR)
            table.add_row(
                stream.sensor.name, hour, *numbers, Text(ahead, style="bold"), alerts, bar
            )
        return table

    def _line(self, stream: Stream) -> str:
        hour, reading, said, ahead = _now(stream)
        return (
            f"{stream.row / len(stream):4.0%}  {stream.sensor.name}  {hour}  {reading} "
            f"{stream.sensor.unit} (said {HEADLINE_H} h ago: {said}), in {HEADLINE_H} h: {ahead}; "
            f"{counted(int(stream.alerted.sum()), 'alert')} so far"
        )


def _now(stream: Stream) -> tuple[str, str, str, str]:
    """The last event: its hour, its reading, the forecast there was of it, the new forecast."""
    row, number = stream.row - 1, stream.sensor.number
    if row < 0:
        return "-", "-", "-", "-"
    return (
        f"{stream.series.times[row]:%Y-%m-%d %H:%M}",
        number(float(stream.series.values[row])),
        number(float(stream.said(HEADLINE)[row, QUANTILES // 2])),
        number(float(stream.medians[row, HEADLINE])),
    )


def summary(console: Console, streams: Sequence[Stream], took_s: float) -> None:
    """How fast it was, how good the forecasts were, what was unusual."""
    _show_speed(console, streams, took_s)
    for stream in streams:
        _show_forecasts(console, stream)
    for stream in streams:
        _show_alerts(console, stream)


def _show_speed(console: Console, streams: Sequence[Stream], took_s: float) -> None:
    trips_ms = 1e3 * np.concatenate([stream.round_trips_s for stream in streams])
    p50, p99 = np.percentile(trips_ms, [50, 99])
    console.print()
    console.print(
        f"[bold]{len(trips_ms):,} events[/] in {took_s:.1f} s, one after the other, each with a "
        f"forecast: [bold]{len(trips_ms) / took_s:,.0f} steps/s[/].\n"
        f"Round trip (client, broker, LSTM step and back): p50 {p50:.2f} ms, p99 {p99:.2f} ms.",
    )


def _show_forecasts(console: Console, stream: Stream) -> None:
    sensor = stream.sensor
    console.print()
    first_unseen = stream.series.row_of(sensor.unseen_from)
    errors = forecast_errors(stream.series, stream.medians, first_unseen)
    if not errors:
        console.print(
            f"[bold]{sensor.name}[/]: no forecast to judge yet; they are judged on the rows not "
            f"used in training, from {sensor.unseen_from:%Y-%m-%d} on.",
        )
        return
    console.print(
        f"[bold]{sensor.name}[/]: mean absolute error in {sensor.unit}, "
        "on rows not used in training"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("hours\nahead", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("LSTM", justify="right", style="bold")
    for title in ("repeat\nlast value", "same hour\nyesterday", "same hour\nlast week"):
        table.add_column(title, justify="right")
    table.add_column("LSTM beats\nall three")
    for e in errors:
        numbers = [sensor.number(error) for error in (e.model, *e.rivals.values())]
        verdict = Text("no", style="yellow") if e.lost_to else Text("yes", style="green")
        table.add_row(str(e.hours), f"{e.rows:,}", *numbers, verdict)
    console.print(table)
    for e in errors:
        for rival in e.lost_to:
            console.print(f"{e.hours} h ahead the LSTM does not beat '{rival}'.")


def _show_alerts(console: Console, stream: Stream) -> None:
    sensor = stream.sensor
    begun = tuple(e for e in sensor.events if e.first <= stream.series.times[-1])
    score = alert_score(stream.series, stream.alerted, begun)
    console.print()
    total = (
        f"[bold]{sensor.name}[/]: {stream.alerted.sum()} of {stream.row:,} readings with an alert"
    )
    if not sensor.events:
        console.print(f"{total}; its source lists no events to compare them with.")
        return
    console.print(
        f"{total}; {sum(score.found)} of {len(begun)} known events found, "
        f"{score.false_alerts} of the alerts neither in one nor up to {WAY_BACK_H} h after.",
    )
    for event, found in zip(begun, score.found, strict=True):
        rows = "trained on" if event.first < sensor.unseen_from else "not trained on"
        mark = "[green]found [/]" if found else "[yellow]missed[/]"
        when = f"{event.first:%Y-%m-%d %H:%M}" + (
            f" to {event.last:%m-%d %H:%M}" if event.last > event.first else ""
        )
        console.print(f"  {mark}  {event.what}, {when} (in rows {rows})")
