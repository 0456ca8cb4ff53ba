"""Watching series: each row through the session of its series, with what was forecast for it.

Every row is stepped once, in order, and what was forecast for it is written down before it comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from streamlstm.engine import Session
from streamlstm.head import AHEAD_MAX, Head, Report

REFUSED: Final = Report((), 0.0, False, "", "refused", False)


NOTHING: Final = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """One row, and what was said of it.

    time: as the file has it, "" where there is none. reading: [time?, target, others...].
    expected: lowest quantile, median and highest of what was forecast for it before it came.
    """

    series: str
    line: int
    time: str
    reading: list[float]
    value: float
    expected: tuple[float, float, float] = NOTHING
    report: Report = REFUSED

    def cells(self, columns: Sequence[str]) -> dict[str, Any]:
        """The columns of the file of scores; None where there is no number."""
        low, median, high = map(_number, self.expected)
        report = self.report
        cells = {
            "series": self.series,
            "line": self.line,
            "time": self.time,
            "value": None if math.isnan(self.value) else self.value,
            "low": low,
            "median": median,
            "high": high,
            "score": _number(report.score),
            "alert": report.alert,
            "reason": report.reason,
            "status": report.status,
            "warming": report.warming,
        }
        return {column: cells[column] for column in columns}


@dataclass
class Watched:
    """One series: its session, its last step and value, and its rows where they are wanted."""

    session: Session
    head: Head
    last_s: float = math.nan
    last: float = math.nan
    begun: bool = False
    next: tuple[float, float, float] = NOTHING
    rows: list[Row] = field(default_factory=list)
    _seen_until_s: float = -math.inf

    def __post_init__(self) -> None:
        """A session that was stepped before goes on from what it remembers."""
        last = self.head.last_reading(self.session.state().numbers)
        if last is not None:
            self.begun, (self.last_s, self.last) = True, last
            self.next = band(self.session.forecast(1)[0].tolist())
            self._seen_until_s = self.last_s

    def was_stepped(self, row: Row) -> bool:
        """Whether a row was stepped before the session was taken up again: as long as none came
        that is newer than what it remembers. Where rows have no time, none is known to be."""
        if self.head.time is None or row.reading[0] > self._seen_until_s:
            self._seen_until_s = -math.inf
        return row.reading[0] <= self._seen_until_s

    def step(self, row: Row) -> Row:
        """The row, with what was forecast for it and what came of it. Raises InputError."""
        expected = self._expected(row.reading)
        report = self.head.report(self.session.step(row.reading).tolist())
        if report.status in ("stepped", "held", "predicted"):
            self.begun, self.last_s = True, row.reading[0]
            self.next = band(report.forecast)
        if report.status == "stepped":
            self.last = row.value
        return replace(row, expected=expected, report=report)

    def _expected(self, reading: list[float]) -> tuple[float, float, float]:
        """What the session forecasts for the step that a reading is of."""
        steps = 1
        if self.head.time is not None and self.head.spacing == "grid" and self.begun:
            steps = math.floor((reading[0] - self.last_s) / self.head.step_s + 0.5)
            if steps < 1 and self.head.late == "step":
                steps = 1
        if not self.begun or not 1 <= steps <= AHEAD_MAX:
            return NOTHING
        return self.next if steps == 1 else band(self.session.forecast(steps)[-1].tolist())


def band(quantiles: Sequence[float]) -> tuple[float, float, float]:
    return float(quantiles[0]), float(quantiles[len(quantiles) // 2]), float(quantiles[-1])


def _number(x: float) -> float | None:
    """Seven digits of it: forecasts and scores have no more."""
    return None if math.isnan(x) else float(f"{x:.7g}")


@dataclass
class Judged:
    """Forecasts of the next row, of rows that training has not seen."""

    rows: int = 0
    off: float = 0.0
    last_off: float = 0.0
    inside: int = 0

    def judge(self, row: Row, last: float) -> None:
        """last: the value before the row."""
        low, median, high = row.expected
        self.rows += 1
        self.off += abs(row.value - median)
        self.last_off += abs(row.value - last)
        self.inside += low <= row.value <= high

    def __str__(self) -> str:
        off, last_off = self.off / self.rows, self.last_off / self.rows
        return (
            f"off by {off:.3g} on average (the last value: {last_off:.3g}), "
            f"{self.inside / self.rows:.0%} of the values between low and high"
        )
