"""What streaming a series makes of it, and the head that reads it: scaling, step and calendar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from streamlstm.core.head import CompiledHead, unroll
from streamlstm.errors import InputError
from streamlstm.feature import Feature
from streamlstm.head import CYCLES, Cycle, Head, Late, Missing, Spacing
from streamlstm.readings import Series
from streamlstm.wording import counted

Array = NDArray[Any]

UNSEEN: Final = 0.15  # of a series' rows, at its end
HELD_OUT: Final = 0.25  # of the other rows, at their end: these tell when to stop training
HELD_OUT_MOST: Final = 1000  # rows; the latest ones are too good to stay untrained
ROWS_LEAST: Final = 40  # seen ones of the longest series
DROPPED_MOST: Final = 0.2  # of the rows, before their order is not that of time
FINE: Final = 1e-6  # std of a column, as a share of its mean
ROUNDING: Final = 16 * float(np.finfo(np.float64).eps)  # of a constant that was computed
LONGEST_STEP: Final = 1 / 4  # of a cycle that is worth knowing
# That a series must have seen. Told of the week, a network of six weeks learned these by heart.
CYCLES_LEAST: Final[dict[Cycle, int]] = {"day": 2, "week": 8, "year": 3}


def head_for(
    series: Sequence[Series],
    target: str,
    *,
    others: Sequence[str] = (),
    time: str | None = None,
    units: str = "",
    step_s: float | None = None,
    spacing: Spacing = "grid",
    calendar: Sequence[Cycle] | None = None,
    horizon: int = 1,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    missing: Missing = "hold",
    late: Late = "drop",
    unseen: float = UNSEEN,
) -> Head:
    """A head for these series, knowing nothing of the last share `unseen` of their rows.

    target, others, time: the columns' names; time as the series have it by default. units: of the
    target. Mean and std are those of all values, step_s is the median gap between rows, and
    calendar the cycles that the longest series has seen a few times, where these are not given.
    Raises InputError: a column without values, rows without time. Raises ModelError as Head does.
    """
    seen = [s.first(len(s) - unseen_rows(s, unseen)) for s in series]
    if not sum(map(len, seen)):
        raise InputError("there are no rows to train on")
    timed = all(s.times is not None for s in series)
    if not timed and (time is not None or calendar or spacing == "gap"):
        raise InputError("there is no column of times, which calendar and gaps need; name it")
    values = np.concatenate([s.values for s in seen])
    names = (target, *others)
    if values.shape[1] != len(names):
        raise InputError(f"readings have {values.shape[1]} columns, but {len(names)} names came")
    features = [
        _feature(name, units if name == target else "", column)
        for name, column in zip(names, values.T, strict=True)
    ]
    if timed:
        step_s = step_s or _step_s(seen)
        calendar = _calendar(seen, step_s) if calendar is None else calendar
    return Head(
        target=features[0],
        others=tuple(features[1:]),
        time=(time or series[0].time or "time") if timed else None,
        step_s=step_s or 1.0,
        horizon=horizon,
        quantiles=tuple(quantiles),
        calendar=tuple(calendar or ()),
        spacing=spacing,
        missing=missing,
        late=late,
    )


def unseen_rows(series: Series, unseen: float) -> int:
    """How many rows at the end of a series are not for training."""
    return round(unseen * len(series))


def _feature(name: str, unit: str, values: Array) -> Feature:
    """Mean and std of the values that there are."""
    known = values[~np.isnan(values)]
    if not known.size:
        raise InputError(f"column {name} has no value in the rows to train on")
    mean, std = float(known.mean()), float(known.std())
    if std < FINE * abs(mean):  # the sum's rounding would show: sum what is above the first value
        above = known - known[0]
        mean, std = float(known[0] + above.mean()), float(above.std())
    if np.ptp(known) == 0 or std <= ROUNDING * abs(mean):  # whatever comes is measured by its size
        mean, std = float(known[0]), max(1e-3 * abs(mean), 1e-6)
    return Feature(name, unit, mean, std)


def _step_s(series: Sequence[Series]) -> float:
    """The median gap between rows that go forward in time."""
    gaps = np.concatenate([np.diff(s.times) for s in series if s.times is not None])
    forward = gaps[gaps > 0]
    if not forward.size:
        raise InputError("the times never go forward; training needs rows in the order of time")
    return float(np.median(forward))


def _calendar(series: Sequence[Series], step_s: float) -> tuple[Cycle, ...]:
    longest_s = max(float(np.ptp(s.times)) for s in series if s.times is not None and len(s))
    return tuple(
        cycle
        for cycle in get_args(Cycle)
        if step_s <= LONGEST_STEP * CYCLES[cycle][0]
        and longest_s >= CYCLES_LEAST[cycle] * CYCLES[cycle][0]
    )


@dataclass(frozen=True, eq=False)
class History:
    """The steps of one series, as streaming its readings makes them.

    readings [T, n] float64. x [S, network inputs] float64. row [S]: each step's reading, -1: it
    fills a gap. position [S]: its place on the grid. Steps before `held_out` are trained on, those
    before `unseen` tell when to stop, the rest is not looked at.
    """

    readings: Array
    x: Array
    row: Array
    position: Array
    held_out: int
    unseen: int
    value: Array  # the target's [S], in its unit; NaN where there was none
    times: Array | None  # of the readings [S], in seconds; NaN where a step fills a gap

    @classmethod
    def of(cls, head: Head, series: Series, unseen: float) -> History:
        readings = series.events()
        wild = np.argwhere(np.abs(readings) > CompiledHead(head).largest)
        if wild.size:
            k, column = wild[0]
            file = f"{series.file}, " if series.file else ""
            raise InputError(
                f"{file}line {series.lines[k]} holds {readings[k, column]:g} as "
                f"{head.inputs[column].name}, too far from the rows to train on; leave the cell "
                "of a missing value empty"
            )
        x, row, position = unroll(head, readings)
        column = 0 if head.time is None else 1
        value = np.where(row >= 0, readings[row, column], np.nan)
        first = len(series) - unseen_rows(series, unseen)
        seen = int(np.searchsorted(np.maximum.accumulate(row), first))
        held_out = seen - min(int(HELD_OUT * seen), max(HELD_OUT_MOST, 4 * head.horizon))
        times = None if head.time is None else np.where(row >= 0, readings[row, 0], np.nan)
        return cls(readings, x, row, position, held_out, seen, value, times)

    def __len__(self) -> int:
        return len(self.x)

    def at(self, steps: int, of: Array) -> Array:
        """`of` [S] as it is so many steps later (negative: earlier), [S]; NaN where no step is."""
        place = self.position + steps
        found = np.searchsorted(self.position, place).clip(max=len(self) - 1)
        return np.where(self.position[found] == place, of[found], np.nan)

    def before(self, steps: int, lag_s: float, step_s: float) -> Array:
        """The value a lag, or as many as are known by now, before the one `steps` later: [S].

        By the clock: the nearest reading, within half a step; NaN where there is none.
        """
        assert self.times is not None
        ahead_s = self.at(steps, self.times) - self.times
        lags = np.ceil((ahead_s - step_s / 2) / lag_s).clip(min=1)
        wanted = self.times + ahead_s - lags * lag_s
        real = np.flatnonzero(self.row >= 0)
        real = real[np.argsort(self.times[real], kind="stable")]
        times = self.times[real]
        right = np.searchsorted(times, wanted).clip(max=len(real) - 1)
        left = np.maximum(right - 1, 0)
        near = np.where(wanted - times[left] <= times[right] - wanted, left, right)
        known = (np.abs(times[near] - wanted) <= step_s / 2) & (real[near] <= np.arange(len(self)))
        return np.where(known, self.value[real[near]], np.nan)

    def dropped(self, missing: Missing) -> Array:
        """The readings [D] that made no step, and for no value that is missing."""
        real = self.row[self.row >= 0]
        lost = np.ones(len(self.readings), bool)
        lost[real] = False
        lost[: real.min(initial=len(lost))] = False  # until there is a value to hold
        if missing in ("skip", "reject"):
            lost &= ~np.isnan(self.readings).any(axis=1)
        return np.flatnonzero(lost)

    @cached_property
    def _a(self) -> Array:
        return np.where(np.isnan(self.value), np.nan, self.x[:, 0])

    def targets(self, horizon: int) -> Array:
        """What the network is to say in the steps before `unseen`: a later less a now.

        [unseen, horizon] float32, NaN: unknown. Steps trained on know no held-out value.
        """
        y = np.empty((self.unseen, horizon), np.float32)
        position = self.position[: self.unseen]
        for k in range(horizon):
            y[:, k] = (self.at(k + 1, self._a) - self.x[:, 0])[: self.unseen]
            for end in (self.held_out, self.unseen):
                if end < len(self):
                    late = position + k + 1 >= self.position[end]
                    y[:end, k][late[:end]] = np.nan
        return y


def check_order(head: Head, histories: Sequence[History]) -> None:
    """Raise InputError where many rows would be dropped, because they are not in order."""
    if head.time is None or head.late != "drop":
        return
    rows = sum(len(h.readings) for h in histories)
    many = early = 0
    for history in histories:
        dropped, times = history.dropped(head.missing), history.readings[:, 0]
        many += len(dropped)
        early += int((times[dropped] > np.maximum.accumulate(times)[dropped - 1]).sum())
    if many <= DROPPED_MOST * rows:
        return
    if 2 * early > many:
        raise InputError(
            f"{many:,} of {rows:,} rows come less than half a step of {head.step_s:g} s after the "
            "one before, and would be dropped; take each as a step with spacing gap"
        )
    raise InputError(
        f"the rows are not in the order of time ({many:,} of {rows:,} come late); sort them, or "
        "name the column of --series"
    )


def check_enough(histories: Sequence[History], horizon: int, unseen: float) -> None:
    """Raise InputError where the longest series has too few steps to train and to report on."""
    longest = max(histories, key=len)
    needed = max(ROWS_LEAST, (horizon + 1) / HELD_OUT) / (1 - unseen)
    if unseen:
        needed = max(needed, (horizon + 1) / unseen)
    if len(longest) < needed:
        used = "" if len(longest) == len(longest.readings) else f", good for {len(longest)} steps"
        raise InputError(
            f"training with a horizon of {horizon} needs a series of {math.ceil(needed)} rows or "
            f"more, in the order of time; the longest has {len(longest.readings)}{used}"
        )


def check_known(y: Sequence[Array], held_out: Sequence[int], target: str) -> None:
    """Raise InputError where a step of the horizon has no value to learn, or to stop by.

    y: targets [unseen, horizon] of each series, of which the first `held_out` are trained on.
    """
    for what, parts in (
        ("train on", [a[:end] for a, end in zip(y, held_out, strict=True)]),
        ("hold out", [a[end:] for a, end in zip(y, held_out, strict=True)]),
    ):
        unknown = np.flatnonzero(~np.isfinite(np.concatenate(parts)).any(axis=0))
        if unknown.size:
            raise InputError(
                f"{target} is never known {counted(int(unknown[0]) + 1, 'step')} after a row in "
                f"the rows to {what}; training needs more of its values there, or a shorter horizon"
            )
