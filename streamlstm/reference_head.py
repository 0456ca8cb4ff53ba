"""What a head does to readings, in plain Python: the definition, and the oracle of the tests.

head.py says what it means; this says what it computes, one session at a time. The network is
reference.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm import head as h
from streamlstm.feature import Feature
from streamlstm.head import Head

Vector = NDArray[np.float64]
Network = Callable[[Vector], Vector]  # a step: inputs -> outputs, its state its own


@dataclass
class Range:
    """The values seen so far, slowly forgotten."""

    low: float
    high: float

    def learn(self, x: float) -> float:
        """How far x is outside, in widths of the range; which then takes it in."""
        width = max(self.high - self.low, 1e-9 * max(abs(self.low), abs(self.high)), 1e-12)
        outside = max(x - self.high, self.low - x, 0.0) / width
        low, high = min(self.low, x), max(self.high, x)
        self.low, self.high = low + h.FORGET * (x - low), high - h.FORGET * (high - x)
        return outside


@dataclass
class Scorer:
    """How far a reading is outside of what was seen: value, level and drift."""

    level: float = 0.0
    drift: float = 0.0
    ranges: list[Range] = field(default_factory=list)
    scored: int = 0
    peak: float = 0.0
    age: int = 0

    def score(self, z: float, a: float, forecast: float, warming: bool) -> tuple[float, int]:
        """Score in [0, 1] and reason (its sign: above or below) of a value; then learn from it."""
        gain = max(1 / h.SMOOTHING, 1 / (self.scored + 1))
        self.level += gain * (a - self.level)
        self.drift += gain * (a - forecast - self.drift)
        statistics = (z, self.level, self.drift)
        worst, reason = 0.0, 0
        if not self.scored:
            self.ranges = [Range(x, x) for x in statistics]
        else:
            weights = (1.0, 1.0, h.FORECAST_WEIGHT)
            for k, (x, weight) in enumerate(zip(statistics, weights, strict=True)):
                above = x > self.ranges[k].high
                outside = weight * self.ranges[k].learn(x)
                if outside > worst:
                    worst, reason = outside, (k + 1 if above else -k - 1)
        self.scored += 1
        self.age += 1
        if self.age > h.QUIET:
            self.peak = 0.0
        score = 0.0
        if worst > self.peak:
            self.peak, self.age, score = min(worst, 1e15), 0, worst / (worst + h.HALF)
        if warming:
            self.peak = 0.0
        return score, reason if score else 0


class Stream:
    """One session's readings. network: a step of the model's layers, from its initial state."""

    def __init__(self, head: Head, network: Network) -> None:
        self.head = head
        self.network = network
        self.steps = 0
        self.time_s = 0.0
        self.read_s = 0.0
        self.a = 0.0
        self.z = 0.0
        self.others = np.zeros(len(head.others))
        self.said = np.zeros((head.horizon, len(head.quantiles)))
        self.late_run = 0
        self.counts = dict.fromkeys(h.COUNTERS, 0)
        self.scorer = Scorer()

    def read(self, reading: ArrayLike) -> Vector:
        """One reading [readings] -> [outputs]. Raises InputError where a policy refuses it."""
        x = np.asarray(reading, dtype=float)
        time_s, values = (math.nan, x) if self.head.time is None else (float(x[0]), x[1:])
        score, reason, status = self._read(time_s, values)
        warming = self.scorer.scored <= self.head.warm_up
        alert = score >= h.ALERT and not warming
        code = h.STATUS.index(status)
        return np.array([*self._units(self._ahead(0)), score, alert, reason, code, warming])

    def _read(self, time_s: float, values: Vector) -> tuple[float, int, str]:
        fills = self.head.missing in ("hold", "predict")
        lacks = bool(np.isnan(values[:1] if fills else values).any())
        where, grid, log_gap = self._place(time_s)
        if lacks and self.head.missing == "reject":
            self._refuse(time_s, values)
        if where != "stepped":
            if self.head.late == "reject":
                self._refuse(time_s, values)
            self.counts[where] += 1
            believed = where == "late" and self.late_run >= h.LATE_MAX
            if self.head.late == "drop" and not believed:
                self.late_run += where == "late"
                return 0.0, 0, where
        self.counts["missing"] += bool(np.isnan(values).any())
        if lacks and (not fills or not self.steps):
            self.counts["skipped"] += 1
            return 0.0, 0, "skipped"
        self.late_run = 0
        self.counts["gaps"] += grid > 1 or (self.head.spacing == "gap" and log_gap > math.log(1.5))
        if fills and 1 < grid <= h.FILL_MAX + 1:
            for _ in range(grid - 1):
                self._step(self._guess(), self.time_s + self.head.step_s, 0.0)
            grid = 1
        moved_to = self._moved_to(time_s, grid)
        self.read_s = time_s
        if lacks:
            a = self._guess()
            self._keep_others(values[1:])
            self._step(a, moved_to, log_gap)
            return 0.0, 0, "held" if self.head.missing == "hold" else "predicted"
        score, reason = self._score(values[0], max(grid, 1))
        _, a = self._scaled(values[0], self.head.target)
        self._keep_others(values[1:])
        self._step(a, moved_to, log_gap)
        return score, reason, "stepped"

    def _score(self, value: float, grid: int) -> tuple[float, int]:
        z, a = self._scaled(value, self.head.target)
        forecast = self._ahead(min(grid, self.head.horizon) - 1) if self.steps else np.array([a])
        warming = self.scorer.scored < self.head.warm_up
        unchanged = self.steps and z == self.z
        self.counts["unchanged"] = self.counts["unchanged"] + 1 if unchanged else 0
        self.z = z
        return self.scorer.score(z, a, float(np.median(forecast)), warming)

    def _keep_others(self, values: Vector) -> None:
        for k, (value, feature) in enumerate(zip(values, self.head.others, strict=True)):
            if not math.isnan(value):
                self.others[k] = self._scaled(float(value), feature)[1]

    def _moved_to(self, time_s: float, grid: int) -> float:
        """The time of a step, which the next is measured from."""
        if self.head.spacing == "gap" or not grid:
            return time_s
        on_grid = self.time_s + grid * self.head.step_s
        return on_grid + h.PULL * (time_s - on_grid)

    def _place(self, time_s: float) -> tuple[str, int, float]:
        """How a reading is late or "stepped", its steps on the grid (0: the grid begins with it),
        the log of its gap."""
        if self.head.time is None or not self.steps:
            return "stepped", 0, 0.0
        if time_s <= self.read_s:
            return "late" if time_s < self.read_s else "repeated", 0, 0.0
        steps = (time_s - self.time_s) / self.head.step_s
        if self.head.spacing == "gap":
            return "stepped", 1, min(max(math.log(steps), -7.0), 14.0)
        grid = math.floor(steps + 0.5)
        return ("stepped", grid, 0.0) if grid >= 1 else ("early", 0, 0.0)

    def _guess(self) -> float:
        """What a step is fed in place of a missing value; counted."""
        if self.head.missing == "hold":
            self.counts["held"] += 1
            return self.a
        self.counts["predicted"] += 1
        return float(np.median(self._ahead(0)))

    def _step(self, a: float, time_s: float, log_gap: float) -> None:
        self.time_s = time_s
        cycles = []
        for cycle in self.head.calendar:
            period_s, offset_s = h.CYCLES[cycle]
            phase = 2 * math.pi * ((time_s + offset_s) / period_s % 1.0)
            cycles += [math.sin(phase), math.cos(phase)]
        gap = [log_gap] if self.head.spacing == "gap" else []
        change = a - self.a if self.steps else 0.0
        x = np.array([a, change, *self.others, *cycles, *gap])
        self.a = a
        self.steps += 1
        said = np.clip(self.network(x), -2 * h.LARGEST_A, 2 * h.LARGEST_A)
        self.said = np.sort(said.reshape(self.said.shape), axis=1)

    def _scaled(self, value: float, feature: Feature) -> tuple[float, float]:
        z = (value - feature.mean) * (1 / feature.std)
        return z, math.asinh(z)

    def _ahead(self, k: int) -> Vector:
        """Quantiles of a, k + 1 steps ahead."""
        a: Vector = np.clip(self.a + self.said[k], -h.LARGEST_A, h.LARGEST_A)
        return a

    def _units(self, a: Vector) -> Vector:
        values: Vector = self.head.target.mean + self.head.target.std * np.sinh(a)
        return values

    def forecast(self, steps: int) -> Vector:
        """[steps, quantiles] in the target's unit. A stream that forecast is used up: it went on
        beyond the horizon as if its medians had been read."""
        middle, horizon = len(self.head.quantiles) // 2, self.head.horizon
        side = np.sign(np.arange(len(self.head.quantiles)) - middle)
        out: list[Vector] = []
        for k in range(steps):
            if k < horizon:
                out.append(self._ahead(k))
                continue
            fed = out[k - horizon]
            self._step(float(fed[middle]), self.time_s + self.head.step_s, 0.0)
            own = self._ahead(horizon - 1)
            spread = np.hypot(own - own[middle], fed - fed[middle])
            out.append(np.clip(own[middle] + side * spread, -h.LARGEST_A, h.LARGEST_A))
        return np.array([self._units(a) for a in out])

    def _refuse(self, time_s: float, values: Vector) -> Any:
        time = () if self.head.time is None else (time_s,)
        names = [f.name for f in self.head.inputs]
        raise h.refusal(0, dict(zip(names, [*time, *values], strict=True)), self.head)
